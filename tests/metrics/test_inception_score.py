"""The Inception score against recorded values, and its extremes."""

from __future__ import annotations

import numpy as np
import pytest
import refdata

from sgmjax.metrics import inception_score

RECORDED = refdata.load_npz("inception/frechet.npz")
FEATURES = refdata.load_npz("inception/features.npz")


@pytest.mark.parametrize("splits", refdata.cases(RECORDED, r"is_splits(\d+)_mean"))
def test_recorded(splits):
    found = inception_score(RECORDED["is_logits"], splits=int(splits))
    assert found.mean == pytest.approx(float(RECORDED[f"is_splits{splits}_mean"]), rel=1e-9)
    assert found.std == pytest.approx(float(RECORDED[f"is_splits{splits}_std_ddof0"]), rel=1e-8, abs=1e-12)
    np.testing.assert_allclose(found.values, RECORDED[f"is_splits{splits}_values"], rtol=1e-9)


@pytest.mark.reference
def test_recorded_shuffled():
    found = inception_score(RECORDED["is_logits"], splits=10, seed=2020)
    assert found.mean == pytest.approx(float(RECORDED["is_torch_fidelity_shuffled_mean"]), rel=1e-6)
    assert found.std == pytest.approx(float(RECORDED["is_torch_fidelity_shuffled_std"]), rel=1e-6)


@pytest.mark.reference
def test_probabilities_that_underflow():
    found = inception_score(RECORDED["is_extreme_logits"], splits=1)
    assert found.mean == pytest.approx(float(RECORDED["is_extreme_splits1"]), rel=1e-9)


@pytest.mark.parametrize("name", refdata.cases(RECORDED, r"is_net_(logits\w*)_splits1"))
def test_recorded_networks_logits(name):
    found = inception_score(FEATURES[f"{name}_32"], splits=1)
    assert found.mean == pytest.approx(float(RECORDED[f"is_net_{name}_splits1"]), rel=1e-9)


def test_extremes():
    sure = 1e4 * np.eye(7)[np.arange(70) % 7]
    assert inception_score(sure, splits=1).mean == pytest.approx(7.0, rel=1e-12)
    assert inception_score(np.ones((10, 7)), splits=2).mean == pytest.approx(1.0, rel=1e-12)
    one_missing = sure[np.arange(70) % 7 != 3]  # a mode dropped
    assert inception_score(one_missing, splits=1).mean == pytest.approx(6.0, rel=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="splits = 11: must be from 1 to the 10 images"):
        inception_score(np.ones((10, 3)), splits=11)
    with pytest.raises(ValueError, match="NaN or infinities"):
        inception_score(np.full((10, 3), np.inf))
