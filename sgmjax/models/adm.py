"""ADM, the U-Net of Dhariwal & Nichol 2021, in the form that EDM gave it: what its ImageNet networks are.

Against NCSN++ its residual blocks take the embedding as a scale and a shift after the second norm, resample without a
convolution in the skip, and hold attention of several heads, at some resolutions, on the way up after every block.

Reference: Dhariwal & Nichol 2021, "Diffusion models beat GANs on image synthesis", sec. 3; Karras et al. 2022, table 7.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Int

from sgmjax._inputs import InputError
from sgmjax._ranges import Fraction, PositiveInt
from sgmjax._types import Cond, Inputs, Outputs
from sgmjax.models import layers
from sgmjax.models.layers import Width, spatial_axes
from sgmjax.models.ncsnpp import label_or_none

EPSILON = 1e-5  # of its norms


def _conv(features: int, size: int, *, name: str, dtype: Any, x: jax.Array, zero: bool = False) -> nn.Conv:
    """A convolution with PyTorch's default initialisation, or of zeros."""
    axes = spatial_axes(x)
    fan_in = x.shape[-1] * size**axes
    zeros = nn.initializers.zeros
    return nn.Conv(
        features,
        (size,) * axes,
        padding=size // 2,
        kernel_init=zeros if zero else layers.torch_default_init(),
        bias_init=zeros if zero else layers.torch_default_init(fan_in),
        dtype=dtype,
        conv_general_dilated=layers.convolve,
        name=name,
    )


def _dense(features: int, *, name: str, dtype: Any, fan_in: int) -> nn.Dense:
    init = layers.torch_default_init
    return nn.Dense(features, kernel_init=init(), bias_init=init(fan_in), dtype=dtype, name=name)


def _norm(x: jax.Array, *, name: str, dtype: Any) -> jax.Array:
    channels = x.shape[-1]
    return layers.GroupNorm(layers.num_groups(channels), epsilon=EPSILON, dtype=dtype, name=name)(x)


def _position(cond: jax.Array, dim: int) -> jax.Array:
    """[cos, sin] of cond at frequencies 10000^(-j / (dim / 2)), (batch, dim)."""
    half = dim // 2
    frequencies = np.exp(-math.log(10_000) * np.arange(half) / half)
    angles = cond[:, None] * jnp.asarray(frequencies, cond.dtype)[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ADMBlock(nn.Module):
    """A residual block with a scale and a shift by the embedding, perhaps with attention.

    x (B, *space, C), embedding (B, E), its activation taken -> (B, *space', features).
    """

    features: int
    resample: str = "none"  # none | up | down
    heads: int = 0
    dropout: float = 0.1
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        h = layers.resize(nn.swish(_norm(x, name="norm_0", dtype=self.dtype)), self.resample, None)
        x = layers.resize(x, self.resample, None)
        h = _conv(self.features, 3, name="conv_0", dtype=self.dtype, x=h)(h)
        fan_in = embedding.shape[-1]
        both = _dense(2 * self.features, name="time_dense", dtype=self.dtype, fan_in=fan_in)(embedding)
        scale, shift = (layers.over_space(v, h) for v in jnp.split(both, 2, axis=-1))
        h = nn.swish(_norm(h, name="norm_1", dtype=self.dtype) * (scale + 1) + shift)
        h = nn.Dropout(self.dropout, deterministic=not self.train)(h)
        h = _conv(self.features, 3, name="conv_1", dtype=self.dtype, x=h, zero=True)(h)
        if x.shape[-1] != self.features:
            x = _conv(self.features, 1, name="shortcut", dtype=self.dtype, x=x)(x)
        h = x + h
        return h if not self.heads else h + self._attention(h)

    def _attention(self, x: jax.Array) -> jax.Array:
        """Self-attention over pixels."""
        batch, channels = x.shape[0], x.shape[-1]
        h = _norm(x, name="attn_norm", dtype=self.dtype).reshape(batch, -1, channels)
        parts = [
            _dense(channels, name=name, dtype=self.dtype, fan_in=channels)(h) for name in ("query", "key", "value")
        ]
        parts = [part.reshape(batch, -1, self.heads, channels // self.heads) for part in parts]
        h = jax.nn.dot_product_attention(*parts).reshape(batch, -1, channels)  # softmax in float32
        zeros = nn.initializers.zeros
        return nn.Dense(channels, kernel_init=zeros, dtype=self.dtype, name="out")(h).reshape(x.shape)


class ADM(nn.Module):
    """The U-Net, called as `NCSNpp`: `module.apply({"params": p}, x, cond, train=False, labels=None)`.

    Fields:
      nf, ch_mult, num_res_blocks, attn_resolutions, dropout: as of `NCSNpp`; defaults are EDM's for ImageNet 64 x 64.
      channels_per_head: of attention; a level with attention has as many heads as they fit into its channels.
      num_classes: classes to condition on, or None.
      remat: see `layers.Remat`.
      out_channels, centered, dtype: as of `NCSNpp`.

    Returns:
      (B, *space, out_channels), float32.
    """

    axes = (2, 3)

    nf: Width = 192
    ch_mult: tuple[PositiveInt, ...] = (1, 2, 3, 4)
    num_res_blocks: PositiveInt = 3
    attn_resolutions: tuple[PositiveInt, ...] = (32, 16, 8)
    dropout: Fraction = 0.1
    channels_per_head: PositiveInt = 64
    num_classes: PositiveInt | None = None
    remat: layers.Remat = False
    out_channels: int = 3
    centered: bool = True
    dtype: Any = jnp.float32

    def _block(self, features: int, name: str, train: bool, *, resample: str = "none", attention: bool = False):
        heads = features // self.channels_per_head if attention else 0
        if attention and (not heads or features % heads):
            raise InputError(
                f"model.channels_per_head: {self.channels_per_head} channels of a head do not divide {features}"
            )
        cls = layers.remat(ADMBlock, self.remat)
        return cls(features, resample, heads, self.dropout, train, self.dtype, name=name)

    @nn.compact
    def __call__(
        self, x: Inputs, cond: Cond, *, train: bool = False, labels: Int[jax.Array, " batch"] | None = None
    ) -> Outputs:
        layers.check_sides(x.shape[1:-1], len(self.ch_mult))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = (x if self.centered else 2.0 * x - 1.0).astype(self.dtype)
        embedding = self._embed(cond.astype(wide), labels, wide)
        h = _conv(self.nf * self.ch_mult[0], 3, name="conv_in", dtype=self.dtype, x=x)(x)
        skips, last = [h], len(self.ch_mult) - 1
        for level, mult in enumerate(self.ch_mult):
            if level:
                h = self._block(h.shape[-1], f"down_{level - 1}_resample", train, resample="down")(h, embedding)
                skips.append(h)
            for i in range(self.num_res_blocks):
                attends = h.shape[1] in self.attn_resolutions
                h = self._block(self.nf * mult, f"down_{level}_block_{i}", train, attention=attends)(h, embedding)
                skips.append(h)
        for level in reversed(range(len(self.ch_mult))):
            if level == last:
                h = self._block(h.shape[-1], "mid_block_0", train, attention=True)(h, embedding)
                h = self._block(h.shape[-1], "mid_block_1", train)(h, embedding)
            else:
                h = self._block(h.shape[-1], f"up_{level + 1}_resample", train, resample="up")(h, embedding)
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                attends, features = h.shape[1] in self.attn_resolutions, self.nf * self.ch_mult[level]
                h = self._block(features, f"up_{level}_block_{i}", train, attention=attends)(h, embedding)
        assert not skips
        h = nn.swish(_norm(h, name="out_norm", dtype=self.dtype))
        return _conv(self.out_channels, 3, name="out_conv", dtype=self.dtype, x=h, zero=True)(h).astype(wide)

    def _embed(self, cond: jax.Array, labels: jax.Array | None, wide: Any) -> jax.Array:
        """Of the noise level and the class, its activation taken, (batch, 4 nf)."""
        width = 4 * self.nf
        h = _dense(width, name="time_dense_0", dtype=wide, fan_in=self.nf)(_position(cond, self.nf))
        h = _dense(width, name="time_dense_1", dtype=wide, fan_in=width)(nn.swish(h))
        if self.num_classes is None:
            if labels is not None:
                raise InputError("labels were given to a network without classes; set model.num_classes")
            return nn.swish(h)
        table = nn.Embed(self.num_classes + 1, width, dtype=wide, name="label_embed")
        return nn.swish(h + table(label_or_none(labels, self.num_classes, cond.shape[0])))
