"""Learning the class of noised data, for classifier guidance."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sgmjax import objectives, score, sdes
from sgmjax._types import Key, LogitsFn, Scalar
from sgmjax.data import to_float
from sgmjax.sdes.base import Matching
from sgmjax.tasks.base import Batch, Metrics, PyTree, Variables


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ClassifierTask:
    """A classifier of noised data, by cross entropy.

    Attributes:
        sde: the forward process that noises them.
        network: the Flax module; unbound.
        time_law: draws training times.
        event_shape: of one example.
        num_classes: what it tells apart.
        class_names: their names, or None.
        time_conditioning, num_levels: what the network is given for time, see `score.condition`.
        matching: the kernel.
        discrete: whether the data are 8-bit levels, else floats.
        centered: whether the network sees images in [-1, 1], else in [0, 1].

    Reference: Song et al. 2021, app. I.1; Pandey & Mandt 2023, class-conditional synthesis.
    """

    sde: sdes.SDE
    network: Any
    time_law: Any
    event_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    time_conditioning: score.TimeConditioning = "t"
    num_levels: int | None = None
    matching: Matching = "hsm"
    discrete: bool = True
    centered: bool = True

    def init(self, key: Key) -> Variables:
        """Fresh parameters; the network has no state."""
        x = jnp.zeros((1, *self.event_shape[:-1], self.sde.k * self.event_shape[-1]))
        return Variables(self.network.init(key, x, jnp.ones((1,)), train=False, labels=None)["params"], {})

    def logits_fn(self, variables: Variables, *, dropout_key: Key | None = None) -> LogitsFn:
        """logits_fn(z, t) -> (batch, classes), t the forward time. A dropout key means training."""
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        train = dropout_key is not None

        def logits(z, t):
            cond = score.condition(self.sde, t, self.time_conditioning, self.num_levels)
            x = score.to_channels(z)
            out = self.network.apply({"params": variables.params}, x, cond, train=train, labels=None, rngs=rngs)
            return out.astype(z.dtype)

        return logits

    def loss(
        self, variables: Variables, key: Key, batch: Batch, *, step: Any = None, ema: PyTree = None, train: bool
    ) -> tuple[Float[jax.Array, ""], Metrics, PyTree]:
        """Mean cross entropy of a batch, in nats, and the accuracy; see `Task.loss`."""
        loss_key, dropout_key = jax.random.split(key)
        losses, right = objectives.classifier(
            loss_key,
            self.logits_fn(variables, dropout_key=dropout_key if train else None),
            self.sde,
            to_float(batch["x"], self.centered),
            batch["label"],
            time_law=self.time_law,
            matching=self.matching,
        )
        return jnp.mean(losses), {"accuracy": jnp.mean(right.astype(jnp.float32))}, variables.state

    def accuracy(self, variables: Variables, key: Key, batch: Batch, t: Scalar) -> Float[jax.Array, ""]:
        """Share of a batch that is classified rightly when noised to time t, ()."""
        x0 = to_float(batch["x"], self.centered)
        eps = jax.random.normal(key, (x0.shape[0], self.sde.k, *x0.shape[1:]))
        time = jnp.full(x0.shape[:1], t, x0.dtype)
        z0, labels = self.sde.augment(x0), batch["label"]
        _, right = objectives.classifier_loss(self.logits_fn(variables), self.sde, z0, labels, time, eps)
        return jnp.mean(right.astype(jnp.float32))
