"""What a run is made of, and how it ended: phases, settings of the loop, result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sgmjax._files import AnyPath
from sgmjax._schema import LoopSettings as Settings
from sgmjax.tasks.base import Task, Variables
from sgmjax.training.state import Ema

__all__ = ["NonFiniteError", "Phase", "Result", "Settings"]


class NonFiniteError(RuntimeError):
    """Too many steps in a row with a loss or gradient that is not finite. Checkpoints are from before them."""


class Phase(NamedTuple):
    """A stretch of training.

    Attributes:
        task: what is learnt. All phases of a run have the same variables.
        steps: how many.
        optimizer: over the task's parameters; begins anew in every phase.
        ema: decay of the average of the parameters in update n = 1, 2, ... of the run, or a tree of decays that is the
            beginning of the parameters' (1: stays as it is).
        start: what is done before the first step, start(variables, data, key) -> variables; None: nothing.
        remedies: what else helps against losses that are not finite, for the message.
    """

    task: Task
    steps: int
    optimizer: optax.GradientTransformation
    ema: Ema = lambda count: jnp.minimum(0.9999, (1 + count) / (10 + count))
    start: Callable[[Variables, Any, jax.Array], Variables] | None = None
    remedies: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        status: `finished`, `interrupted` (a signal; the state is saved) or `complete` (nothing was left to do).
        step: steps taken.
        workdir: the run folder.
        host_ms: milliseconds the training thread worked per step (batch, dispatch), waiting for the devices or for
            anything else not counted; None without steps.
        signal: the number of the signal that interrupted it, else None.
        variables: averaged parameters and the networks' state; None of a complete run (`load_run` reads them).
    """

    status: str
    step: int
    workdir: AnyPath
    host_ms: float | None = None
    signal: int | None = None
    variables: Variables | None = None
