"""Your own data and network: every network of the notebook has learnt its data, and the runs can be opened again."""

from __future__ import annotations

import numpy as np
import pytest
from executed import execute

pytestmark = pytest.mark.slow

NETWORKS = ("unet1d, PSLD", "a function, PSLD", "flax.nnx denoiser, VP", "flax.nnx denoiser, PSLD", "equinox, PSLD")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    expressions = {
        "found": f"[report[name] for name in {NETWORKS}]",
        "data": "report['data']",
        "normal": "report['a normal law']",
        "steps": "[run.step, RUN_STEPS, own_run.step]",
        "run": "run_samples",
        "function": "function_samples[1.0]",
        "guided": "[np.mean(judged(x) == wanted) for x in function_samples.values()]",
        "finite": "np.isfinite(own_score(jnp.ones((NUM, 2, T, 1)), jnp.full(NUM, 0.5))).all()",
    }
    return execute("own_network", tmp_path_factory.mktemp("notebook"), **expressions)


def test_networks_give_waves(executed):
    report = executed.report
    for name, (floors, rest) in zip(NETWORKS[1:], report["found"][1:], strict=True):
        assert rest < 0.8 * report["normal"][1], name  # what is left over the nearest wave
        assert floors < 4 * report["data"][0], name
    assert report["function"].shape == (600, 32, 1) and report["function"].dtype == np.float32
    # so few steps of the run are too few for its shape, but a wrong scale would show
    np.testing.assert_allclose(report["run"].std(), 1.0, atol=0.3)


def test_labels_are_heeded_and_runs_open_at_their_step(executed):
    assert (executed.report["guided"] > 0.6).all()  # by chance a third
    ran, asked, own = executed.report["steps"]
    assert ran == asked and own == 200 and executed.report["finite"]
    assert "which 2 phase variables cannot share" in executed.printed("function-sample")
