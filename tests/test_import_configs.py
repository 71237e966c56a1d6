"""The config of an imported checkpoint: found by the weights, or checked against what the file says."""

from __future__ import annotations

import jax
import numpy as np
import official_files
import pytest
from official_files import fresh, pieces
from official_files import run_import as run

from sgmjax import _cli, interop
from sgmjax.commands import published
from sgmjax.config import from_dict, to_dict
from sgmjax.training.load import load_run

torch = pytest.importorskip("torch")


def test_a_config_is_found_by_the_weights(tmp_path, monkeypatch, capsys):
    """The one that fits alone; of several that do their names; of none those of its kind."""
    configs = tmp_path / "configs"
    configs.mkdir()
    monkeypatch.setattr(_cli, "config_folders", lambda: [configs])
    official_files.save("cld", pieces("cld"), tmp_path / "file")
    settings = official_files.settings_of("cld")
    wider = settings | {"model": settings["model"] | {"nf": 16}}
    for one, name in ((wider, "wider"), (official_files.settings_of("psld"), "psld_of_eight")):
        official_files.config_file(configs, one, name)
    (configs / "broken.py").write_text("1 / 0\n")
    assert run(tmp_path, "cld", config=False) == 2
    err = capsys.readouterr().err
    assert "no config that comes with sgmjax has the network" in err and err.endswith("Those of this kind: wider\n")
    for name in ("one", "two"):
        official_files.config_file(configs, settings, name)
    assert run(tmp_path, "cld", config=False) == 2
    assert "--config: one, two all have the network of" in capsys.readouterr().err
    (configs / "two.py").unlink()
    assert not (tmp_path / "runs").exists()
    assert run(tmp_path, "cld", config=False) == 0
    said = capsys.readouterr().out
    assert "is a checkpoint of CLD-SGM\n" in said
    assert "its weights are of the network of one; cld(beta_min=4.0" in said and "t_min=1e-05" in said
    assert load_run(tmp_path / "runs" / "a").step == 5
    assert run(tmp_path, "cld", config=False) == 2  # the folder is taken
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.reference
def test_lsgm_is_checked_against_its_config(tmp_path, capsys):
    """Of the file's settings each that contradicts a config is named with both values."""
    official_files.save("lsgm", pieces("lsgm"), tmp_path / "file")
    for section, key, value in (
        ("sde", "beta_max", 19.0),
        ("vae", "latents_per_group", 2),
        ("objective", "t_min", 0.5),
    ):
        settings = official_files.settings_of("lsgm")
        before = settings.setdefault(section, {}).get(key)
        settings[section][key] = value
        config = official_files.config_file(tmp_path, settings)
        assert run(tmp_path, "lsgm", f"--config={config}", config=False) == 2
        err = capsys.readouterr().err
        assert f"{section}.{key}: {value} in the config" in err and f"was trained with {before!r} (" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def check_lsgm(kind, variables, averaged, read) -> None:
    """Each weight and statistic of the file is in the run's variables."""
    for one in (variables, averaged):
        vae = {"params": one.params["vae"], "batch_stats": one.state["batch_stats"]}
        jax.tree.map(np.testing.assert_array_equal, vae, read.vae_variables)
        assert set(one.state) == {"batch_stats", "spectral", "prior_spectral", "active"}
    if kind == "joint":
        assert jax.tree.structure(variables.params["prior"]) == jax.tree.structure(read.prior_params)
        jax.tree.map(np.testing.assert_array_equal, variables.params["prior"], read.prior_params)


def test_official_settings_of_lsgm_that_nothing_reads_are_left_out():
    """An official file says all of them; a config with them is refused, and without them says no less."""
    args = {
        "train_vae": False, "learning_rate_vae": 1e-3, "update_q_ema": True, "iw_sample_q": "ll_iw",
        "cont_kl_anneal": True, "kl_max_coeff_vada": 0.5, "weight_decay_norm_vae": 0.1, "progressive_input": "none",
        "progressive_combine": "cat", "num_channels_dae": 16,
    }  # fmt: skip
    idle = ("vae_finetune.learning_rate", "q_ema", "q_weighting", "kl_max", "vae_spectral_weight")
    idle = {*(f"latent.{name}" for name in idle), "model.progressive_combine"}
    found = interop.lsgm_settings.said(args, joint=True)
    assert {path: one.value for path, one in found.items()} == {
        "latent.train_vae": False, "model.progressive_input": "none", "model.nf": 16,
    }  # fmt: skip
    read = interop.lsgm_settings.said(args | {"train_vae": True, "progressive_input": "input_skip"}, joint=True)
    assert idle <= set(read)


@pytest.mark.slow
@pytest.mark.reference
def test_lsgm_as_variables(tmp_path):
    """By a config that its own settings make; its step counts the second stage."""
    official_files.save("lsgm", pieces("lsgm"), tmp_path / "file")
    found, read = interop.recognise(tmp_path / "file"), interop.read_lsgm(tmp_path / "file")
    config = from_dict(interop.lsgm_settings.make_settings(vars(found.content["args"]), read.step))
    converted = published.convert(found, config, published.shape_of(config.data), None)
    check_lsgm("joint", converted.variables, converted.averaged, read)
    assert converted.step == read.step == found.content["global_step"]
    settings = to_dict(config) | {"train": {"steps": read.step + 90}}
    settings["latent"] = settings["latent"] | {"vae_steps": 40}
    later = published.convert(found, from_dict(settings), published.shape_of(config.data), None)
    assert later.step == 40 + read.step


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("kind", ["joint", "vae"])
def test_lsgm_becomes_a_run(kind, tmp_path, monkeypatch, capsys):
    """Both stages: each weight of the file is in the run, and its images are those of the file's VAE."""
    content = fresh("lsgm")
    settings = official_files.settings_of("lsgm")
    if kind == "vae":
        del content["dae_state_dict"]
        settings["latent"]["vae_steps"] = content["global_step"]
        settings["train"]["steps"] = content["global_step"] + 50
    official_files.save("lsgm", content, tmp_path / "file")
    monkeypatch.setattr(_cli, "config_folders", lambda: [])
    words = [] if kind == "joint" else [f"--config={official_files.config_file(tmp_path, settings)}"]
    assert run(tmp_path, "lsgm", *words, config=False) == 0
    assert ("its own settings make one" in capsys.readouterr().out) == (kind == "joint")
    raw, average = (load_run(tmp_path / "runs" / "a", averaged=flag) for flag in (False, True))
    read = interop.read_lsgm(tmp_path / "file")
    assert raw.step == average.step == read.step == content["global_step"]
    assert type(raw.task).__name__ == {"joint": "LatentTask", "vae": "VAETask"}[kind]
    check_lsgm(kind, raw.variables, average.variables, read)
    if kind == "joint":
        assert raw.config.sde.name == "vp" and raw.task.prior.nf == vars(content["args"])["num_channels_dae"]
