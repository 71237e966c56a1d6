"""Nearest neighbours of samples in the training set, and whether a model has memorised it.

A small distance to the training set says nothing by itself: held-out data are near to it too, and blurred or empty
images are nearer still. So distances of samples are read against the distances of held-out data to the same set
(`memorisation`). A model that copies has samples that are nearer than nearly all held-out data; such samples should be
looked at (`picture_rows`).

Distances are Euclidean and in pixels, which finds copies but not what was copied shifted or recoloured.

Reference: Song & Ermon 2020 (NCSNv2), appendix C.5, which shows such neighbours; Meehan et al. 2020, "A non-parametric
test to detect data-copying in generative models", for the comparison with held-out data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Real, UInt8

from sgmjax._inputs import InputError, check_numbers
from sgmjax._types import AnyArray
from sgmjax.metrics.pairwise import Vectors, distances, fill, rounding_bound, squared_distances, two_sets

SPARE = 8  # candidates kept beyond k, so that rounding in float32 rarely leaves a doubt


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The k nearest examples of each query, the nearest first.

    Attributes:
        distances: (queries, k) float64.
        indices: (queries, k) int64, into the data.
    """

    distances: np.ndarray
    indices: np.ndarray


@dataclasses.dataclass(frozen=True)
class Memorisation:
    """Distances of samples to the nearest training example, against those of held-out data.

    Attributes:
        sample_median: median over the samples.
        held_out_median: median over the held-out data.
        median_ratio: of the two; about 1 for a model as far from the training set as held-out data are, 0 for copies.
        threshold: the 1st percentile of the held-out distances.
        share_below: share of the samples nearer than that: about 0.01 without memorisation.
        share_error: standard error of `share_below`, from the numbers of samples and of held-out data.
    """

    sample_median: float
    held_out_median: float
    median_ratio: float
    threshold: float
    share_below: float
    share_error: float


def nearest(
    queries: Real[AnyArray, " n *event"] | Any,
    data: Any,
    k: int = 1,
    *,
    centered: bool = False,
    mirrored: bool = False,
    block_size: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Neighbours:
    """The k nearest examples of each query in the data, exactly.

    Blocks are compared in float32 by a matrix product; the best candidates are compared again in float64, and where
    the error bound of float32 leaves open whether they are the best, all of the data.

    Args:
        queries: (m, ...), or a set as the data may be; uint8 where the data are.
        data: an array (n, ...), or a data set with `num_examples`, `shape` and `read`, of which one block at a time is
            in memory.
        k: 1 ... n.
        centered: uint8 data are scaled to [-1, 1] if True, to [0, 1] if not. Other types are taken as they are, as
            float32.
        mirrored: an example counts as near as the nearer of itself and its mirror image is, for models trained with
            horizontal flips. Images (m, H, W, C) only.
        block_size: examples of the data, and queries, compared at once.
        progress: called as progress(done, total), in examples of the data times queries.

    Raises:
        ValueError: for queries of another length than the data, uint8 against other numbers,
            k out of range, or numbers that are not finite.

    Examples:
        >>> found = metrics.nearest(np.array([[0.75]]), np.array([[0.0], [1.0], [5.0]]), k=2)
        >>> found.distances.tolist(), found.indices.tolist()
        ([[0.25, 0.75]], [[1, 0]])
    """
    asked, vectors = two_sets(queries, data, centered=centered)
    if not 1 <= k <= vectors.num:
        raise InputError(f"k must be from 1 to the {vectors.num} examples of the data, got {k}")
    if block_size < 1:
        raise InputError(f"block_size must be at least 1, got {block_size}")
    if mirrored and len(asked.shape) != 3:
        raise InputError(f"mirrored is for images (m, H, W, C), got {(asked.num, *asked.shape)}")
    rows, block_size = min(block_size, asked.num), min(max(block_size, k + SPARE), vectors.num)
    found = np.empty((asked.num, k)), np.empty((asked.num, k), np.int64)
    for start in range(0, asked.num, rows):
        mine = np.arange(start, min(start + rows, asked.num))
        x = asked.read(mine)
        versions = [x, x.reshape(len(x), *asked.shape)[:, :, ::-1].reshape(x.shape)] if mirrored else [x]
        parts = [_nearest_of_block(v, vectors, k, block_size, rows) for v in versions]
        found[0][mine], found[1][mine] = _merge(parts, k)
        if progress is not None:
            progress((start + len(mine)) * vectors.num, asked.num * vectors.num)
    return Neighbours(found[0] * vectors.unit, found[1])


def memorisation(samples: Real[AnyArray, " n"], held_out: Real[AnyArray, " m"]) -> Memorisation:
    """Whether samples are nearer to the training set than held-out data are.

    Args:
        samples: (n,), distances of the samples to their nearest training example.
        held_out: (m,), distances of held-out data to theirs.

    Raises:
        ValueError: for empty sets, numbers that are no distances, and held-out data that
            are themselves in the training set.

    Examples:
        >>> found = metrics.memorisation(np.full(100, 0.5), np.full(100, 2.0))  # four times as near as held-out data
        >>> found.median_ratio, found.share_below
        (0.25, 1.0)
    """
    check_numbers(samples, "samples", low=0.0)
    check_numbers(held_out, "held_out", low=0.0)
    samples, held_out = np.asarray(samples, np.float64), np.asarray(held_out, np.float64)
    if samples.ndim != 1 or held_out.ndim != 1 or not len(samples) or not len(held_out):
        raise InputError(f"expected distances (n,) and (m,), got {samples.shape} and {held_out.shape}")
    sample_median, held_out_median = float(np.median(samples)), float(np.median(held_out))
    if held_out_median == 0:
        raise InputError("most held-out examples are in the training set, so they cannot be compared with")
    threshold = float(np.quantile(held_out, 0.01))
    share = float(np.mean(samples < threshold))
    # Of the samples' share itself, and of the percentile, which the held-out data know as well as any share of 1%.
    error = float(np.sqrt(share * (1 - share) / len(samples) + 0.01 * 0.99 / len(held_out)))
    return Memorisation(sample_median, held_out_median, sample_median / held_out_median, threshold, share, error)


def picture_rows(
    samples: UInt8[AnyArray, "n H W C"], data: Any, found: Neighbours, num: int = 10
) -> UInt8[np.ndarray, "rows H W C"]:
    """Images for a picture whose rows are a sample and its nearest neighbours.

    Args:
        samples: the queries of `found`, (m, H, W, C) uint8.
        data: what `found` refers to.
        found: from `nearest`.
        num: rows; the samples are at even steps through the order of their distances, the nearest first.

    Returns:
        (num * (1 + k), H, W, C) uint8, row after row.

    Examples:
        >>> data = np.arange(0, 250, 25, dtype=np.uint8).reshape(10, 1, 1, 1)  # ten images of a pixel
        >>> samples = np.array([[[[101]]]], np.uint8)
        >>> metrics.picture_rows(samples, data, metrics.nearest(samples, data, k=2), num=1)[:, 0, 0, 0].tolist()
        [101, 100, 125]
    """
    order = np.argsort(found.distances[:, 0], kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(num, len(order))).round().astype(int)]
    shown = []
    for i in chosen:
        indices = found.indices[i]
        near = data[indices] if hasattr(data, "dtype") else data.read(indices)["x"]
        shown.append(np.concatenate([samples[i : i + 1], near]))
    return np.concatenate(shown)


def _nearest_of_block(queries: np.ndarray, vectors: Vectors, k: int, block_size: int, rows: int) -> tuple[Any, Any]:
    """Distances and indices of the k nearest, (queries, k), in the vectors' own units; `rows` pads the queries."""
    keep = min(k + SPARE, vectors.num)
    padded = jnp.asarray(queries[fill(np.arange(len(queries)), rows)])
    centre = jnp.mean(padded.astype(jnp.float32), axis=0)
    best = jnp.full((rows, keep), jnp.inf), jnp.zeros((rows, keep), jnp.int32)
    for start, (indices, x) in zip(range(0, vectors.num, block_size), vectors.blocks(block_size), strict=True):
        valid = min(block_size, vectors.num - start)
        best = _update(best, padded, jnp.asarray(x), jnp.asarray(indices, jnp.int32), valid, centre, keep)
    approximate, candidates = (np.asarray(part)[: len(queries)] for part in best)
    far, which = _best_of(queries, vectors, candidates, k, block_size)
    if keep < vectors.num:
        # What is no candidate was at least as far, in float32, as the last candidate. If it were nearer than the k-th,
        # at d_k, it would be at most |a| + d_k from the centre, and its float32 square off by less than `error`.
        radii = distances(np.asarray(centre)[None, :], queries)
        error = rounding_bound(vectors.size) * (2 * radii + far[:, -1]) ** 2
        open_still = np.flatnonzero(far[:, -1] ** 2 + error > approximate[:, -1])
        if len(open_still):
            far[open_still], which[open_still] = _in_double(queries[open_still], vectors, k, block_size)
    return far, which


def _in_double(queries: np.ndarray, vectors: Vectors, k: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by products in float64, and the best candidates by differences: for sets that lie close together."""
    keep = min(k + SPARE, vectors.num)
    q = queries.astype(np.float64)
    centre = q.mean(axis=0)
    q -= centre
    squares = np.einsum("nd,nd->n", q, q)
    best, which = np.full((len(q), keep), np.inf), np.zeros((len(q), keep), np.int64)
    for start, (indices, x) in zip(range(0, vectors.num, block_size), vectors.blocks(block_size), strict=True):
        valid = min(block_size, vectors.num - start)
        x = x[:valid].astype(np.float64) - centre
        squared = squares[:, None] + np.einsum("nd,nd->n", x, x)[None, :] - 2.0 * (q @ x.T)
        squared = np.concatenate([best, squared], axis=1)
        labels = np.concatenate([which, np.broadcast_to(indices[:valid], (len(q), valid))], axis=1)
        least = np.argpartition(squared, keep - 1, axis=1)[:, :keep]
        best, which = np.take_along_axis(squared, least, 1), np.take_along_axis(labels, least, 1)
    return _best_of(queries, vectors, which, k, block_size)


def _best_of(
    queries: np.ndarray, vectors: Vectors, candidates: np.ndarray, k: int, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of some candidates of each query, (queries, any number), by differences in float64."""
    exact = np.empty(candidates.shape)
    order = np.argsort(candidates, axis=None, kind="stable")  # of sets on disk, what lies together is read together
    for part in np.array_split(order, -(-len(order) // block_size)):
        query, column = np.unravel_index(part, candidates.shape)
        exact[query, column] = distances(queries[query], vectors.read(candidates[query, column]))
    return _merge([(exact, candidates.astype(np.int64))], k)


def _merge(parts: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of several lists of distances and indices, each (queries, any number); no index twice."""
    far, which = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    order = np.lexsort((far, which), axis=1) if len(parts) > 1 else None
    if order is not None:  # of an index that is there twice the farther one goes
        far, which = np.take_along_axis(far, order, 1), np.take_along_axis(which, order, 1)
        far = far.copy()
        far[:, 1:][which[:, 1:] == which[:, :-1]] = np.inf
    order = np.lexsort((which, far), axis=1)[:, :k]
    return np.take_along_axis(far, order, 1), np.take_along_axis(which, order, 1)


@functools.partial(jax.jit, static_argnames="keep")
def _update(best, queries, x, indices, valid, centre, keep):
    """The `keep` least squared distances and their indices, each (queries, keep), after one more block."""
    squared = squared_distances(queries, x, centre)
    squared = jnp.where(jnp.arange(x.shape[0])[None, :] < valid, squared, jnp.inf)
    least, places = jax.lax.top_k(-squared, keep)
    values = jnp.concatenate([-best[0], least], axis=1)
    labels = jnp.concatenate([best[1], indices[places]], axis=1)
    least, places = jax.lax.top_k(values, keep)
    return -least, jnp.take_along_axis(labels, places, axis=1)
