"""InstanceNorm++ and the blocks of a RefineNet, from which NCSN and NCSNv2 are made. Channels last.

Every block exists with and without conditioning on the noise level: with `num_levels` set, each of its norms has one
row of scales and shifts for each level, and the blocks are given `level` (batch,) int32. Without it (NCSNv2) the inner
blocks have no norms at all, only the residual blocks do.

Parameters are float32; `dtype` is the type of the arithmetic, statistics of the norms are float32 in any case.

Reference: Song & Ermon 2019 ("NCSN"), appendix A, and 2020 ("NCSNv2"), appendix B.1; Lin et al. 2017 (RefineNet).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sgmjax.models import fir, layers
from sgmjax.models.convolution import convolve

Dtype = Any
Activation = Callable[[jax.Array], jax.Array]


def conv(
    features: int, in_features: int, *, name: str, dtype: Dtype, size: int = 3, dilation: int = 1, bias: bool = True
) -> nn.Conv:
    """A convolution that keeps the image's size, initialised as PyTorch does by default."""
    return nn.Conv(
        features,
        (size, size),
        padding=dilation * (size // 2),
        kernel_dilation=dilation,
        use_bias=bias,
        kernel_init=layers.torch_default_init(),
        bias_init=layers.torch_default_init(size * size * in_features),
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )


def _around_one(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


def _level_table(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Rows of gamma, alpha around one, and beta zero, side by side."""
    levels, width = shape
    scales = _around_one(key, (levels, 2 * width // 3), dtype)
    return jnp.concatenate([scales, jnp.zeros((levels, width // 3), dtype)], axis=-1)


class InstanceNormPlus(nn.Module):
    """InstanceNorm++: instance normalisation that keeps how the channels' means differ from each other.

        out_c = gamma_c ((x_c - mu_c) / s_c + alpha_c (mu_c - m) / v) + beta_c

    mu_c, s_c are the mean and standard deviation of channel c over the pixels, m and v those of the mu_c over the
    channels. The variance over pixels is divided by their number, the variance over channels by one less than theirs,
    as the official PyTorch code has it (score-SDE's JAX code divides both by the number).

    Attributes:
        num_levels: rows of gamma, alpha, beta, one for each noise level; None: one row.
    """

    num_levels: int | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array | None = None) -> jax.Array:
        """x (B, H, W, C), H W >= 2, C >= 2; level (B,) int32 -> (B, H, W, C)."""
        features = x.shape[-1]
        if self.num_levels is None:
            alpha = self.param("alpha", _around_one, (features,))
            gamma = self.param("gamma", _around_one, (features,))
            beta = self.param("beta", nn.initializers.zeros, (features,))
            gamma, alpha, beta = (row[None, None, None, :] for row in (gamma, alpha, beta))
        else:
            table = self.param("levels", _level_table, (self.num_levels, 3 * features))
            gamma, alpha, beta = jnp.split(table[level][:, None, None, :], 3, axis=-1)
        wide = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        means = jnp.mean(wide, axis=(1, 2), keepdims=True)
        normed = (wide - means) * jax.lax.rsqrt(jnp.var(wide, axis=(1, 2), keepdims=True) + 1e-5)
        spread = jnp.var(means, axis=-1, keepdims=True, ddof=1)
        means = (means - jnp.mean(means, axis=-1, keepdims=True)) * jax.lax.rsqrt(spread + 1e-5)
        return (gamma * (normed + alpha * means) + beta).astype(self.dtype)


class ResidualBlock(nn.Module):
    """Norm, activation, convolution, twice, and the shortcut; (B, H, W, C) -> (B, H', W', features).

    The first block of a stage has `transition` set: it changes the channels, and halves the side by 2 x 2 means after
    the second convolution unless it is dilated. Its shortcut is then a convolution too, 1 x 1 where the side is halved
    and dilated like the others where it is not.
    """

    features: int
    act: Activation
    transition: bool = False
    dilation: int = 1
    num_levels: int | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array | None) -> jax.Array:
        before = x.shape[-1]
        between = before if self.transition else self.features
        halve = self.transition and self.dilation == 1
        common = {"dilation": self.dilation, "dtype": self.dtype}
        norm = {"num_levels": self.num_levels, "dtype": self.dtype}
        h = self.act(InstanceNormPlus(name="norm_1", **norm)(x, level))
        h = conv(between, before, name="conv_1", **common)(h)
        h = self.act(InstanceNormPlus(name="norm_2", **norm)(h, level))
        h = conv(self.features, between, name="conv_2", **common)(h)
        if self.transition:
            size = 1 if halve else 3
            x = conv(self.features, before, size=size, name="shortcut", **common)(x)
        h = h + x
        return fir.naive_downsample_2d(h) if halve else h


class RCU(nn.Module):
    """Residual convolution units: `blocks` times x + (activation, convolution without bias, twice)."""

    blocks: int
    act: Activation
    num_levels: int | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array | None) -> jax.Array:
        features = x.shape[-1]
        for block in range(1, self.blocks + 1):
            h = x
            for stage in (1, 2):
                if self.num_levels is not None:
                    name = f"norm_{block}_{stage}"
                    h = InstanceNormPlus(self.num_levels, dtype=self.dtype, name=name)(h, level)
                name = f"conv_{block}_{stage}"
                h = conv(features, features, bias=False, name=name, dtype=self.dtype)(self.act(h))
            x = x + h
        return x


class CRP(nn.Module):
    """Chained residual pooling: two stages of 5 x 5 pooling and a convolution without bias, all summed.

    The pooling is by the maximum; in conditional networks by the mean, after a norm.
    """

    act: Activation
    num_levels: int | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array | None) -> jax.Array:
        features = x.shape[-1]
        path = x = self.act(x)
        for stage in (1, 2):
            if self.num_levels is not None:
                path = InstanceNormPlus(self.num_levels, dtype=self.dtype, name=f"norm_{stage}")(path, level)
                path = nn.avg_pool(path, (5, 5), (1, 1), "SAME")  # zeros outside the image are averaged too
            else:
                path = max_pool_5x5(path)
            path = conv(features, features, bias=False, name=f"conv_{stage}", dtype=self.dtype)(path)
            x = path + x
        return x


class MSF(nn.Module):
    """Multi-resolution fusion: convolutions of all inputs to `features` channels, resized to `size` and summed."""

    features: int
    num_levels: int | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Sequence[jax.Array], size: tuple[int, int], level: jax.Array | None) -> jax.Array:
        total: Any = 0.0
        for i, h in enumerate(inputs, 1):
            if self.num_levels is not None:
                h = InstanceNormPlus(self.num_levels, dtype=self.dtype, name=f"norm_{i}")(h, level)
            h = conv(self.features, h.shape[-1], name=f"conv_{i}", dtype=self.dtype)(h)
            total = total + resize_bilinear(h, size)
        return total


class RefineBlock(nn.Module):
    """A block of the decoder: adapts each input (RCU), fuses them (MSF), pools (CRP), and adapts the result (RCU).

    Attributes:
        features: channels of the result.
        last: whether it is the network's last, which has three units at its end and not one.
    """

    features: int
    act: Activation
    last: bool = False
    num_levels: int | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Sequence[jax.Array], level: jax.Array | None) -> jax.Array:
        """inputs: (B, H_i, W_i, C_i), the finest first -> (B, H_1, W_1, features); a single one is not fused."""
        norm = {"num_levels": self.num_levels, "dtype": self.dtype}
        height, width = inputs[0].shape[1:3]
        adapted = [RCU(2, self.act, name=f"adapt_{i}", **norm)(h, level) for i, h in enumerate(inputs, 1)]
        h = (
            adapted[0]
            if len(adapted) == 1
            else MSF(self.features, name="fuse", **norm)(adapted, (height, width), level)
        )
        h = CRP(self.act, name="pool", **norm)(h, level)
        return RCU(3 if self.last else 1, self.act, name="out", **norm)(h, level)


def max_pool_5x5(x: jax.Array) -> jax.Array:
    """The maximum over 5 x 5 pixels around each, of (B, H, W, C): over five rows, then over five columns.

    Element by element, which XLA fuses: on a CPU 20 times as fast as `nn.max_pool`, and 3 times with the gradient.
    """
    for axis in (1, 2):
        length = x.shape[axis]
        padding = [(2, 2) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        shifted = [jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(5)]
        x = functools.reduce(jnp.maximum, shifted)
    return x


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear interpolation of (B, H, W, C) to `size`, with corner pixels kept at the corners.

    In one direction n pixels become m by linear interpolation at i (n - 1) / (m - 1), i = 0 ... m - 1 (PyTorch's
    `align_corners=True`; `jax.image.resize` aligns the outer edges of the pixels instead).
    """
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        if new == old:
            continue
        position = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
        below = np.minimum(np.floor(position).astype(np.int32), old - 1)
        above = np.minimum(below + 1, old - 1)
        fraction = (position - below).reshape([new if i == axis else 1 for i in range(4)])
        lower, upper = jnp.take(x, below, axis=axis), jnp.take(x, above, axis=axis)
        x = lower + jnp.asarray(fraction, x.dtype) * (upper - lower)
    return x
