"""A run folder opened from Python gives what the run learnt."""

from __future__ import annotations

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from training import tiny

from sgmjax.config import ConfigError
from sgmjax.training import workdir
from sgmjax.training.load import load_run
from sgmjax.training.train import train

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tiny"
    model = {"name": "mlp", "width": 8, "depth": 1}
    train(tiny.config(data={"num_samples": 100}, model=model, sampling={"steps": 3}), path)
    return path


def test_the_averaged_parameters_of_the_newest_checkpoint(folder, caplog):
    run = load_run(folder)
    assert run.step == 20 and run.config == workdir.read_config(folder)
    stored = ocp.StandardCheckpointer().restore((folder / "checkpoints" / "20" / "ema").absolute())
    jax.tree.map(np.testing.assert_array_equal, run.variables.params, stored)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(run.variables))
    assert not caplog.records  # no word about a read-only folder


def test_sampling_with_other_settings(folder):
    run = load_run(folder, sampling={"sampler": "em", "steps": 4, "denoise": False})
    x, info = run.sample(jax.random.key(0), 5)
    assert x.shape == (5, 2) and info.nfe == 4 and np.isfinite(x).all()


@pytest.mark.parametrize("wrong", [{"stepz": 4}, {"steps": 0}, {"sampler": "sssc"}])
def test_wrong_settings(folder, wrong):
    with pytest.raises(ConfigError, match=rf"sampling\.{next(iter(wrong))}"):
        load_run(folder, sampling=wrong)


def test_no_run_and_no_checkpoint(folder, tmp_path):
    with pytest.raises(workdir.WorkdirError, match="no run in"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(workdir.WorkdirError, match="no checkpoint in"):
        load_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
