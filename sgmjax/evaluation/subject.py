"""What is measured, how, and what comes out: the contract of metrics, `metric(subject, settings) -> Measured`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sgmjax import sharding as sh
from sgmjax._files import AnyPath
from sgmjax.evaluation.likelihood import FlowSettings
from sgmjax.samplers._likelihood import Truncation
from sgmjax.tasks.base import Variables


class Unfinished(Exception):
    """A signal came while a metric was being measured; the message says where to go on."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """What is measured.

    Attributes:
        task: a `Generative` one.
        variables: averaged parameters and the networks' state.
        data: what it is compared with, held-out data as a rule; None: there are none.
        others: gives the other part of the data, training data as a rule, or None; for metrics that need both.
        held_out: whether `data` are held out.
        mirrored: whether mirrored images were trained on.
        plan: how samples are drawn.
        num, batch_size: of samples where the settings leave it open.
        t_min: the time where training ended.
        mesh: the devices.
        progress: given a number and a unit, a function that is told how many are done.
        stop: asked between pieces of long work: whether a signal wants it to end.
        identity: JSON-able: which parameters these are, the run, its step, averaged or not.
        memo: what metrics share; empty at first.
        programs: what is compiled; subjects that differ in their variables alone may share it.
    """

    task: Any
    variables: Variables
    data: Any
    plan: Any
    mesh: Mesh
    others: Callable[[], Any] | None = None
    held_out: bool = True
    mirrored: bool = False
    num: int = 1000
    batch_size: int = 500
    t_min: float = 1e-5
    progress: Callable[..., Callable[[int], None]] = lambda num, unit="": lambda done: None
    stop: Callable[[], bool] = lambda: False
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    memo: dict[Any, Any] = dataclasses.field(default_factory=dict)
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @property
    def places(self) -> Any:
        """Where the variables lie while something is measured."""
        return jax.tree.map(lambda _: sh.replicated(self.mesh), self.variables)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(FlowSettings):
    """How it is measured; each metric reads what concerns it, see `LikelihoodSettings` and `NelboSettings`.

    Attributes:
        num: examples or samples; None: all examples, as many samples as the subject says.
        batch_size: at a time, of samples on each device; None: the subject's, or less.
        seed: of all that is random.
        t_min: where the ODE starts; None: where training ended, of `nelbo` where the plan's samples end.
        nearest: training images shown beside each sample, of `neighbours`.
        features: in which samples and data are compared: a name of `evaluation.features.FEATURES`, or a `Features`.
        against: the part of the data they are compared with; published: "train".
        reference: a file of statistics to compare with in place of the data.
        preprocessing: of that file, where it does not say, see `read_statistics`.
        subsets, subset_size: of KID; subsets are smaller where there are fewer samples.
        splits: of the Inception score.
        k: neighbours of precision and recall; None: 3, of density and coverage 5.
        folder: where samples and features are kept, so that work that is stopped goes on; None: in memory.
    """

    num: int | None = None
    batch_size: int | None = None
    seed: int = 0
    t_min: float | None = None
    truncation: Truncation = "ignore"
    dequantizations: int = 1
    posterior_samples: int = 1
    nearest: int = 8
    features: Any = "inception"
    against: Literal["train", "test"] = "train"
    reference: str | None = None
    preprocessing: str | None = None
    subsets: int = 100
    subset_size: int = 1000
    splits: int = 10
    k: int | None = None
    folder: AnyPath | None = None


class Measured(NamedTuple):
    """What a metric found.

    Attributes:
        numbers: the figures that matter, by name; for logs.
        lines: in words.
        record: all that is needed to repeat it, and the results; JSON-able.
        picture: uint8 (H, W, 3), or None.
    """

    numbers: dict[str, float]
    lines: list[str]
    record: dict[str, Any]
    picture: np.ndarray | None = None


Metric = Callable[[Subject, Settings], Measured]


def mean_and_error(values: Any) -> dict[str, Any]:
    """The mean over examples and its standard error; None for one example."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error}
