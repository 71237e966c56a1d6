"""Phase space: kernels, the noise that HSM saves, the score's shape, the splitting, and what networks learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from executed import execute

from sgmjax import exact


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    names = ("VP", "CLD", "PSLD")
    arrays = {
        "gaps": "[same_gap, mirror_gap]",
        "slopes": f"[slopes[name][1] for name in {names}]",
        "rough": f"[rough[name] for name in {names}]",
        "extra": "[extra['CLD'], extra['PSLD']]",
        "steep": f"[measured[name]['steep'] for name in {names}]",
        "share": f"[measured[name]['share'] for name in {names}]",
        "off": f"[measured[name]['off'] for name in {names}]",
        "em": "spread['em', 5]",
        "sscs": "spread['sscs', 5]",
        "ring": f"[errors[name, method, 10] for name in {names} for method in ('sscs', 'unipc')]",
        "many": f"[many[name, 'unipc'] for name in {names}]",
        "levels": "levels",
        "learnt": "list(learnt.values())",
        "trained": "list(trained.values())",
        # samples of a Gaussian with the data's moments
        "gaussian": "distance((1.5**2 / 2 + 0.17**2) ** 0.5 * np.random.default_rng(0).normal(size=(TRIES * NUM, 2)))",
    }
    return execute("phase_space", tmp_path_factory.mktemp("notebook"), **arrays).report


@pytest.mark.slow
def test_closed_forms(executed):
    assert executed["gaps"].max() < 1e-5
    np.testing.assert_allclose(executed["slopes"], [0.5, 1.5, 0.5], atol=0.03)
    np.testing.assert_allclose(executed["rough"], [0.5, 1.0, 0.5], atol=0.02)
    for measured, formula in executed["extra"]:
        np.testing.assert_allclose(measured, formula, rtol=0.1)  # by draws
    assert executed["extra"][0, 1, 0] == pytest.approx(4 / 3, abs=0.05)  # CLD, as t -> 0
    assert 1.7 < executed["extra"][1, 1, 0] < 2  # PSLD, whose x receives noise of its own
    # the exact eps is a linear part and w n(y, sigma), |w| = 1
    assert executed["off"].max() < 1e-4
    np.testing.assert_allclose(executed["share"][[0, 2]], 1.0, atol=1e-4)
    assert 0.6 < executed["share"][1].min() and executed["share"][1].max() < 0.75**0.5
    assert executed["steep"][1].max() < 0.85 * executed["steep"][0].max()


@pytest.mark.slow
def test_samplers_on_exact_scores(executed):
    np.testing.assert_allclose(executed["sscs"], [1.0, 0.5], rtol=0.03)
    assert (executed["em"] > [2.0, 1.0]).all()
    assert executed["ring"].max() < 0.6 * executed["gaussian"]
    assert executed["many"].max() < 1.3


@pytest.mark.slow
def test_networks_have_learnt(executed):
    """In the middle levels the error of n is below that of a Gaussian's, which the mixed score starts from."""
    ring, num = exact.ring(), 4000
    start = []
    for sigma in executed["levels"]:
        x0 = ring.sample(jax.random.key(1), num)[0]
        y, level = x0 + sigma * jax.random.normal(jax.random.key(2), x0.shape), jnp.full(num, sigma)
        gaussian = sigma * y / (1 + sigma**2)
        start.append(float(jnp.sqrt(jnp.mean((ring.denoiser().noise(y, level) - gaussian) ** 2))))
    middle = np.argsort(start)[-2:]
    for error in executed["learnt"]:
        assert np.isfinite(error).all()
        assert error[middle].mean() < 0.95 * np.asarray(start)[middle].mean()
    assert executed["trained"].max() < 0.95 * executed["gaussian"]
