"""`python -m sgmjax.noise_levels`: what it prints for data whose answer is known, and mistakes in one line."""

from __future__ import annotations

import ast
import re

import numpy as np
import pytest

from sgmjax import data
from sgmjax.commands import noise_levels
from sgmjax.config import complete, from_dict
from sgmjax.samplers import plan
from sgmjax.sdes import noise_levels as nl
from sgmjax.tasks import build


def run(capsys, *words: str) -> str:
    assert noise_levels.main(["noise_levels", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_recommendation_for_digits(capsys):
    """Every number it prints, from the data and the pure functions."""
    out = run(capsys, "--data=digits")
    x = data.digits.load("train").arrays()["x"].reshape(-1, 64).astype(np.float64) / 255
    distance = max(np.linalg.norm(x - row, axis=1).max() for row in x)
    assert f"largest distance {distance:.6g}" in out
    sigma = float(re.search(r"sigma_1 = ([\d.]+)", out)[1])
    assert distance <= sigma < distance * 1.01
    for overlap in (nl.PUBLISHED_OVERLAP, nl.PAPER_OVERLAP):
        found = nl.recommend(sigma_max=sigma, sigma_min=0.01, dimension=64, overlap=overlap)
        assert f"overlap {overlap:g}" in out and f"so {found.num_levels} levels" in out
        assert f"step size {found.step_size:.4g}, variance ratio {found.variance_ratio:.5g}" in out


def test_the_lines_are_a_config(capsys):
    """They go into one as they stand, and the run they make can be built."""
    out = run(capsys, "--data=digits", "--steps_per_level=3", "--overlap=0.5", "--sigma_min=0.05")
    lines = out.split("For the config")[1].split("\n\n")[1].replace('{..., "time', '{"time')
    sections = ast.literal_eval("{" + lines + "}")
    assert sections["sampling"]["options"]["steps_per_level"] == 3
    sections["objective"] |= {"parameterization": "score", "time_conditioning": "sigma", "weighting": "annealed"}
    others = {"data": {"centered": False}, "model": {"name": "ncsnv2", "ngf": 4}}
    config = from_dict(complete(others | sections))
    task = build.task(config, (8, 8, 1))
    times, _ = plan.times(config.sampling, task.sde)
    assert len(times) == config.objective.num_levels == len(task.model.time_law.times)


def test_config_with_overrides_and_bounds(capsys):
    out = run(
        capsys, "--config=configs/ncsnv2_digits.py", "--bounds", "--config.data.centered=True",
        "--config.objective.num_levels=10", "--config.sampling.options.step_size=1e-5",
    )  # fmt: skip
    low, high = map(float, re.search(r"between ([\d.]+) and ([\d.]+), bounded", out).groups())
    assert 9 < low <= 2 * 4.81372 <= high < 2 * low  # in [-1, 1] distances are twice as large
    assert "the config has 10 levels" in out and "step size 1e-05, 5 steps: variance ratio" in out


def test_equally_spaced_levels_have_no_one_ratio(capsys):
    out = run(
        capsys, "--config=configs/ncsnv2_digits.py", "--sigma_max=5", "--config.sde.sigma_dist=uniform",
        "--config.sde.sigma_max=4.0", "--config.sde.sigma_min=1.0", "--config.objective.num_levels=4",
    )  # fmt: skip
    ends = nl.overlap(4 / 3, 64), nl.overlap(2 / 1, 64)  # the levels are 4, 3, 2, 1
    assert f"4 equally spaced levels from 4 to 1: overlap {ends[0]:.4g} at the largest, {ends[1]:.4g} at the" in out


def test_plane_has_no_solution_and_the_nearest_is_offered(capsys):
    out = run(capsys, "--data=ring", "--sigma_max=4")
    assert "no solution for D = 2" in out and "D = 5" in out and "ratio 18.4" in out


BAD = {
    "no data": ([], "which data"),
    "two sets": (["--data=digits", "--config=psld_digits"], "which data"),
    "unknown flag": (["--dat=digits"], "dat"),
    "negative": (["--data=digits", "--sigma_min=-1"], "--sigma_min: must be positive"),
    "ends": (["--data=digits", "--sigma_max=0.001"], r"sigma_1 = 0.001 .* must be above sigma_L = 0.01"),
    "overlap": (["--data=digits", "--sigma_max=4", "--overlap=1.5"], "--overlap: must be between 0 and 1"),
    "not prepared": (["--data=cifar10", "--data_dir=/nowhere"], "cifar10"),
    "setting": (["--data=digits", "--config.data.flipp=True"], "did you mean data.flip"),
}


@pytest.mark.parametrize("label", BAD)
def test_mistakes_are_one_line(capsys, label: str):
    words, message = BAD[label]
    assert noise_levels.main(["noise_levels", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ") and error.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        noise_levels.main(["noise_levels", "--help"])
    assert stop.value.code == 0 and "--steps_per_level" in capsys.readouterr().out


@pytest.mark.parametrize("value, up", [(4.8137, 4.82), (4.82, 4.82), (16.8758, 16.9), (0.01, 0.01), (1234.0, 1240.0)])
def test_three_digits_never_below(value: float, up: float):
    assert noise_levels.round_up(value) == up
