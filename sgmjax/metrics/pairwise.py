"""The largest distance between two examples of a data set: NCSNv2's first technique, sigma_1.

    largest_pair      the exact value, however large the set
    distance_bounds   a lower and an upper bound, in a few passes over the data

Both take an array, or a data set that is read piece by piece and never held as a whole.

The exact search is quadratic in what it cannot exclude. With r_i the distance of example i to the centre of the data,
|x_i - x_j| <= r_i + r_j: once a distant pair is known, found by going to the farthest point a few times, all pairs
with r_i + r_j below its distance are out, and natural images leave few others (`LargestPair.compared` says how many).
What is left goes through a matrix product, block by block on the accelerator, in float32 with |a|^2 + |b|^2 - 2 a.b
about the centre. Its rounding error has a strict bound, and every pair within that of the maximum is computed again
from differences in float64. So the result is the maximum, to rounding in float64.

Reference: Song & Ermon 2020, "Improved techniques for training score-based generative models", technique 1.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Real

from sgmjax._inputs import InputError, check_unmasked
from sgmjax._types import AnyArray

Progress = Callable[[str, int, int], None]  # (what is done, how much of it, of how much)


@dataclasses.dataclass(frozen=True)
class LargestPair:
    """The two examples farthest from each other.

    Attributes:
        distance: their Euclidean distance.
        indices: which two, the smaller index first.
        compared: share of all pairs whose distance was computed; the others were excluded.
    """

    distance: float
    indices: tuple[int, int]
    compared: float


@dataclasses.dataclass(frozen=True)
class DistanceBounds:
    """Between what the largest distance lies.

    Attributes:
        lower: the distance of two examples of the set, found by going to the farthest example a few times.
        upper: the sum of the two largest distances to the mean of the data, at most twice the radius.
        indices: the two examples of `lower`, the smaller index first.
    """

    lower: float
    upper: float
    indices: tuple[int, int]


class Vectors:
    """The examples of a set as vectors, read in pieces.

    Args:
        data: an array (n, ...), or a data set with `num_examples`, `shape` and `read` (see `sgmjax.data.Dataset`).
        centered: uint8 data stand for [-1, 1] if True, else for [0, 1].

    Attributes:
        num: how many.
        shape: of one example.
        size: numbers in it.
        unit: by which distances of the vectors are multiplied: their scale for uint8, 1 for all other types.
    """

    def __init__(self, data: Any, *, centered: bool = False):
        if isinstance(data, list | tuple):
            data = np.asarray(data)
        array = hasattr(data, "dtype")
        if not array and not all(hasattr(data, name) for name in ("num_examples", "shape", "read")):
            raise InputError(f"expected an array (n, ...) or a data set, got {type(data).__name__}")
        check_unmasked(data, "the data")
        self._data = data
        if array and not data.shape:
            raise InputError("expected an array (n, ...) or a data set, got a number")
        self.num = len(data) if array else data.num_examples
        self.shape = tuple(data.shape[1:] if array else data.shape)
        self.size = math.prod(self.shape)
        if self.num < 1 or self.size < 1:
            raise InputError("distances need examples, and the set has none")
        self.unit = (2.0 if centered else 1.0) / 255.0 if self.read(np.zeros(1, int)).dtype == np.uint8 else 1.0

    def read(self, indices: Int[np.ndarray, " n"]) -> Real[np.ndarray, "n size"]:
        """(len(indices), size), uint8 or float32.

        Raises:
            ValueError: for numbers that are not finite.
        """
        x = self._rows(indices)
        return x if x.dtype == np.uint8 else x.astype(np.float32)

    def numbers(self, indices: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n size"]:
        """(len(indices), size) float64, as the data have them; uint8 data are scaled.

        Raises:
            ValueError: for numbers that are not finite.
        """
        return self._rows(indices).astype(np.float64) * self.unit

    def _rows(self, indices: Int[np.ndarray, " n"]) -> Real[np.ndarray, "n size"]:
        x = self._data[indices] if hasattr(self._data, "dtype") else self._data.read(indices)["x"]
        x = np.asarray(x).reshape(len(indices), self.size)
        if x.dtype != np.uint8 and not np.isfinite(x).all():
            raise InputError("the data hold NaN or infinities")
        return x

    def blocks(self, block_size: int) -> Iterator[tuple[Int[np.ndarray, " n"], Real[np.ndarray, "n size"]]]:
        """Indices (block_size,) and examples in order; the last block repeats its first example to be as long."""
        for start in range(0, self.num, block_size):
            indices = fill(np.arange(start, min(start + block_size, self.num)), block_size)
            yield indices, self.read(indices)

    def exact(self, i: int, others: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Distances of example i to the examples `others`, (len(others),) float64, not yet multiplied by `unit`."""
        return distances(self.read(np.array([i])), self.read(others))


def two_sets(one: Any, other: Any, *, centered: bool = False) -> tuple[Vectors, Vectors]:
    """Two sets that are compared, as `Vectors`.

    Raises:
        ValueError: for vectors of unequal lengths, or bytes of images against other numbers.
    """
    a, b = Vectors(one, centered=centered), Vectors(other, centered=centered)
    if a.size != b.size:
        raise InputError(f"the two sets have dimensions {a.size} and {b.size}")
    if a.unit != b.unit:
        raise InputError("one set is uint8 and the other is not: convert both in one way, as by sgmjax.data.to_float")
    return a, b


def fill(indices: Int[np.ndarray, " n"], length: int) -> Int[np.ndarray, " length"]:
    """`indices` followed by repetitions of the first, so that all blocks have one shape."""
    return np.concatenate([indices, np.repeat(indices[:1], length - len(indices))])


def distances(one: Real[np.ndarray, "one d"], many: Real[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Euclidean distances of one vector (1, d) or of many (m, d) to the rows of `many` (m, d), float64."""
    difference = many.astype(np.float64) - one.astype(np.float64)
    return np.sqrt(np.einsum("nd,nd->n", difference, difference))


def rounding_bound(size: int) -> float:
    """Relative error of a float32 sum of `size` products or squares in any order, four times over.

    A sum of n terms is off by less than n u / (1 - n u) times the sum of their absolute values, u = 2^-24 (Higham 2002,
    section 3.1); four times that also holds for the accelerators' emulations of float32 products.
    """
    return 4 * (size + 8) * 2.0**-24


def largest_pair(
    data: Any,
    *,
    centered: bool = False,
    block_size: int = 4096,
    prune: bool = True,
    progress: Progress | None = None,
) -> LargestPair:
    """The largest Euclidean distance between two examples, exactly.

    Args:
        data: an array (n, ...), n >= 2, or a data set with `num_examples`, `shape` and `read`, of which two blocks at a
            time are in memory.
        centered: uint8 data are scaled to [-1, 1] if True, to [0, 1] if not. Other types are taken as they are, as
            float32.
        block_size: examples in a block; what is compared at once is block_size^2 pairs.
        prune: exclude pairs by their distances to the centre; if False all are compared, for the same result.
        progress: called as progress("pairs", done, total), in pairs of blocks, and before that with "centre", "radius"
            and "sweep" in examples.

    Returns:
        The pair; of several equally distant pairs any.

    Raises:
        ValueError: for fewer than two examples, or data that are not finite.

    Examples:
        >>> pair = metrics.largest_pair(np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]))
        >>> pair.distance, pair.indices
        (5.0, (0, 1))
    """
    vectors, block_size, say = _prepare(data, centered, block_size, progress)
    centre, radii = _radii(vectors, block_size, say)
    slack = rounding_bound(vectors.size)
    best, _ = _sweep(vectors, int(np.argmax(radii)), block_size, sweeps=4, say=say)

    reach = radii * (1 + slack)
    order = np.argsort(-reach, kind="stable")
    if prune:
        order = order[reach[order] + reach.max() >= best]
    starts = range(0, len(order), block_size)
    total, done, compared = len(starts) * (len(starts) + 1) // 2, 0, 0
    close: list[tuple[float, int, np.ndarray]] = []  # (upper bound, example, the block it was compared with)
    for first in starts:
        mine = fill(np.sort(order[first : first + block_size]), block_size)
        a = None
        for second in starts[first // block_size :]:
            done += 1
            farthest = reach[order[first]] + reach[order[second]]
            if prune and farthest < best:
                continue
            theirs = fill(np.sort(order[second : second + block_size]), block_size)
            a = jnp.asarray(vectors.read(mine)) if a is None else a
            b = a if first == second else jnp.asarray(vectors.read(theirs))
            largest = np.asarray(_largest_in_rows(a, b, centre), np.float64)
            error = slack * farthest**2
            best = max(best, math.sqrt(max(largest.max() - error, 0.0)))
            for row in np.flatnonzero(largest + error >= best**2):
                close.append((float(largest[row] + error), int(mine[row]), theirs))
            close = [entry for entry in close if entry[0] >= best**2]
            compared += _pairs(len(order), first, second, block_size)
            say("pairs", done, total)
    say("pairs", total, total)

    # `best` was so far a lower bound in float32; now every pair that may reach it, in float64, in the data's units.
    exact, pair = 0.0, (0, 1)
    for bound, i, others in sorted(close, key=lambda entry: -entry[0]):
        if math.sqrt(bound) < exact:
            break
        found = vectors.exact(i, others)
        j = int(np.argmax(found))
        if found[j] > exact:
            exact, pair = float(found[j]), (i, int(others[j]))
    return LargestPair(exact * vectors.unit, _ordered(pair), compared / (vectors.num * (vectors.num - 1) / 2))


def distance_bounds(
    data: Any,
    *,
    centered: bool = False,
    block_size: int = 4096,
    sweeps: int = 4,
    progress: Progress | None = None,
) -> DistanceBounds:
    """A lower and an upper bound of the largest distance, in `sweeps` + 2 passes over the data.

    Args:
        data, centered, block_size: as for `largest_pair`; one block at a time is in memory.
        sweeps: how often to go to the farthest example, from the one farthest from the mean; it stops earlier where
            the way leads back.
        progress: called as progress(what, done, total) in examples.

    Raises:
        ValueError: for fewer than two examples, or data that are not finite.

    Examples:
        >>> bounds = metrics.distance_bounds(np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]))
        >>> bounds.lower, bounds.upper >= 5.0, bounds.indices
        (5.0, True, (0, 1))
    """
    if sweeps < 1:
        raise InputError(f"sweeps must be at least 1, got {sweeps}")
    vectors, block_size, say = _prepare(data, centered, block_size, progress)
    _, radii = _radii(vectors, block_size, say)
    lower, pair = _sweep(vectors, int(np.argmax(radii)), block_size, sweeps=sweeps, say=say)
    upper = float(np.sum(np.partition(radii, -2)[-2:])) * (1 + rounding_bound(vectors.size))
    return DistanceBounds(lower * vectors.unit, upper * vectors.unit, _ordered(pair))


def _prepare(data: Any, centered: bool, block_size: int, progress: Progress | None):
    vectors = Vectors(data, centered=centered)
    if vectors.num < 2:
        raise InputError("the largest distance needs at least two examples, and the set has one")
    if block_size < 1:
        raise InputError(f"block_size must be at least 1, got {block_size}")
    return vectors, min(block_size, vectors.num), progress or (lambda what, done, total: None)


def _radii(vectors: Vectors, block_size: int, say: Progress) -> tuple[jax.Array, np.ndarray]:
    """The mean of the data in float32, (size,), and the distances of all examples to exactly that, (num,)."""
    total = np.zeros(vectors.size)
    for indices, x in vectors.blocks(block_size):
        kept = len(np.unique(indices))
        total += np.asarray(_sum(jnp.asarray(x), kept), np.float64)
        say("centre", int(indices[kept - 1]) + 1, vectors.num)
    centre = jnp.asarray(total / vectors.num, jnp.float32)
    return centre, _distances_to(vectors, centre, block_size, functools.partial(say, "radius"))


def _sweep(vectors: Vectors, start: int, block_size: int, *, sweeps: int, say: Progress) -> tuple[float, Any]:
    """The best distance met, in the vectors' units, when going to the farthest example again and again."""
    best, pair = 0.0, (0, 1)
    for _ in range(sweeps):
        origin = jnp.asarray(vectors.read(np.array([start]))[0], jnp.float32)
        far = int(np.argmax(_distances_to(vectors, origin, block_size, functools.partial(say, "sweep"))))
        distance = float(vectors.exact(start, np.array([far]))[0])
        if distance <= best:
            break
        best, pair, start = distance, (start, far), far
    return best, pair


def _distances_to(vectors: Vectors, point: jax.Array, block_size: int, say: Callable[[int, int], None]) -> np.ndarray:
    out = np.zeros(vectors.num)
    for indices, x in vectors.blocks(block_size):
        out[indices] = np.asarray(_block_distances(jnp.asarray(x), point))
        say(int(indices.max()) + 1, vectors.num)
    return out


def _pairs(num: int, first: int, second: int, block_size: int) -> int:
    """Different pairs of examples between two blocks."""
    sizes = [min(num - start, block_size) for start in (first, second)]
    return sizes[0] * (sizes[0] - 1) // 2 if first == second else sizes[0] * sizes[1]


def _ordered(pair: tuple[int, int]) -> tuple[int, int]:
    return min(pair), max(pair)


@jax.jit
def _sum(x, kept):
    inside = jnp.arange(x.shape[0])[:, None] < kept
    return jnp.sum(jnp.where(inside, x.astype(jnp.float32), 0.0), axis=0)


@jax.jit
def _block_distances(x, point):
    return jnp.sqrt(jnp.sum((x.astype(jnp.float32) - point[None, :]) ** 2, axis=-1))


@jax.jit
def _largest_in_rows(a, b, centre):
    """For each row of a, the largest squared distance to a row of b, (len(a),) float32."""
    return jnp.max(squared_distances(a, b, centre), axis=1)


def squared_distances(
    a: Real[AnyArray, "n d"], b: Real[AnyArray, "m d"], centre: Real[AnyArray, " d"]
) -> Float[jax.Array, "n m"]:
    """|a|^2 + |b|^2 - 2 a.b about `centre`, (len(a), len(b)) float32; off by `rounding_bound` (|a| + |b|)^2 at most."""
    a, b = (x.astype(jnp.float32) - centre[None, :] for x in (a, b))
    product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(a**2, axis=-1)[:, None] + jnp.sum(b**2, axis=-1)[None, :] - 2.0 * product
