"""Precision, recall, density and coverage against recorded values and plain double precision."""

from __future__ import annotations

import numpy as np
import pytest
import refdata

from sgmjax.metrics import density_coverage, precision_recall
from sgmjax.metrics.manifold import balls_around, radii

RECORDED = refdata.load_npz("inception/frechet.npz")


def pairwise(a, b):
    return np.sqrt(((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(-1))


def sizes(x, k):
    return np.sort(pairwise(x, x), axis=1)[:, k]


@pytest.mark.parametrize("a, b, k", refdata.cases(RECORDED, r"precision_(.)(.)_k(\d+)"))
def test_recorded(a, b, k):
    real, generated = RECORDED[f"feat_{a}"], RECORDED[f"feat_{b}"]
    found = precision_recall(generated, real, k=int(k))
    assert found.precision == float(RECORDED[f"precision_{a}{b}_k{k}"])
    assert found.recall == float(RECORDED[f"recall_{a}{b}_k{k}"])


@pytest.mark.parametrize("a, b, k", refdata.cases(RECORDED, r"radius_real_(.)(.)_k(\d+)"))
def test_recorded_radii_and_points(a, b, k):
    sets = {"real": RECORDED[f"feat_{a}"], "gen": RECORDED[f"feat_{b}"]}
    balls = {name: radii(x, int(k)) for name, x in sets.items()}
    for name, found in balls.items():
        np.testing.assert_allclose(found, RECORDED[f"radius_{name}_{a}{b}_k{k}"], rtol=1e-6)
    inside = {
        "precision": balls_around(sets["gen"], sets["real"], balls["real"]) > 0,
        "recall": balls_around(sets["real"], sets["gen"], balls["gen"]) > 0,
    }
    for name, found in inside.items():
        np.testing.assert_array_equal(found, RECORDED[f"inside_{name}_{a}{b}_k{k}"])


@pytest.mark.parametrize("block", [7, 64, 4096])
def test_double_precision_at_any_block_size(block):
    rng = np.random.default_rng(0)
    real = rng.standard_normal((150, 6)).astype(np.float32)
    samples = (1.3 * rng.standard_normal((90, 6)) + 100.0).astype(np.float32)  # far from the origin: products cancel
    real += 100.0
    far, own = pairwise(samples, real), sizes(real, 3)
    found = precision_recall(samples, real, k=3, block_size=block)
    assert found.precision == np.mean((far <= own[None, :]).any(axis=1))
    assert found.recall == np.mean((far.T <= sizes(samples, 3)[None, :]).any(axis=1))
    both = density_coverage(samples, real, k=3, block_size=block)
    assert both.density == pytest.approx((far <= own[None, :]).sum() / (3 * len(samples)), rel=1e-12)
    assert both.coverage == np.mean(far.min(axis=0) <= own)


def test_points_on_the_boundary_are_inside():
    line = np.arange(12, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(balls_around(line + 1, line, np.ones(12)), [3] * 10 + [2, 1])


def test_they_move_with_what_they_measure():
    rng = np.random.default_rng(1)
    modes = 10 * rng.standard_normal((4, 8))
    draw = lambda n, which: (modes[which[rng.integers(len(which), size=n)]] + rng.standard_normal((n, 8))).astype("f4")  # noqa: E731
    real, like = (draw(800, np.arange(4)) for _ in range(2))
    same = precision_recall(like, real)
    dropped = precision_recall(draw(800, np.arange(3)), real)  # a mode is missing: recall falls by its share
    assert abs(dropped.precision - same.precision) < 0.05 and dropped.recall < same.recall - 0.15
    noisy = precision_recall(like + rng.standard_normal(like.shape).astype("f4"), real)
    assert noisy.precision < same.precision - 0.3
    shuffled = rng.permutation(800)
    assert precision_recall(like[shuffled], real[shuffled]) == same
    full = density_coverage(like, real)
    assert abs(full.density - 1) < 0.1 and full.coverage > 0.9
    assert density_coverage(draw(800, np.arange(3)), real).coverage < full.coverage - 0.2
    few, many = (density_coverage(like[:n], real[:n]).coverage for n in (200, 800))
    assert abs(few - many) < 0.05  # expected 1 - 2^-k at any number (Naeem et al. 2020, lemma 2)


def test_refusals():
    x = np.ones((5, 3), np.float32)
    with pytest.raises(ValueError, match="k = 5: must be from 1 to one less than the 5 examples"):
        precision_recall(x, x, k=5)
    with pytest.raises(ValueError, match="dimensions 2 and 3"):
        balls_around(np.ones((4, 2), np.float32), x, np.ones(5))
    with pytest.raises(ValueError, match="NaN"):
        precision_recall(np.full((6, 3), np.nan, np.float32), x, k=1)
