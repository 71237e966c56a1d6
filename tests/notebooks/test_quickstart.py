"""The quickstart: what it trains has learnt its data, and it prints the distances of its own samples."""

from __future__ import annotations

import re

import numpy as np
import pytest
from executed import execute

from sgmjax import data, metrics


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    arrays = {name: f"panels['{name}'][0]" for name in ("em", "sscs", "ode")}
    arrays |= {"mine": "my_samples", "run": "run_samples", "step": "run.step"}
    return execute("quickstart", tmp_path_factory.mktemp("notebook"), **arrays)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["em", "sscs", "ode"])
def test_samples_are_close_to_the_data(executed, sampler):
    held_out = data.toy.load("pinwheel", "eval").arrays()["x"]
    samples = executed.report[sampler]
    assert samples.shape == (2000, 2) and samples.dtype == np.float32
    # A Gaussian with the data's mean and covariance, which is all that an untrained score gives, is at 0.18.
    gaussian = np.random.default_rng(0).multivariate_normal(held_out.mean(0), np.cov(held_out.T), 2000)
    assert metrics.sliced_wasserstein(samples, held_out) < 0.6 * metrics.sliced_wasserstein(gaussian, held_out)


@pytest.mark.slow
def test_the_printed_distances_are_those_of_the_samples(executed):
    printed = executed.printed("samplers")
    held_out = data.toy.load("pinwheel", "eval").arrays()["x"]
    for sampler in ("em", "sscs", "ode"):
        (value,) = re.findall(rf"^{sampler} .*W2 ([\d.]+)$", printed, flags=re.MULTILINE)
        assert float(value) == pytest.approx(metrics.sliced_wasserstein(executed.report[sampler], held_out), abs=6e-4)


@pytest.mark.slow
def test_the_process_of_ones_own_and_the_run_folder_give_samples(executed):
    assert executed.report["step"] == 200
    for name in ("mine", "run"):  # trained too briefly here to be sharp; an error would show as a wrong scale
        assert executed.report[name].shape == (2000, 2)
        np.testing.assert_allclose(executed.report[name].std(axis=0), 1.0, atol=0.2)
        np.testing.assert_allclose(executed.report[name].mean(axis=0), 0.0, atol=0.2)
