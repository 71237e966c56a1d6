"""Learning a score by denoising score matching: what VP, sub-VP, VE, CLD, PSLD, NCSN and NCSNv2 train."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sgmjax import samplers, score, sdes
from sgmjax._inputs import InputError, check_labels
from sgmjax._types import Key, Labels, Samples
from sgmjax.data import to_float
from sgmjax.data.dequantize import dequantize
from sgmjax.model import NetworkModel
from sgmjax.samplers import plan as plans
from sgmjax.tasks.base import Batch, Metrics, PyTree, Variables, labelled


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ScoreTask:
    """A `ScoreModel` or a `DenoiserModel` trained on data.

    Attributes:
        model: process, network, loss.
        event_shape: of one example.
        num_classes: classes the network is conditioned on; None: unconditional.
        class_names: theirs, or None.
        label_dropout: share of the training examples whose class is hidden from the network, so that it also learns
            the score of all classes together: for classifier-free guidance.
        dequantize: train on (x + u) / 256, u uniform: the density that bits/dim are about.
        discrete: whether the data are 8-bit levels, else floats; samples are saved as the data are.
        centered: whether the network sees images in [-1, 1], else in [0, 1].
    """

    model: NetworkModel
    event_shape: tuple[int, ...]
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    label_dropout: float = 0.0
    dequantize: bool = False
    discrete: bool = False
    centered: bool = True

    @property
    def sde(self) -> sdes.SDE:
        """The forward process."""
        return self.model.sde

    @property
    def network(self) -> Any:
        """The network of the model."""
        return self.model.network

    def init(self, key: Key) -> Variables:
        """Fresh parameters; the network has no state."""
        return Variables(self.model.init(key, self.event_shape, labels=self.num_classes is not None), {})

    def as_process(self, sde: sdes.SDE) -> ScoreTask:
        """The same network, sampling, scoring and measuring likelihoods with another process."""
        return dataclasses.replace(self, model=self.model.as_process(sde))

    def _check_labels(self, labels, length: int | None = None) -> None:
        """Raise InputError unless labels are classes that the network knows."""
        if labels is not None and self.num_classes is None:
            raise InputError("labels were given to a network without classes; set model.num_classes")
        if labels is not None:
            assert self.num_classes is not None
            check_labels(labels, self.num_classes, length=length)

    def score_fn(
        self, variables: Variables, *, labels: Labels | None = None, guidance: float | samplers.Guidance = 1.0
    ) -> score.ScoreFn:
        """`ScoreModel.score_fn` of labels that are looked at."""
        self._check_labels(labels)
        return self.model.score_fn(variables.params, labels=labels, guidance=guidance)

    def loss(
        self, variables: Variables, key: Key, batch: Batch, *, step: Any = None, ema: PyTree = None, train: bool
    ) -> tuple[Float[jax.Array, ""], Metrics, PyTree]:
        """Mean loss of a batch {"x": uint8 or float32 (batch, *event), "label": (batch,)}; see `Task.loss`."""
        loss_key, dropout_key = jax.random.split(key)
        if self.dequantize:
            loss_key, noise_key = jax.random.split(loss_key)
            x0 = dequantize(noise_key, batch["x"], centered=self.centered)
        else:
            x0 = to_float(batch["x"], self.centered)
        labels = labelled(batch, self.num_classes)
        self._check_labels(labels)
        if labels is not None and train and self.label_dropout:
            hide_key, dropout_key = jax.random.split(dropout_key)
            hidden = jax.random.bernoulli(hide_key, self.label_dropout, labels.shape)
            assert self.num_classes is not None
            labels = jnp.where(hidden, self.num_classes, labels)  # the networks' index of "no class"
        losses = self.model.losses(
            variables.params, loss_key, x0, labels=labels, dropout_key=dropout_key if train else None
        )
        return jnp.mean(losses), {}, variables.state

    def sample(
        self, variables: Variables, key: Key, num: int, plan: Any, *, labels: Labels | None = None
    ) -> tuple[Samples, samplers.SampleInfo]:
        """`num` samples (num, *event) in the network's range.

        Args:
            variables: the network's.
            key: typed PRNG key.
            num: how many; static.
            plan: a `samplers.Plan`.
            labels: (num,) classes; None draws them uniformly for a class-conditional network.
        """
        self._check_labels(labels, length=num)
        label_key, key = jax.random.split(key)
        if self.num_classes is not None and labels is None:
            labels = jax.random.randint(label_key, (num,), 0, self.num_classes)
        self.model.check_range(plan.t_min)
        return plans.draw(plan, key, self.score_fn(variables, labels=labels), self.sde, (num, *self.event_shape))
