"""Resampling by a factor of two: FIR (anti-aliased) and naive, in plain XLA.

`upfirdn2d` (upsample, filter, downsample) is the one operation behind StyleGAN2's resampling: insert `up - 1` zeros
after each pixel, pad with zeros, convolve with the FIR kernel, keep every `down`-th pixel. The kernels are separable,
so each axis is a sum of a few shifted and strided slices, which XLA fuses on every backend, forward and backward.

All functions take and return `(batch, *space, C)`, act on every spatial axis (images have two, whence the names,
signals one, volumes three) and keep their dtype.

Reference: Karras et al. 2020 (StyleGAN2), appendix B; Zhang 2019; Song et al. 2021 (score-based SDEs), appendix H.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError


def normalized_kernel(kernel: Sequence[float], gain: float = 1.0) -> tuple[float, ...]:
    """One axis of the separable FIR filter, scaled so that its taps sum to `gain`."""
    taps = np.asarray(kernel, dtype=np.float64)
    if taps.ndim != 1 or taps.size < 2 or not np.isfinite(taps).all() or taps.sum() == 0:
        raise InputError(f"fir_kernel must be two or more numbers with a sum other than 0; got {tuple(kernel)}")
    return tuple(float(v) for v in taps * (gain / taps.sum()))


def _upfirdn1d(x: jax.Array, taps: Sequence[float], axis: int, up: int, down: int, pad: tuple[int, int]) -> jax.Array:
    zero = jnp.zeros((), x.dtype)
    padding = [(0, 0, 0)] * x.ndim
    # Zeros follow the last pixel too, hence the extra up - 1 at the end. Negative padding crops.
    padding[axis] = (pad[0], pad[1] + up - 1, up - 1)
    x = jax.lax.pad(x, zero, padding)
    length = (x.shape[axis] - len(taps)) // down + 1
    if length < 1:
        raise InputError(f"image of {x.shape[axis]} pixels after padding is smaller than the FIR kernel, {len(taps)}")
    out = None
    for i, tap in enumerate(reversed(taps)):  # reversed: a convolution, not a correlation
        term = jax.lax.slice_in_dim(x, i, i + (length - 1) * down + 1, down, axis=axis) * tap
        out = term if out is None else out + term
    assert out is not None
    return out


def upfirdn2d(
    x: jax.Array, taps: Sequence[float], *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> jax.Array:
    """Zero-insertion by `up`, padding, convolution with `outer(taps, taps)`, decimation by `down`.

    Args:
      x: (batch, *space, C).
      taps: the filter along each axis, used as given (see `normalized_kernel`).
      up, down: integer factors, at least 1.
      pad: zeros before and after, on every axis, after the zero-insertion; negative values crop.

    Returns:
      The same with sides `(H * up + sum(pad) - len(taps)) // down + 1`.
    """
    for axis in range(1, x.ndim - 1):
        x = _upfirdn1d(x, taps, axis, up, down, pad)
    return x


def upsample_2d(x: jax.Array, kernel: Sequence[float] = (1, 3, 3, 1)) -> jax.Array:
    """Doubles the side. A constant image stays constant away from the border (outside counts as zero)."""
    p = len(kernel) - 2
    return upfirdn2d(x, normalized_kernel(kernel, 2.0), up=2, pad=((p + 1) // 2 + 1, p // 2))


def downsample_2d(x: jax.Array, kernel: Sequence[float] = (1, 3, 3, 1)) -> jax.Array:
    """Halves the side after low-pass filtering."""
    p = len(kernel) - 2
    return upfirdn2d(x, normalized_kernel(kernel), down=2, pad=((p + 1) // 2, p // 2))


def filter_before_strided_conv(x: jax.Array, kernel: Sequence[float] = (1, 3, 3, 1), size: int = 3) -> jax.Array:
    """The filter of StyleGAN2's `conv_downsample_2d`; an unpadded `size` x `size` convolution of stride 2 follows."""
    p = len(kernel) - 2 + size - 1
    return upfirdn2d(x, normalized_kernel(kernel), pad=((p + 1) // 2, p // 2))


def filter_before_upsampled_conv(x: jax.Array, kernel: Sequence[float] = (1, 3, 3, 1), size: int = 3) -> jax.Array:
    """The filter of StyleGAN2's `upsample_conv_2d`; an unpadded `size` x `size` convolution of stride 1 follows.

    StyleGAN2 applies a transposed convolution and then the filter. Both are full convolutions of the zero-inserted
    image, so they commute exactly, borders included; filtering first leaves an ordinary convolution with a bias.
    """
    taps = normalized_kernel(kernel, 2.0)
    before = (len(taps) - 2 - (size - 1) + 1) // 2 + 1
    return upfirdn2d(x, taps, up=2, pad=(before + size - 1, len(taps) - 1 - before))


def naive_upsample_2d(x: jax.Array) -> jax.Array:
    """Doubles the side by repeating each pixel (nearest neighbour)."""
    space = x.shape[1:-1]
    x = x.reshape(x.shape[0], *(n for side in space for n in (side, 1)), x.shape[-1])
    x = jnp.broadcast_to(x, (x.shape[0], *(n for side in space for n in (side, 2)), x.shape[-1]))
    return x.reshape(x.shape[0], *(2 * side for side in space), x.shape[-1])


def naive_downsample_2d(x: jax.Array) -> jax.Array:
    """Halves the side by the mean of 2 x 2 pixels (of two steps, of 2 x 2 x 2)."""
    space = x.shape[1:-1]
    pairs = x.reshape(x.shape[0], *(n for side in space for n in (side // 2, 2)), x.shape[-1])
    return pairs.mean(axis=tuple(range(2, 2 * len(space) + 1, 2)))
