"""Networks for vectors (signals, volumes): a residual MLP of our own, and the two toy networks of the CLD code."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int

from sgmjax._inputs import InputError
from sgmjax._ranges import PositiveInt
from sgmjax._types import Cond, Inputs, Outputs
from sgmjax.models import layers
from sgmjax.models.ncsnpp import label_or_none


def log_time_features(cond: Cond, pairs: int = 16, floor: float = 1e-6) -> Float[jax.Array, "batch features"]:
    """`[sin, cos](f log(cond))` for `pairs` frequencies f, geometric from 1/16 to 8: (batch,) -> (batch, 2 pairs).

    A noise level spans decades, whether it comes as t, 999 t or sigma, so its logarithm is what varies evenly.
    """
    frequencies = jnp.asarray(np.geomspace(1.0 / 16.0, 8.0, pairs), cond.dtype)
    angles = jnp.log(jnp.maximum(cond, floor))[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class _MLP(nn.Module):
    """Fields and layers, shared by the score network and the classifier."""

    takes_log = True

    out_channels: int = 2
    width: PositiveInt = 128
    depth: PositiveInt = 4
    centered: bool = True
    dtype: Any = jnp.float32

    def _run(self, x: jax.Array, cond: jax.Array, labels: jax.Array | None, num_classes: int | None) -> jax.Array:
        wide = jnp.promote_types(self.dtype, jnp.float32)
        temb = log_time_features(cond.astype(wide))
        temb = nn.swish(layers.dense(self.width, name="time_dense_0", dtype=wide)(temb))
        if num_classes is not None:
            table = nn.Embed(num_classes + 1, self.width, dtype=wide, name="label_embed")
            temb = temb + table(label_or_none(labels, num_classes, x.shape[0]))
        elif labels is not None:
            raise InputError("labels were given to a network without classes; set model.num_classes")
        temb = nn.swish(layers.dense(self.width, name="time_dense_1", dtype=wide)(temb))

        places = math.prod(x.shape[1:-1])  # 1 for vectors
        flat = x.reshape(x.shape[0], -1).astype(self.dtype)
        h = layers.dense(self.width, name="dense_in", dtype=self.dtype)(flat)
        for i in range(self.depth):
            r = nn.LayerNorm(dtype=self.dtype, use_fast_variance=False, name=f"block_{i}_norm")(h)
            r = layers.dense(self.width, name=f"block_{i}_dense_0", dtype=self.dtype)(r)
            r = nn.swish(r + layers.dense(self.width, name=f"block_{i}_time", dtype=self.dtype)(temb))
            h = h + layers.dense(self.width, name=f"block_{i}_dense_1", dtype=self.dtype)(r) / math.sqrt(self.depth)
        h = nn.swish(nn.LayerNorm(dtype=self.dtype, use_fast_variance=False, name="norm_out")(h))
        size = places * self.out_channels
        out = layers.dense(size, name="dense_out", dtype=self.dtype, init_scale=0.0)(h).astype(wide)
        out = out.reshape(x.shape[0], places, self.out_channels)
        # Far from the data the noise is linear in x, which normalised blocks cannot be: samplers would run away there.
        size = self.out_channels * x.shape[-1]
        linear = layers.dense(size, name="linear_part", dtype=wide, init_scale=0.0)(temb)
        linear = linear.reshape(x.shape[0], 1, self.out_channels, x.shape[-1])
        along = x.astype(wide).reshape(x.shape[0], places, 1, x.shape[-1])
        return (out + jnp.sum(linear * along, axis=-1)).reshape(*x.shape[:-1], self.out_channels)


class MLP(_MLP):
    """Residual MLP for vectors, with the noise level and the class added in every block, and a linear part.

    What has spatial axes is flattened; the linear part is then one matrix of the channels, the same everywhere.

    Fields: `width` and `depth` of the blocks, `num_classes` for class conditioning, `out_channels` (size of the output
    vector), `dtype`, and `centered`, which is accepted for uniformity and has no effect. Called as `NCSNpp` is, with x
    (B, D) or (B, *space, C) and any positive `cond` (B,).

    Returns:
      (B, *space, out_channels), float32; zero up to 1e-5 at initialisation.
    """

    axes = (0, 1, 3)

    num_classes: PositiveInt | None = None

    @nn.compact
    def __call__(
        self, x: Inputs, cond: Cond, *, train: bool = False, labels: Int[jax.Array, " batch"] | None = None
    ) -> Outputs:
        return self._run(x, cond, labels, self.num_classes)


class MLPClassifier(_MLP):
    """The classifier p(class | z_t, t) of noised vectors: the layers of `MLP`; `out_channels` is the number of classes.

    Returns:
      Logits, (B, out_channels), float32.
    """

    axes = (0,)
    classifies = True

    @nn.compact
    def __call__(
        self, x: Inputs, cond: Cond, *, train: bool = False, labels: Int[jax.Array, " batch"] | None = None
    ) -> Float[jax.Array, "batch classes"]:
        return self._run(x, cond, labels, None)


def _torch_dense(features: int, fan_in: int, name: str, dtype: Any) -> nn.Dense:
    return nn.Dense(
        features,
        kernel_init=layers.torch_default_init(),
        bias_init=layers.torch_default_init(fan_in),
        dtype=dtype,
        name=name,
    )


def _refuse_labels(labels: jax.Array | None, name: str) -> None:
    if labels is not None:
        raise InputError(f"{name} has no class conditioning; use model.name 'mlp' for it")


class CLDToyMLP(nn.Module):
    """The `mlp` of CLD's toy experiments: five linear layers on `[x, t]`. x (B, D), cond (B,) -> (B, out_channels).

    Reference: Dockhorn et al. 2022, appendix on toy experiments.
    """

    axes = (0,)

    out_channels: int = 2
    hidden_dim: PositiveInt = 128
    centered: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Inputs, cond: Cond, *, train: bool = False, labels: Int[jax.Array, " batch"] | None = None
    ) -> Outputs:
        _refuse_labels(labels, "CLDToyMLP")
        wide = jnp.promote_types(self.dtype, jnp.float32)
        h = jnp.concatenate([x.astype(wide), cond.astype(wide)[:, None]], axis=-1)
        for i, features in enumerate((self.hidden_dim,) * 4 + (self.out_channels,)):
            h = h if i == 0 else nn.swish(h)
            h = _torch_dense(features, h.shape[-1], f"dense_{i}", self.dtype)(h)
        return h.astype(wide)


class CLDToyResNet(nn.Module):
    """The `resnet` of CLD's toy experiments: residual linear layers, each seeing `log t` as one more feature.

    x (B, D), cond (B,) positive -> (B, out_channels).

    Reference: Dockhorn et al. 2022, appendix on toy experiments.
    """

    axes = (0,)
    takes_log = True

    out_channels: int = 2
    hidden_dim: PositiveInt = 64
    num_hidden_layers: PositiveInt = 20
    centered: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Inputs, cond: Cond, *, train: bool = False, labels: Int[jax.Array, " batch"] | None = None
    ) -> Outputs:
        _refuse_labels(labels, "CLDToyResNet")
        wide = jnp.promote_types(self.dtype, jnp.float32)
        log_t = jnp.log(cond.astype(wide))[:, None].astype(self.dtype)

        def layer(i: int, features: int, h: jax.Array) -> jax.Array:
            h = jnp.concatenate([h, log_t], axis=-1)
            return _torch_dense(features, h.shape[-1], f"dense_{i}", self.dtype)(h)

        h = nn.swish(layer(0, self.hidden_dim, x.astype(self.dtype)))
        for i in range(1, self.num_hidden_layers + 1):
            h = nn.swish(h + layer(i, self.hidden_dim, h))
        return layer(self.num_hidden_layers + 1, self.out_channels, h).astype(wide)
