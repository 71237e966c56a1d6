"""The sliced Wasserstein distance against closed forms and linear programming."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from sgmjax.metrics import sliced_wasserstein
from sgmjax.metrics.sliced import directions, wasserstein_1d


def test_translation():
    rng = np.random.default_rng(0)
    for dim, tolerance in ((1, 1e-12), (2, 1e-12), (5, 0.1)):
        x, v = rng.standard_normal((500, dim)), rng.standard_normal(dim)
        expected = np.linalg.norm(v) / np.sqrt(dim)
        assert sliced_wasserstein(x, x + v) == pytest.approx(expected, rel=tolerance)
    many = sliced_wasserstein(x, x + v, num_directions=100_000 // 500)
    assert many == pytest.approx(expected, rel=0.15)


def test_scaling_about_the_mean():
    x = np.random.default_rng(1).standard_normal((1000, 2))
    # Along u, x -> 3x moves the order statistics by twice their value: W2 = 2 rms(<u, x>).
    expected = 2 * np.sqrt(np.mean(np.sum(x**2, axis=1)) / 2)
    assert sliced_wasserstein(x, 3 * x) == pytest.approx(expected, rel=1e-12)


def test_permutations_do_not_matter_and_equal_sets_have_distance_zero():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((300, 2, 3))
    assert sliced_wasserstein(x, rng.permutation(x)) == 0
    assert sliced_wasserstein(x, np.concatenate([x, x])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 5), (6, 4), (1, 7)])
def test_one_dimension_by_linear_programming(n, m):
    rng = np.random.default_rng(n * 10 + m)
    x, y = rng.standard_normal(n), rng.standard_normal(m)
    cost = (x[:, None] - y[None]) ** 2
    rows = np.kron(np.eye(n), np.ones((1, m)))
    columns = np.kron(np.ones((1, n)), np.eye(m))
    marginals = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    best = linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=marginals).fun
    assert wasserstein_1d(x, y) == pytest.approx(np.sqrt(best), rel=1e-7)
    assert wasserstein_1d(y, x) == pytest.approx(np.sqrt(best), rel=1e-7)


def test_two_gaussians_converge_to_the_closed_form():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 100_000, 2))
    # N(0, 1) against N(a cos, s^2): W2^2 = a^2 cos^2 + (s - 1)^2, averaged over angles.
    y = 1.5 * y + np.array([0.8, 0.0])
    assert sliced_wasserstein(x, y) == pytest.approx(np.sqrt(0.32 + 0.25), rel=0.01)


def test_directions_are_unit_and_reproducible():
    for dim in (1, 2, 7):
        u = directions(dim, 64, seed=3)
        np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1, rtol=1e-12)
        np.testing.assert_array_equal(u, directions(dim, 64, seed=3))
    assert not np.array_equal(directions(7, 4, seed=0), directions(7, 4, seed=1))


def test_errors():
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match="dimensions 2 and 3"):
        sliced_wasserstein(x, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="num_directions"):
        sliced_wasserstein(x, x, num_directions=0)
    with pytest.raises(ValueError, match="empty"):
        sliced_wasserstein(x, np.zeros((0, 2)))
