"""Frechet distances against closed forms and recorded values; moments against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import refdata

from sgmjax.metrics import Moments, Statistics, frechet_distance, pixel_frechet, statistics

RECORDED = refdata.load_npz("inception/frechet.npz")
FEATURES = refdata.load_npz("inception/features.npz")


def gaussian(rng: np.random.Generator, dim: int) -> Statistics:
    a = rng.standard_normal((dim, dim))
    return Statistics(rng.standard_normal(dim), a @ a.T)


# -------------------------------------------------------------------------------------------------------- closed forms
def test_diagonal_gaussians():
    rng = np.random.default_rng(0)
    mu, std = rng.standard_normal((2, 7)), rng.uniform(0.1, 3, (2, 7))
    a, b = (Statistics(m, np.diag(s**2)) for m, s in zip(mu, std, strict=True))
    expected = np.sum((mu[0] - mu[1]) ** 2) + np.sum((std[0] - std[1]) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-13)


def test_commuting_and_scaled_covariances():
    rng = np.random.default_rng(1)
    a = gaussian(rng, 9)
    b = Statistics(a.mu, 4.0 * a.sigma)  # W2^2 = (2 - 1)^2 tr S
    assert frechet_distance(a, b) == pytest.approx(np.trace(a.sigma), rel=1e-12)


def test_two_dimensions_by_the_determinant():
    # For 2 x 2, (tr sqrt(M))^2 = tr M + 2 sqrt(det M).
    rng = np.random.default_rng(2)
    for _ in range(20):
        a, b = gaussian(rng, 2), gaussian(rng, 2)
        product = a.sigma @ b.sigma
        cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
        expected = np.sum((a.mu - b.mu) ** 2) + np.trace(a.sigma) + np.trace(b.sigma) - 2 * cross
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_it_is_symmetric_invariant_and_zero_on_the_diagonal():
    rng = np.random.default_rng(3)
    a, b = gaussian(rng, 12), gaussian(rng, 12)
    d = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(d, rel=1e-12)
    assert abs(frechet_distance(a, a)) < 1e-12 * np.trace(a.sigma)
    turn = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    turned = [Statistics(turn @ s.mu, turn @ s.sigma @ turn.T) for s in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(d, rel=1e-11)


def test_fewer_examples_than_dimensions():
    # Two points each: the covariances have rank one, sigma = v v^T / 2, and tr sqrt(S1 S2) = |v . w| / 2.
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 2, 50))
    v, w = x[0] - x[1], y[0] - y[1]
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + (v @ v) / 2 + (w @ w) / 2 - abs(v @ w)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected, rel=1e-12)
    same = np.ones((5, 50))
    assert frechet_distance(same, same) == 0
    assert frechet_distance(same, same + 2) == pytest.approx(200)


def test_covariances_far_from_unit_scale():
    rng = np.random.default_rng(5)
    a, b = gaussian(rng, 6), gaussian(rng, 6)
    d = frechet_distance(a, b)
    for scale in (1e-8, 1e8):
        scaled = [Statistics(scale * s.mu, scale**2 * s.sigma) for s in (a, b)]
        assert frechet_distance(*scaled) == pytest.approx(scale**2 * d, rel=1e-10)


def test_pixel_frechet():
    rng = np.random.default_rng(6)
    a, b = rng.integers(0, 256, (2, 300, 4, 4, 1), dtype=np.uint8)
    flat = [x.reshape(300, 16) / 255 for x in (a, b)]
    assert pixel_frechet(a, b) == pytest.approx(frechet_distance(*flat), rel=1e-12)
    brighter = np.clip(a.astype(int) // 2 + 51, 0, 255).astype(np.uint8)
    shifted = brighter + np.uint8(51)  # the same spread, each mean 0.2 higher
    assert pixel_frechet(brighter, shifted) == pytest.approx(16 * 0.04, rel=1e-9)
    with pytest.raises(ValueError, match="uint8"):
        pixel_frechet(a / 255, b)
    with pytest.raises(ValueError, match="images of"):
        pixel_frechet(a, b[:, :2])


# ------------------------------------------------------------------------------------------------------------- moments
@pytest.mark.parametrize("chunks", [[1000], [1] * 1000, [999, 1], [0, 300, 0, 700], [128] * 7 + [104]])
def test_moments_do_not_depend_on_the_chunks(chunks):
    x = 1e4 + np.random.default_rng(0).standard_normal((1000, 5)).astype(np.float32)
    moments = Moments(5)
    for part in np.split(x, np.cumsum(chunks)[:-1]):
        moments.update(part)
    result = moments.statistics()
    x = x.astype(np.float64)
    assert result.num == 1000
    np.testing.assert_allclose(result.mu, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(result.sigma, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-10)


def test_moments_merge_over_processes():
    x = np.random.default_rng(1).standard_normal((100, 2, 3, 1))
    parts = [Moments(6).update(part) for part in np.split(x, [10, 10, 75])]  # one has seen nothing
    total = Moments(6)
    for part in parts:
        total.merge(part)
    flat = x.reshape(100, 6)
    np.testing.assert_allclose(total.statistics().sigma, np.cov(flat, rowvar=False), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(statistics(iter(np.split(x, [10, 60]))).mu, flat.mean(0), atol=1e-15)


def test_updating_leaves_the_callers_array_alone():
    x = np.random.default_rng(2).standard_normal((10, 3))
    before = x.copy()
    Moments(3).update(x)
    np.testing.assert_array_equal(x, before)


def test_moment_errors():
    with pytest.raises(ValueError, match="length 3, got 4"):
        Moments(3).update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
        statistics(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="got none"):
        statistics([])
    with pytest.raises(ValueError, match="NaN"):
        Moments(1).update(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="not finite"):
        Statistics(np.zeros(1), np.array([[np.inf]]))
    with pytest.raises(ValueError, match="mu must be"):
        Statistics(np.zeros(2), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="dimensions 2 and 3"):
        frechet_distance(Statistics(np.zeros(2), np.eye(2)), Statistics(np.zeros(3), np.eye(3)))
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(np.full((2, 3), np.nan), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
        frechet_distance(np.zeros((1, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="cannot merge"):
        Moments(2).merge(Moments(3))


# ------------------------------------------------------------------------------------------------------------ recorded
def recorded_pair(pair: str) -> tuple[np.ndarray, np.ndarray]:
    if pair.startswith("net"):
        return FEATURES[f"feat{pair[3:]}_32"], FEATURES[f"feat{pair[3:]}_299"]
    return RECORDED[f"feat_{pair[0]}"], RECORDED[f"feat_{pair[1]}"]


@pytest.mark.parametrize("pair", refdata.cases(RECORDED, "fd_(.+)_exact"))
def test_recorded_distances(pair):
    a, b = recorded_pair(pair)
    scale = np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False))
    value = frechet_distance(a, b)
    assert abs(value - RECORDED[f"fd_{pair}_exact"]) <= 1e-12 * (1 + scale)
    if a.shape[1] <= 256:  # the eigenvalues of larger ones take half a minute
        from_statistics = frechet_distance(statistics(a), statistics(b))
        assert abs(from_statistics - RECORDED[f"fd_{pair}_exact"]) <= 1e-12 * (1 + scale)
    # The official program takes roots of rounding errors: its own precision by dimension.
    tolerance = {2048: 5e-5}.get(a.shape[1], 5e-6 if a.shape[1] > 16 else 1e-7)
    assert abs(value - RECORDED[f"fd_{pair}_pytorch_fid"]) <= tolerance


@pytest.mark.parametrize("name", refdata.cases(RECORDED, "feat_(.+)"))
def test_recorded_statistics(name):
    moments = Moments(RECORDED[f"feat_{name}"].shape[1])
    for chunk in np.array_split(RECORDED[f"feat_{name}"], 3):
        moments.update(chunk)
    ours = moments.statistics()
    np.testing.assert_allclose(ours.mu, RECORDED[f"mu_{name}"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ours.sigma, RECORDED[f"sigma_{name}"], rtol=1e-10, atol=1e-14)
