"""What is set and nothing reads is refused in one line; what belongs to a run's own sampler is passed over."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sgmjax import _cli
from sgmjax.config import MODEL, Config, ConfigError, OptimizerConfig, from_dict, to_dict, unread
from sgmjax.training import workdir
from sgmjax.training.load import load_run, read_config

CLASSIFIER = {"model": {"name": "mlp_classifier"}, "data": {"name": "ring"}}
MEANS = "means nothing for"
VAIN = [
    ({"vae": {}, "objective": {"weighting": "likelihood"}}, f"objective.weighting: {MEANS} a latent prior, whose"),
    ({"vae": {}, "objective": {"reduce": "sum"}}, f"objective.reduce: {MEANS} a latent prior"),
    ({"vae": {}, "objective": {"time_sampling": "importance"}}, f"objective.time_sampling: {MEANS} a latent prior"),
    ({"vae": {}, "objective": {"num_levels": 3}}, f"objective.num_levels: {MEANS} a latent prior"),
    ({"vae": {}, "objective": {"anneal_power": 1.0}}, f"objective.anneal_power: {MEANS} a latent prior"),
    ({"vae": {}, "objective": {"matching": "dsm"}}, f"objective.matching: {MEANS} a latent prior, which predicts eps"),
    ({"vae": {}, "objective": {"parameterization": "mixed"}}, "which predicts eps (its normal part is mixed in)"),
    (
        {"vae": {}, "objective": {"label_dropout": 0.1}},
        "objective.label_dropout: means nothing for a latent prior, which",
    ),
    ({"vae": {}, "data": {"uniform_dequantization": True}}, f"data.uniform_dequantization: {MEANS} a VAE"),
    (
        {"vae": {}, "latent": {"vae_optimizer": {"eps": 1e-2}}},
        "latent.vae_optimizer: is of the steps that train the VAE alone, and latent.vae_steps is 0; set that too",
    ),
    *(
        ({"vae": {}, "latent": {"train_vae": False, key: value}}, f"latent.{key}: is of the VAE's training beside the")
        for key, value in (
            ("vae_finetune", {"eps": 1e-2}),
            ("q_ema", True),
            ("q_weighting", "ll_iw"),
            ("kl_min", 0.1),
            ("kl_balance", "equal"),
            ("vae_spectral_weight", 0.1),
        )
    ),
    (
        {"model": {"name": "ncsnpp", "fourier_scale": 30}},
        "model.fourier_scale: is of model.embedding_type='fourier', and it is 'positional'; set that too, or leave it",
    ),
    (
        {"model": {"name": "unet1d", "fourier_scale": 30, "embedding_type": "positional"}},
        "model.fourier_scale: is of model.embedding_type='fourier'",
    ),
    ({"model": {"name": "ncsnpp", "fir_kernel": [1, 2, 1]}}, "model.fir_kernel: is of model.fir=True, and it is False"),
    (
        {"model": {"name": "ncsnpp", "progressive_combine": "cat", "progressive_input": "residual"}},
        "model.progressive_combine: is of model.progressive_input='input_skip', and it is 'residual'; set that too",
    ),
    (
        {"model": {"name": "ncsnpp", "resamp_with_conv": False}},
        "model.resamp_with_conv: is of model.resblock_type='ddpm', and it is 'biggan'; set that too, or leave it out",
    ),
    (
        CLASSIFIER | {"model": {"name": "ncsnpp_classifier", "fir_kernel": [1, 2, 1]}},
        "model.fir_kernel: is of model.fir=True",
    ),
    (
        {"model": {"name": "ddpm", "conditional": False}, "objective": {"time_conditioning": "t999"}},
        "objective.time_conditioning: is told to a network with model.conditional, and that is False; leave it out",
    ),
    (
        {"model": {"name": "ncsnpp", "conditional": False, "embedding_type": "fourier"}},
        "model.embedding_type: is of the embedding of the time, and model.conditional is False; leave it out",
    ),
    (
        {"model": {"name": "ncsnpp", "conditional": False, "embedding_dim": 8}},
        "model.embedding_dim: is of the embedding of the time, and model.conditional is False; leave it out",
    ),
    ({"vae": {"decoder": "dl", "num_mixtures": 3}}, "vae.num_mixtures: is of decoder 'dml', and vae.decoder is 'dl'"),
    ({"vae": {"decoder": "normal", "approximate_tails": True}}, "vae.approximate_tails: is of decoders 'dl' and 'dml'"),
    (
        {"vae": {"num_blocks": 0, "num_scales": 2, "preprocess_cells": 7}},
        "vae.preprocess_cells: is of the blocks, and vae.num_blocks is 0; leave it out",
    ),
    ({"data": {"binarize": "dynamic"}}, "data.binarize: 'dynamic' is drawn by the training of a VAE; use 'static'"),
    ({"latent": {"vae_steps": 1}}, "latent.vae_steps: is of the training of a VAE; without a section vae leave it out"),
    ({"latent": {"vae_optimizer": {"eps": 1e-2}}}, "latent.vae_optimizer: is of the training of a VAE"),
    ({"latent": {"kl_max": 0.5}}, "latent.kl_max: is of the training of a VAE"),
    (
        {"sampling": {"rtol": 0.1}},
        "sampling.rtol: 0.1 means nothing for sampler 'sscs', which steps on a grid; set steps",
    ),
    ({"sampling": {"sampler": "pc", "atol": 0.1}}, f"sampling.atol: 0.1 {MEANS} sampler 'pc'"),
    ({"sampling": {"sampler": "ode", "steps": 9}}, f"sampling.steps: 9 {MEANS} sampler 'ode', which chooses its own"),
    ({"sampling": {"sampler": "ggf", "grid": "rho"}}, f"sampling.grid: 'rho' {MEANS} sampler 'ggf'"),
    ({"sampling": {"sampler": "ode", "rho": 5.0}}, f"sampling.rho: 5.0 {MEANS} sampler 'ode'"),
    ({"sampling": {"rho": 5.0}}, "sampling.rho: is of grid 'rho', and sampling.grid is 'quadratic'; set that too"),
    ({"sampling": {"power": 5.0, "grid": "rho"}}, "sampling.power: is of grid 'power', and sampling.grid is 'rho'"),
    ({"objective": {"num_levels": 9}}, "objective.num_levels: is of objective.time_sampling 'levels'; set that too"),
    ({"objective": {"anneal_power": 1.0}}, "objective.anneal_power: is of objective.weighting 'annealed'; set that"),
    ({"data": {"num_samples": 9}}, f"data.num_samples: 9 {MEANS} digits (data.name='digits'); leave it out"),
    ({"data": {"data_dir": "/a"}}, f"data.data_dir: '/a' {MEANS} digits"),
    (
        {"data": {"eval_split": "validation"}},
        "data.eval_split: 'validation' is no part of digits, which hold out 'test'",
    ),
    ({"data": {"path": "/a"}}, "data.path: is read with data.name='npz', and data.name is 'digits'; set that too"),
    ({"data": {"name": "ring", "flip": True}}, f"data.flip: True {MEANS} generated points (data.name='ring')"),
    ({"data": {"name": "ring", "split": "test"}}, f"data.split: 'test' {MEANS} generated points"),
    ({"data": {"name": "folder", "num_samples": 9}}, f"data.num_samples: 9 {MEANS} a folder of images"),
    ({"data": {"name": "cifar10", "num_samples": 9}}, f"data.num_samples: 9 {MEANS} a set of images (data.name='cifar"),
    (
        {"data": {"name": "npz", "path": "/a", "eval_split": "val"}},
        "'val' is no part of arrays, which have 'test' (x_te",
    ),
    (CLASSIFIER | {"objective": {"weighting": "likelihood"}}, f"objective.weighting: {MEANS} a classifier, whose loss"),
    (CLASSIFIER | {"objective": {"label_dropout": 0.1}}, f"objective.label_dropout: {MEANS} a classifier"),
    (CLASSIFIER | {"sampling": {"num": 5}}, f"sampling.num: {MEANS} a classifier, which draws no samples"),
    (CLASSIFIER | {"objective": {"anneal_power": 1.0}}, f"objective.anneal_power: {MEANS} a classifier"),
    (CLASSIFIER | {"data": {"uniform_dequantization": True}}, f"data.uniform_dequantization: {MEANS} a classifier"),
    (CLASSIFIER | {"model": {"name": "mlp_classifier", "num_classes": 3}}, "no such setting of mlp_classifier"),
]


@pytest.mark.parametrize(("settings", "message"), VAIN, ids=[message for _, message in VAIN])
def test_what_nothing_reads_is_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(settings)
    assert message in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


READ = [
    {"vae": {}, "objective": {"t_min": 0.01, "time_conditioning": "t999"}, "data": {"binarize": "dynamic"}},
    {"vae": {}, "latent": {"vae_steps": 1, "kl_max": 0.9, "vae_finetune": OptimizerConfig(eps=1e-2)}},
    {"vae": {}, "latent": {"vae_steps": 1, "train_vae": False, "vae_optimizer": OptimizerConfig(eps=1e-2)}},
    {
        "model": {
            "name": "ncsnpp",
            "embedding_type": "fourier",
            "fourier_scale": 30.0,
            "fir": True,
            "fir_kernel": (1, 2),
        }
    },
    {"model": {"name": "ncsnpp", "progressive_input": "input_skip", "progressive_combine": "cat"}},
    {"model": {"name": "ncsnpp", "resblock_type": "ddpm", "resamp_with_conv": False}},
    {"model": {"name": "ddpm", "resamp_with_conv": False}},
    {
        "model": {"name": "ddpm", "conditional": False, "scale_by_sigma": True},
        "objective": {"time_conditioning": "sigma"},
    },
    {"model": {"name": "ncsnpp", "conditional": False, "embedding_dim": 8, "num_classes": 10}},
    {
        "model": {"name": "ncsnpp", "conditional": False, "scale_by_sigma": True, "embedding_type": "fourier"},
        "objective": {"time_conditioning": "sigma"},
    },
    {"sampling": {"sampler": "ode", "rtol": 0.1, "atol": 0.1, "t_min": 1e-4, "denoise": False}},
    {"sampling": {"grid": "rho", "rho": 5.0, "steps": 9}},
    {"sampling": {"grid": "power", "power": 3.0}},
    {"objective": {"weighting": "annealed", "anneal_power": 1.0}},
    {"objective": {"time_sampling": "levels", "num_levels": 9}},
    {"data": {"eval_split": None, "image_size": 16, "flip": True}},
    {"data": {"name": "ring", "num_samples": 9, "eval_split": None}},
    {"data": {"name": "npz", "path": "/a", "flip": True, "eval_split": None}},
    {"data": {"name": "folder", "data_dir": "/a", "split": "training", "eval_split": "val", "in_memory": False}},
    {"data": {"name": "mnist", "data_dir": "/a", "split": "train[:9]", "memory_limit_gb": 1.0, "flip": True}},
    CLASSIFIER | {"objective": {"matching": "dsm", "time_conditioning": "t999", "t_min": 1e-4}},
]


@pytest.mark.parametrize("settings", READ, ids=str)
def test_what_is_read_is_not(settings):
    config = from_dict(settings)
    assert unread(config) == {}
    for section, values in settings.items():
        for key, value in values.items():
            assert getattr(getattr(config, section), key) == value


def test_values_that_are_the_defaults_are_not_set():
    assert from_dict({"sampling": {"sampler": "ode", "steps": 50}, "latent": {"kl_max": 1.0}, "data": {"path": None}})


def test_what_is_not_refused_takes_its_default():
    settings = {"sampling": {"rtol": 0.1, "rho": 5.0, "steps": 9}, "objective": {"num_levels": 9}}
    assert from_dict(settings, refuse=lambda path: False) == from_dict({"sampling": {"steps": 9}})
    with pytest.raises(ConfigError, match=r"sampling\.rho"):
        from_dict(settings, refuse=lambda path: path == "sampling.rho")


# ------------------------------------------------------------------------------------------------------ another sampler
SETTINGS = {
    "data": {"name": "ring"},
    "model": {"name": "mlp"},
    "sampling": {"grid": "rho", "rho": 5.0, "steps": 3, "options": {"offset": 0.0}},
}


@pytest.fixture
def folder(tmp_path):
    """The folder of a run whose sampler is on a grid, with settings that others do not read."""
    path = tmp_path / "run"
    path.mkdir()
    workdir.write_record(path, {"config": to_dict(from_dict(SETTINGS))}, workdir.DataRecord((2,), None, False))
    return path


def test_another_sampler_does_not_read_what_the_run_has_set_for_its_own(folder):
    sampling = read_config(folder, {"sampler": "ode", "rtol": 1e-2}).sampling
    assert (sampling.steps, sampling.grid, sampling.rho, sampling.rtol) == (50, "quadratic", 7.0, 1e-2)
    assert sampling.options == {}
    sampling = read_config(folder, {"sampler": "em"}).sampling
    assert (sampling.steps, sampling.grid, sampling.rho) == (3, "rho", 5.0)  # of the same kind
    assert read_config(folder, {"grid": "uniform"}).sampling.rho == 7.0
    assert read_config(folder) == workdir.read_config(folder) == from_dict(SETTINGS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampler": "ode", "steps": 9}, "sampling.steps: 9 means nothing for sampler 'ode'"),
        ({"rtol": 1e-2}, "sampling.rtol: 0.01 means nothing for sampler 'sscs'"),
        ({"grid": "uniform", "rho": 3.0}, "sampling.rho: is of grid 'rho'"),
    ],
)
def test_what_is_given_with_it_is_checked(folder, given, message):
    with pytest.raises(ConfigError, match=message):
        load_run(folder, sampling=given)


def test_an_override_makes_settings_of_the_file_idle(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from sgmjax.config import complete\n\n\ndef get_config():\n"
        "    return complete({'sampling': {'steps': 9, 'grid': 'rho', 'rho': 5.0}})\n"
    )
    config, _ = _cli.read_config(str(file), [("sampling.sampler", "ode")])
    assert config.sampling.sampler == "ode" and config.sampling.steps == 50
    with pytest.raises(ConfigError, match=r"sampling\.steps: 8 means nothing"):
        _cli.read_config(str(file), [("sampling.sampler", "ode"), ("sampling.steps", 8)])
    with pytest.raises(ConfigError, match=r"latent\.vae_optimizer: is of the training of a VAE"):
        _cli.read_config(str(file), [("latent.vae_optimizer.eps", 1e-2)])
    file.write_text("def get_config():\n    return {'sampling': {'rtol': 0.1}}\n")
    with pytest.raises(ConfigError, match=r"sampling\.rtol: 0\.1 means nothing"):
        _cli.read_config(str(file), [("train.steps", 8)])


# -------------------------------------------------------------------------------------------------------- earlier runs
def test_a_run_folder_that_has_something_idle_can_be_read(folder, tmp_path):
    """An earlier version wrote all that was set into config.json."""
    record = json.loads((folder / "config.json").read_text())
    record["config"]["sampling"]["rtol"] = 0.1
    record["config"]["objective"]["num_levels"] = 9
    record["config"]["model"] = {"name": "ncsnpp", "fir_kernel": [1, 2, 1], "nf": 16}
    (tmp_path / "config.json").write_text(json.dumps(record))
    config = workdir.read_config(tmp_path)
    assert config.model == MODEL.section("ncsnpp", nf=16)
    config = dataclasses.replace(config, model=workdir.read_config(folder).model)
    assert config == workdir.read_config(folder) and from_dict(to_dict(config)) == config != Config()
