"""Bits per dimension of discrete data: uniform dequantisation, and the units of the result.

A density p of real numbers becomes a code for integers v in {0, ..., levels - 1} by spreading every integer over a bin
of width one, P(v) = int_[0,1)^D p(v + u) du >= exp E_u log p(v + u): so the mean over u of the log density, in the
units of v, bounds log P(v) from below. Networks see y = (v + u) / levels, or 2 y - 1; a density over these is larger by
the factor levels, or levels / 2, for each dimension. Hence for 256 levels

    bits/dim = -log2 p(y) / D + 8     data in [0, 1]
    bits/dim = -log2 p(y) / D + 7     data in [-1, 1]

(score_sde writes the offset as 7 - inverse_scaler(-1): inverse_scaler(-1) is 0 for centred data, -1 for the others.)

Reference: Theis et al. 2016, sec. 3.1; Song et al. 2021, app. D.2.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Real

from sgmjax._types import AnyArray, DType, Key, Numbers, Samples
from sgmjax.data.base import DataError


def dequantize(
    key: Key, x: Real[AnyArray, " batch *event"], *, centered: bool, levels: int = 256, dtype: DType = jnp.float32
) -> Samples:
    """Integers with uniform noise, in the network's range: (x + u) / levels, u uniform on [0, 1).

    (Training sees `to_float`, whose bins are 256/255 as wide, so that the darkest level is -1 and the brightest 1;
    published likelihoods are those of these bins.)

    Args:
        key: typed PRNG key.
        x: (batch, *event) unsigned integers below `levels`.
        centered: whether the network's range is [-1, 1], else [0, 1].
        levels: number of levels.
        dtype: of the result.

    Returns:
        (batch, *event) in [-1, 1] or [0, 1].

    Raises:
        DataError: for data that are not integers.
    """
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise DataError(f"only integers are dequantised, got {x.dtype}: a density needs no noise")
    unit = (jnp.asarray(x, dtype) + jax.random.uniform(key, x.shape, dtype)) / levels
    return 2 * unit - 1 if centered else unit


def bits_per_dim(log_prob: Numbers, event_size: int, *, levels: int = 256, centered: bool = True) -> Numbers:
    """Bits per dimension of the integers from the log density of their dequantised form.

    Args:
        log_prob: nats, of whole examples in the network's range; any shape.
        event_size: D, numbers in an example.
        levels, centered: as `dequantize`.
    """
    return -log_prob / (event_size * math.log(2)) + math.log2(levels) - bool(centered)
