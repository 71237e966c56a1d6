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
        "read": "list(read.values())",
        "gaussian": "distance(np.random.default_rng(0).multivariate_normal([0, 0], np.cov(x0.T), TRIES * NUM))",
    }
    return execute("one_denoiser", tmp_path_factory.mktemp("notebook"), **arrays).report


@pytest.mark.slow
def test_identities(executed):
    assert executed["gaps"].max() < 1e-3
    np.testing.assert_allclose(executed["noise"].mean(axis=0), 0.0, atol=0.1)
    np.testing.assert_allclose(executed["noise"].std(axis=0), 1.0, atol=0.1)
    assert executed["off"].shape[0] == 7
    assert executed["off"].max() < 1e-3
    assert np.nan_to_num(executed["literal"], nan=1e3).max() > 10 * executed["off"].max()


@pytest.mark.slow
def test_one_network_samples_as_every_process(executed):
    assert executed["errors"].shape == (7,) and executed["best"].shape == (2,)
    assert executed["best"].max() < 0.6 * executed["gaussian"]
    assert executed["errors"].max() < 0.8 * executed["gaussian"]
    assert executed["read"].max() < 0.9 * executed["gaussian"]
