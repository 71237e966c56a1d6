"""Processes of one's own: they are what they should be, sample with exact scores, and are learnt."""

from __future__ import annotations

import numpy as np
import pytest
from executed import execute


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    arrays = {
        "residual": "residual",
        "gaps": "[cld_gap, stays, level_off, same]",
        "simulated": "[recipe_off, linear_off]",
        "found": "[list(found.values()) for found in (recipe_found, linear_found, path_found)]",
        "no_better": "no_better",
        "trained": "[recipe_w2, linear_w2, distance(run_samples)]",
        "samples": "[recipe_samples, linear_samples, run_samples]",
    }
    return execute("own_process", tmp_path_factory.mktemp("notebook"), **arrays)


@pytest.mark.slow
def test_processes_are_what_they_should_be(executed):
    report = executed.report
    assert report["residual"] < 1e-12
    assert report["gaps"].max() < 1e-5
    assert report["simulated"].max() < 0.03  # 20,000 paths: a deviation of a variance of 1 is 0.01
    assert report["found"].max() < 1.6  # a Gaussian with the data's moments is beyond 3
    assert report["no_better"] > 3


@pytest.mark.slow
def test_networks_have_learnt(executed):
    report = executed.report
    assert report["trained"].max() < 0.85 * report["no_better"]
    np.testing.assert_allclose(report["samples"].std(axis=1), 1.07, atol=0.25)


@pytest.mark.slow
def test_each_refusal_names_its_reason(executed):
    printed = executed.printed("refuse") + executed.printed("linear-refuse") + executed.printed("config-refuse")
    for reason in (
        "D is not symmetric", "D is not positive semi-definite", "Q is not skew-symmetric",
        "Sigma_inf is not positive definite", "noise can never reach phase variable 0 (position)",
        "Q is 2 x 2 but D is 3 x 3", "both must be >= 0", "f or g changes too fast at t = 0.",
        "noise never reaches phase variable 0", "the data are not forgotten", "sde: Q is 3 x 3 but D is 2 x 2",
    ):  # fmt: skip
        assert reason in printed, reason
