"""Learning the classes of clean images, for the features of a network that can tell them apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Real

from sgmjax._inputs import check_labels
from sgmjax._types import AnyArray, Key
from sgmjax.data import to_float
from sgmjax.tasks.base import Batch, Metrics, PyTree, Variables


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FeatureTask:
    """A classifier of clean images, by cross entropy.

    Attributes:
        network: called as `models.FeatureNet` is; unbound.
        event_shape: of one image.
        num_classes: what it tells apart.
        class_names: their names, or None.
        discrete: whether the data are 8-bit levels, else floats.
        centered: whether the network sees images in [-1, 1], else in [0, 1].
        batch_size: images at a time that suit it, for features.
    """

    network: Any
    event_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    discrete: bool = True
    centered: bool = True
    batch_size: int = 500

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.network.widths[-1]

    def init(self, key: Key) -> Variables:
        """Fresh parameters; the network has no state."""
        return Variables(self.network.init(key, jnp.zeros((1, *self.event_shape)), train=False)["params"], {})

    def loss(
        self, variables: Variables, key: Key, batch: Batch, *, step: Any = None, ema: PyTree = None, train: bool
    ) -> tuple[Float[jax.Array, ""], Metrics, PyTree]:
        """Mean cross entropy of a batch, in nats, and the accuracy; see `Task.loss`."""
        rngs = {"dropout": key} if train else {}
        x = to_float(batch["x"], self.centered)
        _, logits = self.network.apply({"params": variables.params}, x, train=train, rngs=rngs)
        check_labels(batch["label"], self.num_classes)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = jnp.argmax(logits, axis=-1) == batch["label"]
        return jnp.mean(losses), {"accuracy": jnp.mean(right.astype(jnp.float32))}, variables.state

    def features(
        self, variables: Variables, images: Real[AnyArray, " batch *event"]
    ) -> tuple[Float[jax.Array, "batch dim"], Float[jax.Array, "batch classes"]]:
        """Features (batch, dim) and logits (batch, classes) of images as the data hold them, uint8 or floats."""
        return self.network.apply({"params": variables.params}, to_float(images, self.centered), train=False)
