"""The sliced Wasserstein distance against closed forms and linear programming."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from sgmjax.metrics import monge_inception_distance, sliced_wasserstein
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


# --------------------------------------------------------------------------------------------------------------- MIND
def test_mind_of_a_translation():
    # The mean of <u, v>^2 over the sphere is |v|^2 / d, and a translation moves every quantile by <u, v>.
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((500, 24)), rng.standard_normal(24)
    found = monge_inception_distance(x, x + v, num_directions=20000)
    assert found == pytest.approx(3 * v @ v, rel=0.03)  # 2 / sqrt(20000) standard errors


def test_mind_is_the_square_of_the_sliced_distance():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((300, 10)).astype("f4"), 2 * rng.standard_normal((170, 10)).astype("f4")
    sliced = sliced_wasserstein(x, y, num_directions=300)
    found = monge_inception_distance(x, y, num_directions=300)
    assert found == pytest.approx(30 * sliced**2, rel=1e-9)
    assert monge_inception_distance(x[::-1], y, num_directions=300, block_size=11) == pytest.approx(found, rel=1e-9)


def test_mind_falls_with_the_number_of_examples():
    rng = np.random.default_rng(2)
    few, many = (
        monge_inception_distance(*rng.standard_normal((2, n, 8)).astype("f4"), num_directions=200) for n in (250, 4000)
    )
    assert few / many == pytest.approx(16, rel=0.5)  # 1 / N, up to the tails' logarithm
    assert many > 0
