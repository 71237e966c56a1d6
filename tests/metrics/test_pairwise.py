"""The largest pairwise distance against all pairs by brute force, and its bounds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from sgmjax.data import ArrayDataset
from sgmjax.metrics import distance_bounds, largest_pair, pairwise


def _images(num=61, seed=0):
    """Images of very different brightness, so that some pairs are far apart and most can be excluded."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(0, 1, (num, 1, 1, 1)) ** 3
    return (255 * level * rng.uniform(0.5, 1, (num, 3, 2, 1))).astype(np.uint8)


def _brute(x):
    """All distances in float64, and the largest."""
    table = squareform(pdist(x.reshape(len(x), -1).astype(np.float64)))
    return table, table.max()


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("block_size", [16, 4096])
def test_largest_pair_is_that_of_all_pairs(prune, block_size):
    x = _images()
    table, largest = _brute(x)
    for data, centered, scale in ((x, False, 1 / 255), (ArrayDataset("images", x), True, 2 / 255)):
        found = largest_pair(data, centered=centered, block_size=block_size, prune=prune)
        assert found.distance == pytest.approx(largest * scale, rel=1e-14)
        assert table[found.indices] == largest and found.indices[0] < found.indices[1]
        assert found.compared == 1.0 if not prune else 0 < found.compared < 1


def test_vectors_with_many_equally_distant_pairs():
    """Corners of a simplex far from the origin: every pair is the largest, to rounding."""
    x = (1000 + 3 * np.eye(20)).astype(np.float32)
    found = largest_pair(x, block_size=7)
    assert found.distance == pytest.approx(3 * math.sqrt(2), rel=1e-12)
    assert found.indices[0] != found.indices[1]


def test_near_ties_are_told_apart():
    """Two pairs whose squared distances differ by less than float32 can hold."""
    size = 2000
    x = np.zeros((6, size), np.uint8)
    x[0], x[3] = 255, 254
    x[1, 0] = 1
    x[3, 0] = 255
    table, largest = _brute(x)
    found = largest_pair(x, block_size=2)
    assert np.float32(largest**2) == np.float32(largest**2 - 1)
    assert table[found.indices] == largest and found.distance == pytest.approx(largest / 255, rel=1e-15)


def test_float32_bound_holds():
    """The claimed bound of the matrix product's error: above what is met, and far below the distances."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 30, 3000)).astype(np.uint8)
    centre = np.full(3000, 100.0, np.float32)
    exact = ((a[:, None].astype(float) - b[None]) ** 2).sum(-1)
    reach = [np.linalg.norm(x - 100.0, axis=1) for x in (a, b)]
    error = np.abs(np.asarray(pairwise.squared_distances(a, b, centre), np.float64) - exact)
    bound = pairwise.rounding_bound(3000) * (reach[0][:, None] + reach[1][None]) ** 2
    assert (error <= bound).all() and bound.max() < 0.01 * exact.min()


@pytest.mark.parametrize("seed", range(4))
def test_bounds_enclose_the_largest_distance(seed):
    x = _images(seed=seed)
    table, largest = _brute(x)
    found = distance_bounds(ArrayDataset("images", x), block_size=16)
    assert found.lower <= largest / 255 * (1 + 1e-12) and found.upper >= largest / 255
    assert found.lower == pytest.approx(table[found.indices] / 255, rel=1e-14)
    centre = x.reshape(len(x), -1).mean(axis=0)
    radii = np.sort(np.linalg.norm(x.reshape(len(x), -1) - centre, axis=1)) / 255
    assert found.upper == pytest.approx(radii[-1] + radii[-2], rel=1e-4) and found.upper <= 2 * radii[-1] * (1 + 1e-4)
    assert found.lower > 0.5 * largest / 255  # the first sweep alone is at least half, by the triangle inequality


def test_bounds_meet_for_two_points():
    found = distance_bounds(np.array([[0.0, 0.0], [3.0, 4.0]], np.float32))
    assert found.lower == 5.0 and found.upper == pytest.approx(5.0, rel=1e-4) and found.indices == (0, 1)


class Counted(ArrayDataset):
    """A data set that tells how many examples were asked for at once."""

    def read(self, indices, flips=None):
        self.largest = max(getattr(self, "largest", 0), len(indices))
        return super().read(indices, flips)


def test_streamed_in_blocks_with_progress():
    dataset, seen = Counted("images", _images()), []
    largest_pair(dataset, block_size=10, progress=lambda *args: seen.append(args))
    assert dataset.largest <= 10
    for what, group in itertools.groupby(seen, key=lambda args: args[0]):
        group = list(group)
        assert what in ("centre", "radius", "sweep", "pairs") and group[-1][1] == group[-1][2]
    assert {args[0] for args in seen} == {"centre", "radius", "sweep", "pairs"}


def test_what_has_no_largest_distance():
    with pytest.raises(ValueError, match="at least two examples"):
        largest_pair(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="NaN or infinities"):
        distance_bounds(np.array([[0.0], [np.nan]], np.float32))
    with pytest.raises(ValueError, match="sweeps must be at least 1"):
        distance_bounds(np.zeros((2, 3), np.float32), sweeps=0)
    with pytest.raises(ValueError, match="block_size"):
        largest_pair(np.zeros((2, 3), np.float32), block_size=0)
    assert largest_pair(np.ones((5, 3), np.uint8)).distance == 0.0
