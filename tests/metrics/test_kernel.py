"""KID against a plain double loop and recorded values of torch-fidelity and TF-GAN; where it must and must not move."""

from __future__ import annotations

import numpy as np
import pytest
import refdata

from sgmjax.metrics import kernel_distance, kid, kid_blocks

RECORDED = refdata.load_npz("inception/frechet.npz")


def double_loop(x, y):
    """The definition, term by term."""
    d = x.shape[1]
    k = lambda a, b: (float(a @ b) / d + 1.0) ** 3  # noqa: E731
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 5)), rng.standard_normal((9, 5)) + 0.5
    assert kernel_distance(x, y) == pytest.approx(double_loop(x, y), rel=1e-12)


@pytest.mark.parametrize("a, b", refdata.cases(RECORDED, "kid_(.)(.)_full"))
def test_recorded_whole_sets(a, b):
    found = kernel_distance(RECORDED[f"feat_{a}"], RECORDED[f"feat_{b}"])
    assert found == pytest.approx(float(RECORDED[f"kid_{a}{b}_full"]), rel=1e-10)


@pytest.mark.parametrize("a", refdata.cases(RECORDED, "kid_(.)_halves"))
def test_recorded_halves(a):
    x = RECORDED[f"feat_{a}"]
    half = len(x) // 2
    assert kernel_distance(x[:half], x[half:]) == pytest.approx(float(RECORDED[f"kid_{a}_halves"]), rel=1e-9)


@pytest.mark.reference
def test_recorded_subsets():
    x, y = RECORDED["feat_A"], RECORDED["feat_B"]
    pairs = zip(RECORDED["kid_subset_idx_A"], RECORDED["kid_subset_idx_B"], strict=True)
    values = [kernel_distance(x[i], y[j]) for i, j in pairs]
    np.testing.assert_allclose(values, RECORDED["kid_subset_values"], rtol=1e-10)


@pytest.mark.parametrize("num, size", refdata.cases(RECORDED, r"kid_torch_fidelity_mean_s(\d+)_n(\d+)"))
def test_torch_fidelity(num, size):
    found = kid(RECORDED["feat_A"], RECORDED["feat_B"], num_subsets=int(num), subset_size=int(size))
    assert found.mean == pytest.approx(float(RECORDED[f"kid_torch_fidelity_mean_s{num}_n{size}"]), rel=1e-6)
    assert found.spread == pytest.approx(float(RECORDED[f"kid_torch_fidelity_std_s{num}_n{size}"]), rel=1e-6)


@pytest.mark.parametrize("pair, size", refdata.cases(RECORDED, r"kid_tfgan_(|.._)block(\d+)"))
def test_tfgan_blocks(pair, size):
    a, b = pair[:2] or "AB"
    found = kid_blocks(RECORDED[f"feat_{a}"], RECORDED[f"feat_{b}"], max_block_size=int(size))
    key = f"kid_tfgan_{pair}block{size}"
    assert found.mean == pytest.approx(float(RECORDED[key]), rel=1e-8)
    np.testing.assert_allclose(found.spread, RECORDED[f"{key}_stderr"], rtol=1e-8)


def test_it_moves_with_the_law_and_not_with_the_order_or_the_number():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 4000, 16)).astype(np.float32)
    few, many = (kid(x[:n], y[:n], num_subsets=20, subset_size=200) for n in (500, 4000))
    for same in (few, many):  # no bias: within four standard errors of 0 at any number
        assert abs(same.mean) < 4 * same.spread / np.sqrt(20)
    assert kernel_distance(x[:500], y[:500]) == pytest.approx(kernel_distance(x[:500][::-1], y[:500]), rel=1e-9)
    noisy = kid(x + rng.standard_normal(x.shape), y, num_subsets=20, subset_size=200)
    assert noisy.mean > 10 * noisy.spread / np.sqrt(20)
    one_sided = kid(x[x[:, 0] > 0], y, num_subsets=20, subset_size=200)
    assert one_sided.mean > 10 * one_sided.spread / np.sqrt(20)


def test_refusals():
    x = np.ones((5, 3), np.float32)
    with pytest.raises(ValueError, match="subset_size = 6: must be from 2 to 5"):
        kid(x, x, subset_size=6)
    with pytest.raises(ValueError, match="NaN or infinities"):
        kernel_distance(np.full((3, 2), np.nan), np.ones((3, 2)))
    with pytest.raises(ValueError, match="expected features"):
        kernel_distance(np.ones((3, 2)), np.ones((3, 4)))
