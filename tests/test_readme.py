"""What the README shows works as it stands there."""

from __future__ import annotations

import re

import numpy as np
import refdata

README = (refdata.ROOT / "README.md").read_text()


def test_the_example_learns_the_ring():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    samples = np.asarray(names["samples"])
    assert samples.shape == (1000, 2) and names["info"].nfe == 50
    # The data: eight Gaussians of std 0.17 on a circle of radius 1.5, so |x| < 1 or |x| > 2 has probability 0.003 each.
    radius = np.linalg.norm(samples, axis=1)
    assert np.mean((radius > 1.0) & (radius < 2.0)) > 0.95
    eighth = np.round(np.arctan2(samples[:, 1], samples[:, 0]) / (np.pi / 4)).astype(int) % 8
    counts = np.bincount(eighth, minlength=8)  # 125 expected each
    assert counts.min() > 60 and counts.max() < 250  # an untrained network gives no ring at all


def test_every_configuration_and_script_that_is_named_exists():
    named = set(re.findall(r"(?:configs|launch|notebooks)/\w+\.\w+", README))
    assert named and all((refdata.ROOT / name).is_file() for name in named), named
    listed = {path.stem for path in (refdata.ROOT / "configs").glob("*.py")}
    assert all(f"`{name}`" in README for name in listed)


def test_the_second_command_is_the_one_that_ci_runs():
    assert README.count("\npython3 -m venv") == 2
    first, second = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert first.endswith("-m sgmjax.train") and second.endswith("pytest")
