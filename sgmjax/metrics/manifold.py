"""Precision and recall, density and coverage: are samples like data, and do they reach all of them?

Each set is surrounded by balls, one about each example, as large as the distance to its k-th nearest neighbour in its
own set. Precision is the share of the samples inside a ball of the data, recall the share of the data inside a ball of
the samples. Density counts in how many balls of the data a sample is, coverage how many balls of the data hold a
sample: outliers among the data, whose balls are large, count for less.

Distances are decided in float32 by matrix products on the accelerator where its rounding leaves no doubt, and in
float64 where it does.

Reference: Kynkaanniemi et al. 2019, "Improved precision and recall metric", section 2; Naeem et al. 2020, "Reliable
fidelity and diversity metrics", section 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax.metrics.neighbours import nearest
from sgmjax.metrics.pairwise import Vectors, distances, fill, rounding_bound, squared_distances, two_sets


class PrecisionRecall(NamedTuple):
    """Two shares, 0 ... 1."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density, about 1 for the data's own law and unbounded, and coverage, 0 ... 1."""

    density: float
    coverage: float


def radii(vectors: Any, k: int, *, block_size: int = 4096) -> np.ndarray:
    """The distance of each example to its k-th nearest neighbour in the set, itself not counted, (n,) float64."""
    num = Vectors(vectors).num
    if not 1 <= k < num:
        raise InputError(f"k = {k}: must be from 1 to one less than the {num} examples of a set")
    return nearest(vectors, vectors, k + 1, block_size=block_size).distances[:, k]


def precision_recall(
    samples: Any, real: Any, *, k: int = 3, block_size: int = 4096, real_radii: np.ndarray | None = None
) -> PrecisionRecall:
    """Precision and recall.

    Args:
        samples: features `(n, d)`, an array or a set that is read in pieces (`num_examples`, `shape`, `read`).
        real: features `(m, d)` of the same kind.
        k: neighbours; published: 3.
        block_size: examples of each set compared at once.
        real_radii: `radii(real, k)`, if they are known already.

    Raises:
        ValueError: for k out of range, other lengths, or features that are not finite.

    Examples:
        >>> real, samples = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([[0.25], [0.75]])
        >>> metrics.precision_recall(samples, real, k=1)  # right, but of half of the data only
        PrecisionRecall(precision=1.0, recall=0.5)
    """
    sizes = radii(real, k, block_size=block_size) if real_radii is None else real_radii
    inside_real = balls_around(samples, real, sizes, block_size=block_size)
    inside_samples = balls_around(real, samples, radii(samples, k, block_size=block_size), block_size=block_size)
    return PrecisionRecall(float(np.mean(inside_real > 0)), float(np.mean(inside_samples > 0)))


def density_coverage(
    samples: Any, real: Any, *, k: int = 5, block_size: int = 4096, real_radii: np.ndarray | None = None
) -> DensityCoverage:
    """Density and coverage; arguments and errors as `precision_recall`, published with k = 5.

    Examples:
        >>> real, samples = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([[0.25], [0.75]])
        >>> metrics.density_coverage(samples, real, k=1)  # each sample is in two balls of radius 1, two are empty
        DensityCoverage(density=2.0, coverage=0.5)
    """
    sizes = radii(real, k, block_size=block_size) if real_radii is None else real_radii
    density = float(np.mean(balls_around(samples, real, sizes, block_size=block_size)) / k)
    far = nearest(real, samples, block_size=block_size).distances[:, 0]
    return DensityCoverage(density, float(np.mean(far <= sizes)))


def balls_around(points: Any, centres: Any, sizes: np.ndarray, *, block_size: int = 4096) -> np.ndarray:
    """In how many balls each point lies, (n,) int64; a point on the boundary is inside.

    Args:
        points: `(n, d)`, an array or a set that is read in pieces.
        centres: `(m, d)` of the same kind.
        sizes: `(m,)` radii of the balls about the centres, as `radii` gives them.
        block_size: examples of each set compared at once.
    """
    points, centres = two_sets(points, centres)
    if np.shape(sizes) != (centres.num,):
        raise InputError(f"radii: have shape {np.shape(sizes)}, expected ({centres.num},), one for each centre")
    sizes = np.asarray(sizes) / centres.unit  # as the vectors are read
    rows, columns = min(block_size, points.num), min(block_size, centres.num)
    counts = np.zeros(points.num, np.int64)
    for start in range(0, points.num, rows):
        mine = np.arange(start, min(start + rows, points.num))
        x = points.read(mine)
        padded = jnp.asarray(x[fill(np.arange(len(mine)), rows)])
        origin = jnp.mean(padded, axis=0)
        for first in range(0, centres.num, columns):
            theirs = np.arange(first, min(first + columns, centres.num))
            filled = fill(np.arange(len(theirs)), columns)
            y = centres.read(theirs)
            radius = jnp.asarray(sizes[theirs][filled], jnp.float32)
            sure, doubtful = _inside(padded, jnp.asarray(y[filled]), origin, radius, len(theirs))
            counts[mine] += np.asarray(sure)[: len(mine)]
            doubtful = np.argwhere(np.asarray(doubtful)[: len(mine)])
            for part in np.array_split(doubtful, -(-len(doubtful) // 2**16) or 1):
                i, j = part.T
                inside = distances(x[i], y[j]) <= sizes[theirs[j]]
                np.add.at(counts, mine[i], inside)
    return counts


@jax.jit
def _inside(x, y, origin, radius, valid):
    """In how many balls each row of x lies surely, (n,), and of which balls float32 leaves it open, (n, m) bool."""
    squared = squared_distances(x, y, origin)
    reach = [jnp.sqrt(jnp.sum((z - origin[None, :]) ** 2, axis=-1)) for z in (x, y)]
    # Twice the bound of the products: that of the radii, rounded to float32 and squared, is far smaller.
    error = 2 * rounding_bound(x.shape[1]) * (reach[0][:, None] + reach[1][None, :] + radius[None, :]) ** 2
    margin = radius[None, :] ** 2 - squared
    there = (jnp.arange(y.shape[0]) < valid)[None, :]
    sure = jnp.sum((margin > error) & there, axis=1)
    return sure, (jnp.abs(margin) <= error) & there
