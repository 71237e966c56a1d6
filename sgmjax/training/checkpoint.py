"""Checkpoints of a run: written in the background, atomic, readable on any number of devices.

A checkpoint holds three items: `train` (step, parameters, optimiser, counters), `ema` (the averaged parameters, which
sampling reads alone) and `meta` (JSON: config, random key, place in the data). Beside them lies `sums.json`
with the size and checksum of every file, by which a damaged checkpoint is told from a good one before it is read.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from sgmjax._inputs import one_line, replacing
from sgmjax.training.state import TrainState

PyTree = Any

_SUMS = "sums.json"


class CheckpointError(RuntimeError):
    """No checkpoint can be read. The message is one line with the reason and the fix."""


class Checkpointer:
    """The checkpoints in `<workdir>/checkpoints`.

    Args:
        workdir: the run folder.
        keep: how many of the newest stay.
        read_only: for sampling: nothing is created, written or moved.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 2, *, read_only: bool = False):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._read_only = read_only
        self._unsealed: int | None = None
        self._manager: ocp.CheckpointManager | None = None
        if read_only and not self.directory.is_dir():
            return
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts writing; returns when the arrays are copied, so that the state may be donated to the next step.

        Args:
            step: number of steps taken.
            state: on the devices.
            meta: JSON-able.
        """
        assert self._manager is not None
        self.wait()
        train = {
            "step": state.step,
            "params": state.params,
            "opt_state": state.opt_state,
            "bad_steps": state.bad_steps,
            "bad_streak": state.bad_streak,
        }
        items = {
            "train": ocp.args.StandardSave(train),
            "ema": ocp.args.StandardSave(state.ema_params),
            "meta": ocp.args.JsonSave(meta),
        }
        if jax.tree.leaves(state.model_state):
            items["model_state"] = ocp.args.StandardSave(state.model_state)
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._unsealed = step

    def poll(self) -> None:
        """Finishes a checkpoint whose files have all been written meanwhile; cheap, never waits."""
        if self._unsealed is not None and self._manager and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when everything started by `save` is on disk."""
        if self._manager is None:
            return
        self._manager.wait_until_finished()
        if self._unsealed is not None and jax.process_index() == 0:
            _seal(self.directory / str(self._unsealed))
        self._unsealed = None

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self.wait()
        if self._manager is not None:
            self._manager.close()

    def restore(self, abstract: TrainState, say: Callable[[str], None] = print) -> tuple[TrainState, dict] | None:
        """The newest readable checkpoint, or None where there is none at all.

        A damaged one is reported in one line through `say`, moved to `<workdir>/damaged`, and the one before it is
        taken.

        Args:
            abstract: `ShapeDtypeStruct`s with shardings: where the arrays shall lie, whatever wrote them.
            say: receives the messages.

        Returns:
            The state and the meta dictionary of `save`.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        train = {
            "step": abstract.step,
            "params": abstract.params,
            "opt_state": abstract.opt_state,
            "bad_steps": abstract.bad_steps,
            "bad_streak": abstract.bad_streak,
        }
        wanted = {
            "train": ocp.args.StandardRestore(train),
            "ema": ocp.args.StandardRestore(abstract.ema_params),
            "meta": ocp.args.JsonRestore(),
        }
        if jax.tree.leaves(abstract.model_state):
            wanted["model_state"] = ocp.args.StandardRestore(abstract.model_state)
        found = self._newest(wanted, say)
        if found is None:
            return None
        _, items = found
        state = TrainState(ema_params=items["ema"], model_state=items.get("model_state", {}), **items["train"])
        return state, items["meta"]

    def restore_ema(
        self, abstract: PyTree, say: Callable[[str], None] = print, *, model_state: PyTree = None, averaged: bool = True
    ) -> tuple[int, PyTree, PyTree] | None:
        """The step, the averaged parameters and the model's state ({} unless asked for); otherwise as `restore`.

        With `averaged=False` the parameters being trained in place of their average.
        """
        if averaged:
            wanted: dict[str, Any] = {"ema": ocp.args.StandardRestore(abstract)}
        else:
            part = {"params": abstract}
            places = ocp.checkpoint_utils.construct_restore_args(part)
            wanted = {"train": ocp.args.PyTreeRestore(item=part, restore_args=places, partial_restore=True)}
        if jax.tree.leaves(model_state):
            wanted["model_state"] = ocp.args.StandardRestore(model_state)
        found = self._newest(wanted, say)
        if found is None:
            return None
        step, items = found
        params = items["ema"] if averaged else items["train"]["params"]
        return step, params, items.get("model_state", {})

    def _newest(self, args: dict[str, Any], say: Callable[[str], None]) -> tuple[int, Any] | None:
        steps = self.steps()
        for i, step in enumerate(reversed(steps)):
            problem = damage(self.directory / str(step))
            if problem is None:
                try:
                    assert self._manager is not None
                    return step, self._manager.restore(step, args=ocp.args.Composite(**args))
                except Exception as error:  # whatever a broken file makes the readers below us raise
                    problem = one_line(error, 120)
            rest = steps[: len(steps) - 1 - i]
            say(
                f"checkpoint {step} is damaged ({problem}); "
                + (f"going on with checkpoint {rest[-1]}" if rest else "there is no older one")
            )
            if not self._read_only:
                self._set_aside(step)
        if steps:
            raise CheckpointError(
                f"no checkpoint in {self.directory} can be read; restore a copy of one, "
                "or remove the run folder to start again"
            )
        return None

    def _set_aside(self, step: int) -> None:
        """Makes room for a checkpoint of the same step without throwing the damaged one away."""
        assert self._manager is not None
        if jax.process_index() == 0:
            target = self.directory.parent / "damaged" / str(step)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            shutil.move(self.directory / str(step), target)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("sgmjax_set_aside")
        self._manager.reload()


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None; one that was never sealed passes."""
    try:
        sums = json.loads((folder / _SUMS).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return f"{_SUMS} is cut short"
    for name, (size, checksum) in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
        if _checksum(path) != checksum:
            return f"{name} has changed"
    return None


def _seal(folder: Path) -> None:
    """Writes the sizes and checksums of a finished checkpoint."""
    if not folder.is_dir():  # deleted meanwhile, or on a remote file system
        return
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)
    sums = {str(path.relative_to(folder)): [path.stat().st_size, _checksum(path)] for path in files}
    with replacing(folder / _SUMS) as partial:
        partial.write_text(json.dumps(sums))


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            total = zlib.crc32(block, total)
    return total
