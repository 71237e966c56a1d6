"""Keeps the averaged parameters with the best value of a number that is measured during training.

They lie in `<workdir>/best`, beside the newest checkpoints: `load_run(folder, best=True)`, or --checkpoint=best of the
commands. `best.json` says which number, its value and the step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import jax

from sgmjax import sharding as sh
from sgmjax._files import AnyPath, replacing
from sgmjax._inputs import InputError
from sgmjax._say import say
from sgmjax.training.callbacks import Callback, Moment
from sgmjax.training.checkpoint import Checkpointer

FOLDER, FILE = "best", "best.json"
# Of which more is better; of all others less is.
LARGER = (
    "is", "pr_precision", "pr_recall", "dc_density", "dc_coverage", "eval_accuracy", "memorisation_ratio"
)  # fmt: skip


class Best(Callback):
    """Keeps the parameters of the step at which a number was best.

    Args:
        name: of a number that another callback gives, as "eval_loss" or "fid".
        larger: whether more of it is better; None: as for the metrics of `evaluation`, less of what is none of them.
        beside: how the names of all numbers begin that come with it; where such come without it, its name is wrong.
    """

    def __init__(self, name: str, *, larger: bool | None = None, beside: str | None = None):
        self.name, self._read, self._value = name, False, None
        self._larger, self._beside = name in LARGER if larger is None else larger, beside

    def due(self, step: int, steps: int) -> bool:
        """Never by itself: it is told what others found."""
        return False

    def told(self, moment: Moment, numbers: Mapping[str, float]) -> None:
        """Saves, if the number is there and better than all before."""
        value = numbers.get(self.name)
        if value is None and self._beside is not None:
            if there := [name for name in numbers if f"{name}_".startswith(self._beside)]:
                raise InputError(f"train.keep_best: nothing measures {self.name!r}; there are {', '.join(there)}")
        if value is None or not math.isfinite(value):
            return
        if not self._read:
            self._value, self._read = _recorded(moment.folder, self.name), True
            sh.wait_for_all("sgmjax_best")  # all have read what the first may now write
        sign = -1.0 if self._larger else 1.0
        if self._value is not None and sign * value >= sign * self._value:
            return
        self._value = value
        checkpointer = Checkpointer(moment.folder, keep=1, folder=FOLDER)
        try:
            checkpointer.save_variables(moment.step, moment.variables, {"name": self.name, "value": value})
        finally:
            checkpointer.close()
        if jax.process_index() == 0:
            with replacing(moment.folder / FOLDER / FILE) as partial:
                record = {"name": self.name, "value": value, "step": moment.step}
                partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
        say(f"step {moment.step}  {self.name} {value:.5g} is the best so far, kept in {moment.folder / FOLDER}")


def _recorded(folder: AnyPath, name: str) -> float | None:
    """The best value so far of a number; None of another, or if nothing can be read."""
    try:
        record = json.loads((folder / FOLDER / FILE).read_text(encoding="utf-8"))
        return float(record["value"]) if record["name"] == name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
