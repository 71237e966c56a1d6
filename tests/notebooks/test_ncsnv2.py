"""NCSNv2's notebook: what it says of exact scores, of closed forms, and of the network with and without techniques."""

from __future__ import annotations

import numpy as np
import pytest
from executed import execute

from sgmjax import data, metrics
from sgmjax.sdes import noise_levels


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    report = {
        "stay": "list(stay.values())",
        "pair": "[pair.distance, *pair.indices]",
        "levels": "[advice.num_levels, advice.ratio, advice.step_size]",
        "inside": "np.mean(np.abs(noise - advice.ratio * dim**0.5) < 3 * advice.ratio / 2**0.5)",
        "scaled": "scaled",
        "variances": "list(measured.values())",
        "names": "list(table)",
        "table": "list(table.values())",
        "samples": "rows['all five'][0]",
        "noise_left": "list(noise_left.values())",
    }
    return execute("ncsnv2", tmp_path_factory.mktemp("notebook"), **report)


def _digits(split):
    x = data.load("digits", split).arrays()["x"]
    return np.float32(x.reshape(len(x), -1) / 255)


@pytest.mark.slow
def test_levels_and_step_size_are_those_of_the_data(executed):
    x, found = _digits("train"), executed.report
    distance, i, j = found["pair"]
    assert distance == pytest.approx(np.linalg.norm(np.float64(x[int(i)]) - x[int(j)]), abs=1e-5)
    assert distance >= np.linalg.norm(x[:1] - x, axis=1).max()
    levels, ratio, step_size = found["levels"]
    assert levels == 22 and f"{step_size:.3g}" in executed.printed("command")  # the command says the same
    # the lengths of the notebook's noise against the formula, whose normal lengths are an approximation
    assert found["inside"] == pytest.approx(noise_levels.overlap(ratio, 64), abs=0.04)
    measured, formula = found["variances"].T
    np.testing.assert_allclose(measured, formula, rtol=0.03)


@pytest.mark.slow
def test_exact_scores_show_what_techniques_1_and_3_say(executed):
    stay = executed.report["stay"]
    assert stay[0] > 0.95 and stay[-1] < 0.25
    np.testing.assert_allclose(executed.report["scaled"], 8.0, rtol=0.06)  # sqrt(64)


@pytest.mark.slow
def test_the_table_is_of_the_samples_and_orders_the_techniques(executed):
    found, held_out = executed.report, _digits("eval")
    table = dict(zip(found["names"], found["table"], strict=True))
    samples = np.clip(found["samples"], -1, 2)
    assert table["all five"][0] == pytest.approx(metrics.sliced_wasserstein(samples, held_out), rel=1e-6)
    assert table["all five"][0] < 0.15 and table["all five"][1] < 2.5  # 0.05 and 0.5 of as many training images
    for name in ("without 2", "without 3", "without 4"):
        assert table[name][1] > 10 * table["all five"][1], name
    assert table["all five"][1] < table["without 5"][1]
    # the denoising step takes away noise of about the last level, where it is large against the data's own grain
    assert 0.04 < found["noise_left"][1] < 0.11 and found["noise_left"][0] < 0.011
