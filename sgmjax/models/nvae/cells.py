"""Building blocks of NVAE: weight-normalised convolutions, batch norm with its running statistics, residual cells.

Channels last. Parameters and running statistics are float32; `dtype` is the type of the convolutions, while norms,
means over the batch and the squeeze-and-excitation gates are computed in float32 in any case.

Batch statistics are means over the whole array. Under `jit` with arrays that are sharded over devices these are means
over the global batch, so that batch norm is synchronised without any code for it.

Reference: Vahdat & Kautz 2020 (NVAE), section 3; Vahdat, Kreis & Kautz 2021 (LSGM), appendix on network design.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sgmjax._types import AnyArray
from sgmjax.models.convolution import convolve
from sgmjax.models.layers import torch_default_init

BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.05  # weight of the new batch, as in PyTorch; Flax counts the other way round
RESIDUAL_SCALE = 0.1
CELLS = ("res_bnswish", "res_bnswish2", "res_mbconv")


def wide(dtype: Any) -> Any:
    """float32, or float64 if that was asked for: type of what must not be rounded to bfloat16."""
    return jnp.promote_types(dtype, jnp.float32)


def normalize_kernel(kernel: AnyArray, log_norm: AnyArray, mask: np.ndarray | None = None) -> jax.Array:
    """Weight normalisation: `exp(log_norm) * w / (|w| + 1e-5)` for the weights w of each output channel.

    Args:
      kernel: (..., height, width, in, out).
      log_norm: (..., out).
      mask: zeros and ones like the kernel's last four axes, applied first.
    """
    if mask is not None:
        kernel = kernel * jnp.asarray(mask, kernel.dtype).reshape((1,) * (kernel.ndim - 4) + mask.shape)
    norm = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(-4, -3, -2), keepdims=True))
    return jnp.exp(log_norm)[..., None, None, None, :] * kernel / (norm + 1e-5)


class Conv(nn.Module):
    """2-D convolution with weight normalisation, zero padding of `kernel_size // 2` on each side.

    The mask is a constant, not a parameter. The length of each output channel's weights is a parameter of its own,
    initialised to that of the freshly drawn weights times `init_scale`.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    groups: int = 1
    use_bias: bool = True
    weight_norm: bool = True
    mask: Any = None
    init_scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, fan_in = self.kernel_size, self.kernel_size**2 * x.shape[-1] // self.groups
        kernel = self.param("kernel", torch_default_init(), (k, k, x.shape[-1] // self.groups, self.features))
        if self.weight_norm:

            def init_log_norm(_: jax.Array) -> jax.Array:
                masked = kernel if self.mask is None else kernel * self.mask
                return jnp.log(jnp.sqrt(jnp.sum(jnp.square(masked), axis=(0, 1, 2))) + 1e-2) + math.log(self.init_scale)

            log_norm = self.param("log_weight_norm", init_log_norm)
            kernel = normalize_kernel(kernel, log_norm, self.mask)
        out = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.strides, self.strides),
            ((k // 2, k // 2), (k // 2, k // 2)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", torch_default_init(fan_in), (self.features,))
            out = out + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return out


class BatchNorm(nn.Module):
    """Batch norm with PyTorch's conventions, then optionally swish.

    Training uses the batch's mean and biased variance, and moves the running ones (collection `batch_stats`) by 5%
    towards the batch's mean and *unbiased* variance; evaluation uses the running ones.
    """

    train: bool
    swish: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        y = x.astype(wide(self.dtype))
        if self.train:
            # Two passes: E[y^2] - E[y]^2 cancels in float32.
            mean = jnp.mean(y, axis=(0, 1, 2))
            var = jnp.mean(jnp.square(y - mean.reshape(1, 1, 1, -1)), axis=(0, 1, 2))
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    moved = running.value + BATCH_NORM_MOMENTUM * (new - running.value)
                    running.value = moved.astype(running.value.dtype)
        else:
            mean, var = running_mean.value, running_var.value
        gain = scale * jax.lax.rsqrt(var + BATCH_NORM_EPS)
        y = (y - mean.reshape(1, 1, 1, -1)) * gain.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)
        return (nn.swish(y) if self.swish else y).astype(self.dtype)


class SqueezeExcite(nn.Module):
    """Channels scaled by gates in (0, 1) that see the image's mean, with a hidden layer of C / 16 (at least 4)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        hidden, dtype = max(channels // 16, 4), wide(self.dtype)

        def dense(features: int, name: str, h: jax.Array) -> jax.Array:
            bias_init = torch_default_init(h.shape[-1])
            return nn.Dense(features, kernel_init=torch_default_init(), bias_init=bias_init, dtype=dtype, name=name)(h)

        h = jnp.mean(x.astype(dtype), axis=(1, 2))
        gate = nn.sigmoid(dense(channels, "dense_1", nn.relu(dense(hidden, "dense_0", h))))
        return x * gate.astype(x.dtype)[:, None, None, :]


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Doubles the side, each pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _align_corners_matrix(size: int) -> np.ndarray:
    """(2 size, size): row i interpolates linearly at position i (size - 1) / (2 size - 1)."""
    position = np.arange(2 * size) * (size - 1) / (2 * size - 1)
    low = np.minimum(np.floor(position).astype(int), max(size - 2, 0))
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((2 * size, size))
    np.add.at(matrix, (np.arange(2 * size), low), 1.0 - (position - low))
    np.add.at(matrix, (np.arange(2 * size), high), position - low)
    return matrix


def upsample_bilinear(x: jax.Array) -> jax.Array:
    """Doubles the side bilinearly, corner pixels kept in the corners ("align_corners")."""
    rows, columns = (jnp.asarray(_align_corners_matrix(n), x.dtype) for n in x.shape[1:3])
    exact = jax.lax.Precision.HIGHEST  # interpolation weights are not to be rounded
    x = jnp.einsum("ph,bhwc->bpwc", rows, x, precision=exact)
    return jnp.einsum("qw,bpwc->bpqc", columns, x, precision=exact)


class BNSwishConv(nn.Module):
    """Batch norm, swish, 3 x 3 convolution; `resample` is none, down (stride 2) or up (nearest, before the conv)."""

    features: int
    train: bool
    resample: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = BatchNorm(self.train, swish=True, dtype=self.dtype, name="norm")(x)
        x = upsample_nearest(x) if self.resample == "up" else x
        strides = 2 if self.resample == "down" else 1
        return Conv(self.features, strides=strides, dtype=self.dtype, name="conv")(x)


class BNSwishConvTwice(nn.Module):
    """The pair of convolutions of `res_bnswish2`, of which only the second is weight-normalised and has a bias."""

    features: int
    train: bool
    resample: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = BatchNorm(self.train, swish=True, dtype=self.dtype, name="norm_0")(x)
        x = upsample_nearest(x) if self.resample == "up" else x
        strides = 2 if self.resample == "down" else 1
        plain: dict[str, Any] = {"use_bias": False, "weight_norm": False}
        x = Conv(self.features, strides=strides, dtype=self.dtype, name="conv_0", **plain)(x)
        x = BatchNorm(self.train, swish=True, dtype=self.dtype, name="norm_1")(x)
        return Conv(self.features, dtype=self.dtype, name="conv_1")(x)


class InvertedResidual(nn.Module):
    """MobileNetV2's branch: expand the channels, 5 x 5 convolution of each channel by itself, contract them."""

    features: int
    expansion: int
    train: bool
    resample: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = x.shape[-1] * self.expansion
        plain: dict[str, Any] = {"use_bias": False, "weight_norm": False, "dtype": self.dtype}
        strides = 2 if self.resample == "down" else 1

        def norm(name: str, swish: bool, h: jax.Array) -> jax.Array:
            return BatchNorm(self.train, swish=swish, dtype=self.dtype, name=name)(h)

        x = upsample_nearest(x) if self.resample == "up" else x
        x = norm("norm_in", False, x)
        x = norm("expand_norm", True, Conv(hidden, 1, name="expand", **plain)(x))
        x = Conv(hidden, 5, strides=strides, groups=hidden, name="depthwise", **plain)(x)
        x = norm("depthwise_norm", True, x)
        x = Conv(self.features, 1, name="contract", **plain)(x)
        return norm("norm_out", False, x)


class FactorizedReduce(nn.Module):
    """Shortcut that halves the side: each of the four pixels of a 2 x 2 block makes a quarter of the channels."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.swish(x)
        quarter = self.features // 4
        parts = []
        for i, (row, column) in enumerate(((0, 0), (1, 1), (0, 1), (1, 0))):
            features = quarter if i < 3 else self.features - 3 * quarter
            conv = Conv(features, 1, dtype=self.dtype, name=f"conv_{i}")
            parts.append(conv(x[:, row::2, column::2]))
        return jnp.concatenate(parts, axis=-1)


class Cell(nn.Module):
    """Residual cell: `shortcut(x) + 0.1 * squeeze_excite(branch(x))`.

    Fields:
      features: channels of the output.
      branch: `res_bnswish` (two BN-swish-convolutions), `res_bnswish2`, or `mbconv3`, `mbconv6` (inverted residual of
        that expansion).
      resample: none, down or up.
    """

    features: int
    branch: str
    train: bool
    resample: str = "none"
    squeeze_excite: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        common = {"train": self.train, "dtype": self.dtype}
        x = x.astype(self.dtype)
        if self.branch == "res_bnswish":
            h = BNSwishConv(self.features, resample=self.resample, name="branch_0", **common)(x)
            h = BNSwishConv(self.features, name="branch_1", **common)(h)
        elif self.branch == "res_bnswish2":
            h = BNSwishConvTwice(self.features, resample=self.resample, name="branch_0", **common)(x)
        else:
            expansion = int(self.branch.removeprefix("mbconv"))
            h = InvertedResidual(self.features, expansion, resample=self.resample, name="branch_0", **common)(x)
        if self.squeeze_excite:
            h = SqueezeExcite(dtype=self.dtype, name="squeeze_excite")(h)
        if self.resample == "down":
            x = FactorizedReduce(self.features, dtype=self.dtype, name="shortcut")(x)
        elif self.resample == "up":
            conv = Conv(self.features, 1, use_bias=False, dtype=self.dtype, name="shortcut")
            x = conv(upsample_bilinear(x))
        return x + RESIDUAL_SCALE * h
