"""The kernel distance between two sets of features: KID.

The squared maximum mean discrepancy with the polynomial kernel `k(x, y) = (x.y / d + 1)^3`, estimated without bias, so
that it does not depend on the number of examples as a Frechet distance does, and may be a little negative. All
arithmetic is NumPy in float64.

Reference: Binkowski et al. 2018, "Demystifying MMD GANs", section 4. Published values are means over subsets (`kid`,
as torch-fidelity draws them) or over consecutive blocks (`kid_blocks`, as TF-GAN and with it score-SDE do).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sgmjax._inputs import InputError
from sgmjax.metrics.pairwise import two_sets


class KID(NamedTuple):
    """Mean over subsets or blocks, their standard deviation (of `kid`) or standard error (of `kid_blocks`), values."""

    mean: float
    spread: float
    values: np.ndarray


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of the squared discrepancy, from all pairs of different examples.

    Args:
        x: features `(n, d)`, n >= 2.
        y: features `(m, d)`, m >= 2.

    Raises:
        ValueError: for fewer than two vectors, other lengths, or numbers that are not finite.

    Examples:
        >>> metrics.kernel_distance(np.zeros((2, 1)), np.ones((2, 1)))  # (0 + 1)^3 + (1 + 1)^3 - 2 (0 + 1)^3
        7.0
    """
    x, y = (np.asarray(v, np.float64) for v in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InputError(f"expected features (n, d) and (m, d), n and m at least 2, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("the features hold NaN or infinities")

    def among(a: np.ndarray) -> float:
        kernel = (a @ a.T / a.shape[1] + 1.0) ** 3
        return float((kernel.sum() - np.trace(kernel)) / (len(a) * (len(a) - 1)))

    return among(x) + among(y) - 2.0 * float(np.mean((x @ y.T / x.shape[1] + 1.0) ** 3))


def kid(samples: Any, real: Any, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> KID:
    """The mean of `kernel_distance` over random subsets, drawn as torch-fidelity draws them.

    Args:
        samples: features `(n, d)`, an array or a set that is read in pieces (`num_examples`, `shape`, `read`);
            uint8 stand for [0, 1].
        real: features `(m, d)` of the same kind.
        num_subsets: pairs of subsets; within each no example comes twice.
        subset_size: examples of each, at most n and m.
        seed: of the subsets.

    Raises:
        ValueError: for subsets larger than a set, or as `kernel_distance`.

    Examples:
        >>> metrics.kid(np.zeros((5, 1)), np.ones((6, 1)), num_subsets=3, subset_size=4).mean  # as `kernel_distance`
        7.0
    """
    samples, real = two_sets(samples, real)
    least = min(samples.num, real.num)
    if not 2 <= subset_size <= least:
        raise InputError(f"subset_size = {subset_size}: must be from 2 to {least}, the examples of the smaller set")
    if num_subsets < 1:
        raise InputError(f"num_subsets must be at least 1, got {num_subsets}")
    random = np.random.RandomState(seed)  # torch-fidelity's generator, for its very subsets
    values = np.empty(num_subsets)
    for i in range(num_subsets):
        chosen = [random.choice(rows.num, subset_size, replace=False) for rows in (samples, real)]
        values[i] = kernel_distance(samples.numbers(chosen[0]), real.numbers(chosen[1]))
    return KID(float(values.mean()), float(values.std()), values)


def kid_blocks(samples: Any, real: Any, *, max_block_size: int = 1024) -> KID:
    """The mean of `kernel_distance` over consecutive blocks of the two sets, and its standard error.

    Args:
        samples, real: as `kid`.
        max_block_size: examples of a block of the larger set; both sets are cut into as many blocks.

    Raises:
        ValueError: as `kernel_distance`, for blocks of fewer than two examples too.

    Examples:
        >>> metrics.kid_blocks(np.zeros((6, 1)), np.ones((6, 1)), max_block_size=3).values.tolist()  # of two blocks
        [7.0, 7.0]
    """
    if max_block_size < 2:
        raise InputError(f"max_block_size must be at least 2, got {max_block_size}")
    samples, real = two_sets(samples, real)
    blocks = math.ceil(max(samples.num, real.num) / max_block_size)
    ends = [_block_ends(rows.num, blocks) for rows in (samples, real)]
    values = np.array(
        [
            kernel_distance(*(r.numbers(np.arange(e[i], e[i + 1])) for r, e in zip((samples, real), ends, strict=True)))
            for i in range(blocks)
        ]
    )
    error = float(np.sqrt(values.var(ddof=1) / blocks)) if blocks > 1 else math.nan
    return KID(float(values.mean()), error, values)


def _block_ends(num: int, blocks: int) -> np.ndarray:
    """Ends of consecutive blocks whose sizes differ by one at most, the smaller ones first."""
    small = blocks - num % blocks
    sizes = np.r_[np.full(small, num // blocks), np.full(blocks - small, num // blocks + 1)]
    return np.r_[0, np.cumsum(sizes)]
