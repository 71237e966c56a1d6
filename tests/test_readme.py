"""What the README shows works as it stands there."""

from __future__ import annotations

import re

import numpy as np
import pytest
import refdata

from sgmjax import models, sdes
from sgmjax.config import Config
from sgmjax.spec import parameters

README = (refdata.ROOT / "README.md").read_text()
EXAMPLE, SHORTER, OWN_PROCESS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_example_learns_the_ring():
    names: dict = {}
    exec(compile(EXAMPLE, "README.md", "exec"), names)
    samples = np.asarray(names["samples"])
    assert samples.shape == (1000, 2) and names["info"].nfe == 50
    # The data: eight Gaussians of std 0.17 on a circle of radius 1.5, so |x| < 1 or |x| > 2 has probability 0.003 each.
    radius = np.linalg.norm(samples, axis=1)
    assert np.mean((radius > 1.0) & (radius < 2.0)) > 0.95
    eighth = np.round(np.arctan2(samples[:, 1], samples[:, 0]) / (np.pi / 4)).astype(int) % 8
    counts = np.bincount(eighth, minlength=8)  # 125 expected each
    assert counts.min() > 60 and counts.max() < 250  # an untrained network gives no ring at all


@pytest.mark.slow
def test_the_shorter_form_goes_on_from_the_example():
    names: dict = {}
    exec(compile(EXAMPLE.replace("range(2000)", "range(2)").replace("1000, 2", "10, 2"), "README.md", "exec"), names)
    exec(compile(SHORTER.replace("1000, 2", "10, 2"), "README.md", "exec"), names)
    assert np.isfinite(names["value"]) and names["samples"].shape == (10, 2) and names["info"].nfe == 50


def test_a_process_of_ones_own_takes_the_place_of_psld_in_the_example():
    (psld,) = re.findall(r"^sde = .*$", EXAMPLE, flags=re.MULTILINE)
    example = EXAMPLE.replace(psld, OWN_PROCESS).replace("range(2000)", "range(2)").replace("1000, 2", "10, 2")
    assert "range(2)" in example and "(10, 2)" in example
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["sde"].k == names["sde"].num_noised == 3 and names["sde"].name == "recipe"
    assert names["info"].state.shape == (10, 3, 2) and np.isfinite(names["samples"]).all()


def test_every_configuration_and_script_that_is_named_exists():
    named = set(re.findall(r"(?:configs|docs|launch|notebooks)/\w+\.\w+", README))
    assert named and all((refdata.ROOT / name).is_file() for name in named), named
    listed = {path.stem for path in (refdata.ROOT / "configs").glob("*.py")}
    assert all(f"`{name}`" in README for name in listed)


def test_the_second_command_is_the_one_that_ci_runs():
    assert README.count("\npython3 -m venv") == 2
    first, second = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert first.endswith("-m sgmjax.train") and second.endswith("pytest")


def test_every_file_and_setting_that_the_pages_name_exists():
    for page in (refdata.ROOT / "docs").glob("*.md"):
        text = page.read_text()
        for name in re.findall(r"`?((?:configs|docs|launch|notebooks|sgmjax)/[\w/]+\.\w+)", text):
            assert (refdata.ROOT / name).is_file(), (page.name, name)
        for section, key in re.findall(r"--config\.(\w+)\.(\w+)", text):
            tables = {"model": models.NETWORKS, "sde": sdes.PROCESSES}
            kinds = tables.get(section) or {section: type(getattr(Config(), section))}
            assert key == "name" or any(key in parameters(kind) for kind in kinds.values()), (page.name, section, key)
