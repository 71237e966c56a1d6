"""Layers of the convolutional score networks, channels last, over any number of spatial axes.

Parameters are float32 and live under their own names; `dtype` is the type of the arithmetic. Statistics of the norms
and the softmax are float32 in any case.

Reference: Ho et al. 2020 (DDPM); Song et al. 2021, appendix H; Brock et al. 2019 for the BigGAN residual block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Real

from sgmjax._inputs import InputError
from sgmjax._ranges import MAX_COUNT, Range
from sgmjax._types import AnyArray, Cond
from sgmjax.models import fir as fir_ops
from sgmjax.models.convolution import CONVOLVED, convolve

Dtype = Any
SQRT2 = math.sqrt(2.0)  # a Python float: a numpy scalar would promote bfloat16

# Types of the networks' settings, with ranges; see `sgmjax._ranges`.
Nonlinearity = Literal["swish", "elu", "relu", "lrelu"]
Width = Annotated[int, Range("4 or more, for the time embedding", lambda v: v >= 4, MAX_COUNT)]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swish": nn.swish,
    "elu": nn.elu,
    "relu": nn.relu,
    "lrelu": lambda x: nn.leaky_relu(x, 0.2),
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The nonlinearity of that name.

    Raises:
      ValueError: for a name not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise InputError(f"nonlinearity '{name}' is unknown; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def ddpm_init(scale: float = 1.0) -> Callable[..., jax.Array]:
    """Uniform of variance `scale / fan_avg`; scale 0 stands for 1e-10, which keeps gradients alive."""
    return nn.initializers.variance_scaling(scale if scale else 1e-10, "fan_avg", "uniform")


def torch_default_init(fan_in: int | None = None) -> Callable[..., jax.Array]:
    """PyTorch's default for linear layers, U(-1, 1) / sqrt(fan_in); give `fan_in` for a bias."""
    if fan_in is None:
        return nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv3x3(
    features: int,
    *,
    name: str,
    dtype: Dtype,
    init_scale: float = 1.0,
    strides: int = 1,
    padding: int | tuple[int, int] = 1,
    axes: int = 2,
) -> nn.Conv:
    """A convolution whose kernel is 3 along each of `axes` spatial axes; `padding` is of each, before and after."""
    return nn.Conv(
        features,
        (3,) * axes,
        strides=strides,
        padding=padding if isinstance(padding, int) else (padding,) * axes,
        kernel_init=ddpm_init(init_scale),
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )


def conv1x1(features: int, *, name: str, dtype: Dtype, axes: int = 2) -> nn.Conv:
    init = ddpm_init()
    return nn.Conv(features, (1,) * axes, kernel_init=init, dtype=dtype, conv_general_dilated=convolve, name=name)


# What is computed anew in the backward pass instead of being kept: nothing, everything within a block, or all but the
# results of convolutions. Of psld_cifar's step with a batch of 128 are kept 55, 8 and 11 GiB in float32, for 18% and
# 0.4% more operations.
Remat = Literal[False, True, "elementwise"]


def remat(block: type[nn.Module], how: Remat, **options: Any) -> Any:
    """A block, whose intermediate results are kept for the backward pass as `how` says; options as of `nn.remat`."""
    if how == "elementwise":
        return nn.remat(block, policy=jax.checkpoint_policies.save_only_these_names(CONVOLVED), **options)
    return nn.remat(block, **options) if how else block


def spatial_axes(x: jax.Array) -> int:
    """How many there are in (B, *space, C): 1 for signals, 2 for images, 3 for volumes."""
    return x.ndim - 2


def check_sides(sides: Sequence[int], levels: int, resize: str = "give data of another size") -> None:
    """That a U-Net of so many levels can halve each of the sides; `resize`: what else can be done, for the message.

    Raises:
      ValueError: one line, if it cannot.
    """
    factor, what = 2 ** (levels - 1), ("signal", "image", "volume")[min(len(sides), 3) - 1]
    for side in sides:
        if side % factor:
            size = "length" if len(sides) == 1 else f"{what} size"
            hint = "; signals are (n, T, C), channels last" if len(sides) == 1 else ""
            raise InputError(
                f"model.ch_mult: {levels} levels halve the {what} {levels - 1} times, so the {size} must be a "
                f"multiple of {factor}; got {side}: shorten ch_mult or {resize}{hint}"
            )


def over_space(v: jax.Array, x: jax.Array) -> jax.Array:
    """Values of each example, (B,) or (B, C), as they broadcast to x (B, *space, C)."""
    return v.reshape(v.shape[0], *(1,) * spatial_axes(x), -1)


def dense(features: int, *, name: str, dtype: Dtype, init_scale: float = 1.0) -> nn.Dense:
    return nn.Dense(features, kernel_init=ddpm_init(init_scale), dtype=dtype, name=name)


def nin(features: int, *, name: str, dtype: Dtype, init_scale: float = 0.1) -> nn.Dense:
    """'Network in network': a linear map of the channels at each pixel, DDPM's 1 x 1 convolution."""
    return dense(features, name=name, dtype=dtype, init_scale=init_scale)


def num_groups(channels: int, norm: str = "ncsnpp") -> int:
    """Groups of a GroupNorm: min(C // 4, 32) for NCSN++ and DDPM++, 32 for DDPM.

    Where that does not divide the channels (the official networks cannot be built then), the largest divisor below.
    """
    if norm == "ddpm" and channels % 32 == 0:
        return 32
    return max(g for g in range(1, max(1, min(channels // 4, 32)) + 1) if channels % g == 0)


class GroupNorm(nn.Module):
    """Normalises groups of neighbouring channels over all pixels, then scales and shifts each channel.

    The same as flax's, to rounding, at twice the speed on a CPU: sums over the pixels are taken channel by channel and
    put together afterwards, so that no loop runs over the few channels of a group. The variance is that of the
    differences from the mean; E[x^2] - E[x]^2 cancels in float32.

    Reference: Wu and He 2018, "Group normalization".
    """

    num_groups: int
    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return _normalise_groups(x, scale, bias, self.num_groups, self.epsilon).astype(self.dtype)


@functools.partial(jax.jit, static_argnums=(3, 4))  # traced once for each shape
def _normalise_groups(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float) -> jax.Array:
    batch, channels, pixels = x.shape[0], x.shape[-1], tuple(range(1, x.ndim - 1))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def mean_of_group(x: jax.Array) -> jax.Array:
        by_group = jnp.mean(x, axis=pixels).reshape(batch, groups, -1)
        mean = jnp.broadcast_to(jnp.mean(by_group, axis=-1, keepdims=True), by_group.shape)
        return over_space(mean.reshape(batch, channels), x)

    centred = x - mean_of_group(x)
    factor = jax.lax.rsqrt(mean_of_group(jnp.square(centred)) + epsilon)
    scale, bias = (over_space(v.astype(x.dtype)[None], x) for v in (scale, bias))
    return centred * (factor * scale) + bias


def group_norm(channels: int, *, name: str, dtype: Dtype, norm: str = "ncsnpp") -> GroupNorm:
    return GroupNorm(num_groups(channels, norm), dtype=dtype, name=name)


def timestep_embedding(
    t: Real[AnyArray, " batch"], dim: int, max_period: float = 10_000.0
) -> Float[jax.Array, "batch dim"]:
    """Sinusoidal embedding of DDPM: frequencies `max_period^(-j / (dim / 2 - 1))`, sines first.

    Args:
      t: (batch,), any scale; the networks of score-SDE are given 0..999, those of PSLD and CLD 0..1.
      dim: size of the embedding, at least 4; an odd one is padded with a zero.

    Returns:
      (batch, dim), float32 of whole numbers, else of the type of t.

    Raises:
      ValueError: dim below 4.

    Examples:
      >>> sgmjax.timestep_embedding(jnp.zeros(1), 6).tolist()  # sines, then cosines
      [[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]
    """
    half = dim // 2
    if half < 2:
        raise InputError(f"dim = {dim}: an embedding by sines and cosines has at least 4 numbers")
    t = jnp.asarray(t)
    t = t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.float32)
    frequencies = np.exp(-math.log(max_period) * np.arange(half) / (half - 1))
    angles = t[:, None] * jnp.asarray(frequencies, t.dtype)[None, :]
    out = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(out, ((0, 0), (0, dim % 2)))


def resize(x: jax.Array, how: str, fir_kernel: Sequence[float] | None) -> jax.Array:
    """`how` is 'up' (twice the side), 'down' (half the side) or 'none'; `fir_kernel` None resamples naively."""
    if how == "up":
        return fir_ops.naive_upsample_2d(x) if fir_kernel is None else fir_ops.upsample_2d(x, fir_kernel)
    if how == "down":
        return fir_ops.naive_downsample_2d(x) if fir_kernel is None else fir_ops.downsample_2d(x, fir_kernel)
    return x


class FourierEmbedding(nn.Module):
    """Random Fourier features of the noise level: `[sin, cos](2 pi W log(cond))`, W ~ N(0, scale^2) fixed.

    `log=False` takes cond itself, as LSGM does.

    W is drawn at initialisation, belongs to the network (a checkpoint without it is worthless), and is not trained: it
    is the parameter `frequencies`, behind a `stop_gradient`. Its gradient is exactly zero, so that Adam leaves it where
    it is; for optimisers that move parameters without a gradient (weight decay) there is
    `sgmjax.models.trainable_mask`. `sgmjax.models.count_parameters` does not count it.

    Reference: Tancik et al. 2020; Song et al. 2021, appendix H.1 (scale 16).
    """

    features: int
    scale: float = 16.0
    log: bool = True

    @nn.compact
    def __call__(self, cond: Cond) -> Float[jax.Array, "batch features"]:
        """(batch,) positive -> (batch, 2 * features)."""
        init = nn.initializers.normal(self.scale)
        frequencies = jax.lax.stop_gradient(self.param("frequencies", init, (self.features,)))
        turns = (jnp.log(cond) if self.log else cond)[:, None] * frequencies.astype(cond.dtype)[None, :]
        angles = 2 * math.pi * (turns - jnp.round(turns))  # whole turns go first: sin of a small angle is exact
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Combine(nn.Module):
    """Joins the input pyramid to the features: 1 x 1 convolution of the pyramid, then sum or concatenation."""

    method: str
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: jax.Array, h: jax.Array) -> jax.Array:
        pyramid = conv1x1(h.shape[-1], name="conv", dtype=self.dtype, axes=spatial_axes(h))(pyramid)
        return jnp.concatenate([pyramid, h], axis=-1) if self.method == "cat" else pyramid + h


class AttnBlock(nn.Module):
    """Single-head self-attention over pixels with a residual connection. (B, *space, C) -> same."""

    skip_rescale: bool = False
    init_scale: float = 0.0
    norm: str = "ncsnpp"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, c = x.shape[0], x.shape[-1]
        h = group_norm(c, name="norm", dtype=self.dtype, norm=self.norm)(x).reshape(b, -1, 1, c)
        q = nin(c, name="query", dtype=self.dtype)(h)
        k = nin(c, name="key", dtype=self.dtype)(h)
        v = nin(c, name="value", dtype=self.dtype)(h)
        h = jax.nn.dot_product_attention(q, k, v)  # one head; logits and softmax are float32 whatever the type
        h = nin(c, name="out", dtype=self.dtype, init_scale=self.init_scale)(h).reshape(x.shape)
        return (x + h) / SQRT2 if self.skip_rescale else x + h


class Upsample(nn.Module):
    """Doubles the side, with a 3 x 3 convolution or without, by FIR or by nearest neighbour."""

    features: int | None = None  # None: as many as the input has
    with_conv: bool = False
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features, axes = self.features or x.shape[-1], spatial_axes(x)
        if not self.with_conv:
            return resize(x, "up", self.fir_kernel if self.fir else None)
        if self.fir:
            x = fir_ops.filter_before_upsampled_conv(x, self.fir_kernel)
            return conv3x3(features, name="conv", dtype=self.dtype, padding=0, axes=axes)(x)
        return conv3x3(features, name="conv", dtype=self.dtype, axes=axes)(fir_ops.naive_upsample_2d(x))


class Downsample(nn.Module):
    """Halves the side, with a 3 x 3 convolution of stride 2 or without, by FIR or by 2 x 2 means.

    The strided convolution without FIR pads right and below only.
    """

    features: int | None = None
    with_conv: bool = False
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features, axes = self.features or x.shape[-1], spatial_axes(x)
        if not self.with_conv:
            return resize(x, "down", self.fir_kernel if self.fir else None)
        if self.fir:
            x = fir_ops.filter_before_strided_conv(x, self.fir_kernel)
            return conv3x3(features, name="conv", dtype=self.dtype, strides=2, padding=0, axes=axes)(x)
        return conv3x3(features, name="conv", dtype=self.dtype, strides=2, padding=(0, 1), axes=axes)(x)


class ResnetBlockDDPM(nn.Module):
    """Residual block of DDPM; DDPM++ rescales the sum by 1 / sqrt(2). x (B, *space, C), temb (B, E) or None."""

    features: int
    act: Callable[[jax.Array], jax.Array] = nn.swish
    dropout: float = 0.1
    skip_rescale: bool = False
    init_scale: float = 0.0
    norm: str = "ncsnpp"
    train: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None) -> jax.Array:
        h = self.act(group_norm(x.shape[-1], name="norm_0", dtype=self.dtype, norm=self.norm)(x))
        h = conv3x3(self.features, name="conv_0", dtype=self.dtype, axes=spatial_axes(h))(h)
        if temb is not None:
            h = h + over_space(dense(self.features, name="time_dense", dtype=self.dtype)(self.act(temb)), h)
        h = self.act(group_norm(self.features, name="norm_1", dtype=self.dtype, norm=self.norm)(h))
        h = nn.Dropout(self.dropout, deterministic=not self.train)(h)
        conv = conv3x3(self.features, name="conv_1", dtype=self.dtype, init_scale=self.init_scale, axes=spatial_axes(h))
        h = conv(h)
        if x.shape[-1] != self.features:
            x = nin(self.features, name="shortcut", dtype=self.dtype)(x)
        return (x + h) / SQRT2 if self.skip_rescale else x + h


class ResnetBlockBigGAN(nn.Module):
    """Residual block of BigGAN, which also resamples: both branches, after the first activation.

    x (B, *space, C), temb (B, E) or None -> (B, *space', features).
    """

    features: int
    act: Callable[[jax.Array], jax.Array] = nn.swish
    resample: str = "none"  # none | up | down
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    dropout: float = 0.1
    skip_rescale: bool = True
    init_scale: float = 0.0
    train: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None) -> jax.Array:
        h = self.act(group_norm(x.shape[-1], name="norm_0", dtype=self.dtype)(x))
        kernel = self.fir_kernel if self.fir else None
        h, x = resize(h, self.resample, kernel), resize(x, self.resample, kernel)
        h = conv3x3(self.features, name="conv_0", dtype=self.dtype, axes=spatial_axes(h))(h)
        if temb is not None:
            h = h + over_space(dense(self.features, name="time_dense", dtype=self.dtype)(self.act(temb)), h)
        h = self.act(group_norm(self.features, name="norm_1", dtype=self.dtype)(h))
        h = nn.Dropout(self.dropout, deterministic=not self.train)(h)
        conv = conv3x3(self.features, name="conv_1", dtype=self.dtype, init_scale=self.init_scale, axes=spatial_axes(h))
        h = conv(h)
        if x.shape[-1] != self.features or self.resample != "none":
            x = conv1x1(self.features, name="shortcut", dtype=self.dtype, axes=spatial_axes(x))(x)
        return (x + h) / SQRT2 if self.skip_rescale else x + h
