"""Samplers: exact scores reach the floor, networks come near it, and the grids do what the notebook says of them."""

from __future__ import annotations

import numpy as np
import pytest
from executed import execute

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    expressions = {
        "exact": "[adaptive[name, 'exact'][1] for name in PROCESSES]",
        "learnt": "[adaptive[name, 'ode, 1e-4'][1] for name in PROCESSES]",
        "nfe": "[[sweep[name, method, BUDGETS[-1]][0] for method in METHODS[:7]] for name in PROCESSES]",
        "budget": "BUDGETS[-1]",
        "uniform": "[grid_errors[name, 'uniform', 'unipc'][0] for name in PROCESSES]",
        "auto": "[grid_errors[name, 'auto', 'unipc'][0] for name in PROCESSES]",
        "tuned": "tuned.error",
        "plain": "min(tuned.plain.values())",
        "many": "[[many_errors[name, method, 10] for method in ('sscs', 'unipc')] for name in PROCESSES]",
        "restarted": "[found[0] for found in restart_errors.values()]",
    }
    return execute("samplers", tmp_path_factory.mktemp("notebook"), **expressions).report


def test_with_exact_scores_the_samples_are_at_the_floor_and_networks_come_near(report):
    np.testing.assert_allclose(report["exact"], 1.0, atol=0.4)
    assert (report["learnt"] < 6).all()  # a normal law with the data's covariance is at about 10
    assert (report["nfe"] == report["budget"]).all()
    np.testing.assert_array_equal(report["restarted"], [20, 50, 50, 50])  # evaluations, the restarts' included


def test_the_grid_decides(report):
    assert (report["auto"] < report["uniform"]).all()  # of networks trained so shortly; in full by 5 and 40 times
    assert report["tuned"] < report["plain"]
    sscs, unipc = report["many"].T  # of few samples, whose floor is high: errors add to it in squares
    assert (unipc < 1.2).all() and (sscs**2 - 1 > 0.2).all()
