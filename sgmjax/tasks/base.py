"""What is learnt, as pure functions of arrays: the contracts that training, evaluation and commands know.

A `Task` knows no configuration. What it is trained on comes as a batch, and where it is trained does not matter to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Float

from sgmjax import samplers, score, sdes
from sgmjax._types import AnyArray, Key

PyTree = Any
Batch = dict[str, AnyArray]  # {"x": (batch, *event), "label": (batch,) where the data have classes}
Metrics = dict[str, jax.Array]


class Variables(NamedTuple):
    """All numbers of a task's networks.

    Attributes:
        params: what the optimiser moves.
        state: what the networks carry from step to step besides (averages of batch norm, vectors of power iterations);
            {} for most.
    """

    params: PyTree
    state: PyTree = {}


class Task(Protocol):
    """What is learnt."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one example, (H, W, C) of images, (D,) of vectors, (T, C) of signals, (D, H, W, C) of volumes."""
        ...

    def init(self, key: Key) -> Variables:
        """Fresh variables."""
        ...

    def loss(
        self, variables: Variables, key: Key, batch: Batch, *, step: Any, ema: PyTree, train: bool
    ) -> tuple[Float[jax.Array, ""], Metrics, PyTree]:
        """The loss of a batch, (), what is reported beside it, each (), and the state after it.

        Args:
            variables: the parameters being trained, or (`train=False`) the averaged ones.
            key: all that is random draws from it.
            batch: what the data set gives.
            step: steps taken since the beginning of the phase, ().
            ema: the averaged parameters.
            train: whether a step is taken on it (dropout, batch statistics), or it is only looked at.
        """
        ...


@runtime_checkable
class Generative(Protocol):
    """A task whose model draws samples.

    Besides what is below it has `num_classes` that can be asked for (None: unconditional) and `class_names` (or None);
    `discrete`, whether the data are 8-bit levels, else floats, for samples are saved as the data are; and `centered`,
    whether the range of images is [-1, 1], else [0, 1].
    """

    @property
    def sde(self) -> sdes.SDE:
        """The forward process."""
        ...

    def score_fn(
        self, variables: Variables, *, labels: Any = None, guidance: float | samplers.Guidance = 1.0
    ) -> score.ScoreFn:
        """The score of what the process diffuses, score_fn(z, t) -> (batch, k, *event)."""
        ...

    def sample(
        self, variables: Variables, key: Key, num: int, plan: Any, *, labels: Any = None
    ) -> tuple[jax.Array, Any]:
        """`num` samples (num, *event_shape) in the data's range and a `SampleInfo`, by a `samplers.Plan`."""
        ...


def labelled(batch: Batch, num_classes: int | None) -> Any:
    """The classes of a batch for a network that is conditioned on them, else None."""
    return batch["label"] if num_classes is not None else None
