"""The sliced 2-Wasserstein distance between two sets of vectors, and with it the Monge Inception distance (MIND)."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Real

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray
from sgmjax.metrics.pairwise import Vectors, two_sets


def wasserstein_1d(x: Real[AnyArray, " n ..."], y: Real[AnyArray, " m ..."]) -> Float[np.ndarray, " ..."] | np.float64:
    """The 2-Wasserstein distance of empirical laws on the line, exact for sets of any two sizes.

    It is the L2 distance of the two quantile functions, which are step functions.

    Args:
        x: `(n, ...)`, one problem a column.
        y: `(m, ...)`, the same trailing shape.

    Returns:
        Distances of the trailing shape, float64.
    """
    x = np.sort(np.asarray(x, np.float64), axis=0)
    y = np.sort(np.asarray(y, np.float64), axis=0)
    if x.ndim < 1 or x.shape[1:] != y.shape[1:]:
        raise InputError(f"expected (n, ...) and (m, ...) with the same columns, got {x.shape} and {y.shape}")
    n, m = len(x), len(y)
    if n == 0 or m == 0:
        raise InputError("the distance of an empty set is not defined")
    if n == m:
        return np.sqrt(np.mean((x - y) ** 2, axis=0))
    # The steps end at i/n and j/m; in units of 1/(n m) these are whole numbers, so that equal ends are equal.
    ends = np.union1d(np.arange(1, n + 1, dtype=np.int64) * m, np.arange(1, m + 1, dtype=np.int64) * n)
    weights = np.diff(ends, prepend=0) / (n * m)
    gaps = x[(ends - 1) // m] - y[(ends - 1) // n]
    return np.sqrt(np.tensordot(weights, gaps**2, axes=1))


def directions(dim: int, num: int, *, seed: int = 0) -> Float[np.ndarray, "num dim"]:
    """Unit vectors `(num, dim)` to project on.

    In one dimension there is one direction; in two they are equally spaced over the half circle, which makes the
    average over angles exact up to the resolution; in more they are uniform on the sphere, from `default_rng(seed)`.
    """
    if dim == 1:
        return np.ones((1, 1))
    if dim == 2:
        angle = np.pi * (np.arange(num) + 0.5) / num
        return np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    normal = np.random.default_rng(seed).standard_normal((num, dim))
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def sliced_wasserstein(
    x: Real[AnyArray, " n ..."], y: Real[AnyArray, " m ..."], *, num_directions: int = 128, seed: int = 0
) -> float:
    """The sliced 2-Wasserstein distance, `sqrt(E_u W2(<u, x>, <u, y>)^2)` over directions u on the sphere.

    For laws that differ by a translation v it is `|v| / sqrt(d)`. Same seed, same directions.

    Args:
        x: `(n, ...)` vectors, flattened from the second axis on.
        y: `(m, ...)` vectors of the same length.
        num_directions: projections to average over.
        seed: of the directions, in three dimensions and more.

    Reference: Bonneel et al. 2015, definition 4 (its square is the average of the squares).

    Examples:
        >>> x = np.zeros((3, 2))
        >>> round(metrics.sliced_wasserstein(x, x + np.array([[1.0, 1.0]])), 3)  # |v| / sqrt(2)
        1.0
    """
    x, y = (np.asarray(v, np.float64).reshape(len(v), int(np.prod(np.shape(v)[1:]))) for v in (x, y))
    if x.shape[1] != y.shape[1]:
        raise InputError(f"the two sets have dimensions {x.shape[1]} and {y.shape[1]}")
    if num_directions < 1:
        raise InputError(f"num_directions must be at least 1, got {num_directions}")
    u = directions(x.shape[1], num_directions, seed=seed)
    return float(np.sqrt(np.mean(wasserstein_1d(x @ u.T, y @ u.T) ** 2)))


def monge_inception_distance(
    samples: Any, real: Any, *, num_directions: int = 1000, seed: int = 0, block_size: int = 4096
) -> float:
    """MIND: `3 d E_u W2(<u, x>, <u, y>)^2` over directions u on the sphere, of features of d numbers.

    Like the Frechet distance a squared distance, but one that sees more than two moments. For laws that differ by a
    translation v it is `3 |v|^2`. With N examples of the same law its value is of the order of 1 / N.

    Args:
        samples: features `(n, d)`, an array or a set that is read in pieces (`num_examples`, `shape`, `read`).
        real: features `(m, d)` of the same kind; published with n = m = 5,000.
        num_directions: projections to average over; published: 1,000.
        seed: of the directions.
        block_size: examples read at once.

    Raises:
        ValueError: for other lengths, or features that are not finite.

    Reference: Berthet et al. 2026, "MIND: Monge Inception distance for generative models evaluation".

    Examples:
        >>> real = np.zeros((3, 2))
        >>> round(metrics.monge_inception_distance(real + np.array([[3.0, 4.0]]), real), 3)  # 3 |v|^2
        75.0
    """
    samples, real = two_sets(samples, real)
    if block_size < 1:
        raise InputError(f"block_size must be at least 1, got {block_size}")
    if num_directions < 1:
        raise InputError(f"num_directions must be at least 1, got {num_directions}")
    u = directions(real.size, num_directions, seed=seed)
    total, step = 0.0, 128  # directions at a time, so that memory does not grow with their number
    for first in range(0, len(u), step):
        mine = u[first : first + step].T
        x, y = (_projections(vectors, mine, block_size) for vectors in (samples, real))
        total += float(np.sum(wasserstein_1d(x, y) ** 2))
    return 3.0 * real.size * total / len(u)


def _projections(vectors: Vectors, directions: np.ndarray, block_size: int) -> np.ndarray:
    """(num, directions) float64."""
    out = np.empty((vectors.num, directions.shape[1]))
    for start in range(0, vectors.num, block_size):
        mine = np.arange(start, min(start + block_size, vectors.num))
        out[mine] = vectors.numbers(mine) @ directions
    return out
