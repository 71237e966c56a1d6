"""One denoiser: exact identities, one network sampled as seven processes, a network of PSLD read as a denoiser."""

from __future__ import annotations

import numpy as np
import pytest
from executed import execute


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    arrays = {
        "gaps": "[y_gap, class_gap]",
        "noise": "n",
        "off": "[off[name][0] for name in processes]",
        "literal": "[off[name][1] for name in processes]",
        "errors": "list(errors.values())",
        "best": "list(best.values())",
        "read": "[read[name] for name in ('PSLD', 'VP', 'flow', 'CLD')]",
        "gaussian": "metrics.sliced_wasserstein(np.random.default_rng(0).multivariate_normal("
        "truth.mean(0), np.cov(truth.T), NUM), truth) / floor",
    }
    return execute("one_denoiser", tmp_path_factory.mktemp("notebook"), **arrays).report


@pytest.mark.slow
def test_identities(executed):
    assert executed["gaps"].max() < 1e-3
    np.testing.assert_allclose(executed["noise"].mean(axis=0), 0.0, atol=0.1)
    np.testing.assert_allclose(executed["noise"].std(axis=0), 1.0, atol=0.1)
    assert executed["off"].shape[0] == 9
    assert executed["off"].max() < 1e-3
    assert np.nan_to_num(executed["literal"], nan=1e3).max() > 10 * executed["off"].max()


@pytest.mark.slow
def test_one_network_samples_as_every_process(executed):
    assert executed["errors"].shape == executed["best"].shape == (7,)
    assert executed["best"].max() < 0.6 * executed["gaussian"]
    assert executed["errors"].max() < 0.8 * executed["gaussian"]
    assert executed["read"].max() < 0.9 * executed["gaussian"]
