"""Every file of `configs/` loads, says what it is, and describes the published network."""

from __future__ import annotations

import ast
import dataclasses
import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import refdata
import tiers

from sgmjax import config as settings
from sgmjax import models
from sgmjax.samplers import plan
from sgmjax.tasks import build
from sgmjax.training import horizon

FILES = sorted((refdata.ROOT / "configs").glob("*.py"))
NAMES = {
    "digits", "edm_digits", "edm_mnist", "edm_cifar",
    "psld_digits", "psld_toy", "psld_mnist", "psld_cifar", "psld_cifar_ablation", "psld_celeba64",
    "psld_afhqv2",
    "cld_toy", "cld_mnist", "cld_cifar", "cld_celebahq256", "vp_mnist", "vp_cifar", "subvp_cifar", "ve_cifar",
    "ve_celebahq256", "recipe_toy", "classifier_digits", "classifier_mnist", "psld_cifar_classifier",
    "features_digits", "features_mnist", "study", "cifar_small",
    "ncsnv2_digits", "ncsnv2_mnist", "ncsnv2_cifar", "ncsnv2_celeba64", "ncsnv2_church96", "ncsnv2_bedroom128",
    "ncsnv2_tower128", "ncsnv2_ffhq256", "ncsn_cifar",
    "lsgm_digits", "lsgm_psld_digits", "lsgm_cld_digits", "lsgm_mnist", "lsgm_psld_mnist", "lsgm_cld_mnist",
    "lsgm_omniglot", "lsgm_cifar_fid", "lsgm_cifar_balanced", "lsgm_cifar_nll", "lsgm_psld_cifar", "lsgm_celebahq256",
    "lsgm_celebahq256_qualitative",
}  # fmt: skip

# Trainable parameters of the official PyTorch networks, counted by building them (Fourier frequencies are fixed).
OFFICIAL_PARAMETERS = {
    "psld_cifar": 97_627_782,
    "psld_cifar_ablation": 39_397_254,
    "psld_cifar_classifier": 56_666_368,
    "psld_celeba64": 61_811_334,
    "psld_afhqv2": 65_816_582,
    "cld_cifar": 107_593_859,
    "cld_celebahq256": 103_073_795,
    "vp_cifar": 106_632_579,
    "subvp_cifar": 106_632_579,
    "ve_cifar": 107_586_947,
    "ve_celebahq256": 65_574_421,
    "edm_cifar": 55_733_891 - 1_152,  # without the embedding of augmentations, 128 x 9, which is not here
    "ncsn_cifar": 30_117_635,
    "ncsnv2_cifar": 29_694_083,
    "ncsnv2_celeba64": 29_694_083,
    "ncsnv2_church96": 83_445_379,
    "ncsnv2_bedroom128": 83_445_379,
    "ncsnv2_tower128": 83_445_379,
    "ncsnv2_ffhq256": 94_132_611,
}
# Of the VAE and of its prior, mixing logits included; None for the priors that nobody published.
OFFICIAL_LATENT = {
    "lsgm_mnist": (3_005_822, 63_774_544),
    "lsgm_mnist:vae": (3_005_822, 63_774_544),
    "lsgm_psld_mnist": (3_005_822, None),
    "lsgm_cld_mnist": (3_005_822, None),
    "lsgm_omniglot": (5_384_190, 97_804_152),
    "lsgm_cifar_fid": (100_867_740, 375_561_064),
    "lsgm_cifar_balanced": (100_867_740, 375_561_064),
    "lsgm_cifar_nll": (130_622_772, 375_561_064),
    "lsgm_psld_cifar": (100_867_740, None),
    "lsgm_celebahq256": (51_296_572, 408_367_680),
    "lsgm_celebahq256_qualitative": (17_789_540, 440_116_368),
    "lsgm_celebahq256_qualitative:prior": (17_789_540, 680_827_984),
}
ALIKE = {  # another one has nearly the same networks
    "lsgm_mnist:vae", "lsgm_cld_mnist", "lsgm_cifar_balanced", "lsgm_psld_cifar", "lsgm_cifar_fid", "lsgm_omniglot",
    "lsgm_celebahq256_qualitative:prior", "lsgm_celebahq256_qualitative", "lsgm_celebahq256", "subvp_cifar",
    "ve_cifar", "vp_cifar", "psld_cifar_classifier", "ncsnv2_tower128", "lsgm_cifar_nll", "psld_celeba64",
    "psld_afhqv2", "ncsnv2_celeba64", "ncsnv2_church96", "ncsnv2_bedroom128", "lsgm_cld_digits", "cld_mnist",
    "vp_mnist", "ncsnv2_mnist", "classifier_mnist", "features_mnist", "edm_mnist", "edm_cifar",
    "cld_celebahq256", "ve_celebahq256", "lsgm_psld_mnist",
}  # fmt: skip
PROCESSES = {
    "classifier": "psld",
    "digits": "psld",
    "study": "psld",
    "cifar": "psld",
    "ncsnv2": "ve",
    "ncsn": "ve",
}  # by the first word of the name
LATENT_PROCESSES = {
    "lsgm_psld": "psld",
    "lsgm_cld": "cld",
    "lsgm_cifar_nll": "geometric_vp",
    "lsgm_celebahq256_qualitative": "geometric_vp",
    "lsgm": "vp",
}  # by the beginning of the name
IMAGES = {"cifar10": (32, 3), "mnist": (28, 1), "digits": (8, 1)}  # side and colours where the data decide the side


def load(name: str) -> settings.Config:
    """The settings of `configs/<name>.py`, or with an argument of `<name>:<argument>`."""
    stem, *argument = name.split(":")
    return settings.from_dict(runpy.run_path(str(refdata.ROOT / "configs" / f"{stem}.py"))["get_config"](*argument))


def phases(sde) -> tuple[int, int]:
    """Variables per data dimension that the network sees, and for how many of them it predicts the noise."""
    match sde.name:
        case "psld":
            return 2, 2 if sde.gamma > 0 else 1
        case "cld":
            return 2, 1
        case "recipe":
            return len(sde.D), sum(any(row) for row in sde.D)
        case _:
            return 1, 1


def parameters(config: settings.Config) -> int:
    side, colours = IMAGES.get(config.data.name, (None, 3))
    if config.model.name == "mlp":
        side, colours, event = None, 2, ()
    else:
        side = config.data.image_size or side
        event = (side, side)
    noised, classifies = models.sees_noise(config.model), models.classifies(config.model)
    seen, predicted = phases(config.sde) if noised else (1, 1)
    network = models.build(
        config.model,
        in_channels=seen * colours,
        out_channels=10 if classifies else predicted * colours,
        image_size=side,
        centered=config.data.centered,
        dtype=jnp.float32,
    )
    x = jax.ShapeDtypeStruct((1, *event, seen * colours), jnp.float32)
    cond = jax.ShapeDtypeStruct((1,), jnp.float32)

    init = functools.partial(network.init_with_output, train=False)
    output, variables = jax.eval_shape(init, jax.random.key(0), *((x, cond) if noised else (x,)))
    output = output if noised else output[-1]  # features come before the logits
    assert output.shape == ((1, 10) if classifies else (1, *event, predicted * colours))
    return models.count_parameters(variables["params"])


def latent_parameters(config: settings.Config) -> tuple[int, int]:
    """Of the VAE, and of the prior with its mixing logits."""
    side, colours = IMAGES.get(config.data.name, (config.data.image_size, 1 if config.data.binarize != "none" else 3))
    config = dataclasses.replace(config, latent=dataclasses.replace(config.latent, vae_from=None))
    task = build.task(config, (side, side, colours), None)
    params = jax.eval_shape(task.init, jax.random.key(0)).params
    return models.count_parameters(params["vae"]), models.count_parameters(params["prior"])


def test_the_runs_that_the_project_promises_are_there():
    assert {path.stem for path in FILES} == NAMES
    assert {name.partition(":")[0] for name in ALIKE} <= NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_header_says_command_data_hardware_and_expectation(path: Path):
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"\nCommand:   python -m sgmjax.train --config=configs/{path.name}" in header
    for field in ("Data:      ", "Hardware:  ", "Expected:  "):
        assert f"\n{field}" in header, field


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_settings_are_valid_and_survive_a_round_trip(path: Path):
    config = load(path.stem)
    assert settings.from_dict(settings.to_dict(config)) == config
    settings.validate_for_devices(config, 8)  # every batch splits over one TPU host
    plan.check(config.sampling, build.process(config.sde))  # traces the sampler with every step
    first = path.stem.split("_")[0]
    latent = next((process for name, process in LATENT_PROCESSES.items() if path.stem.startswith(name)), None)
    if models.sees_noise(config.model):  # features are of clean images
        assert config.sde.name == (latent or PROCESSES.get(first, first))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_runs_state_their_warmup_and_average_and_neither_outlasts_them(path: Path, monkeypatch):
    """Stated, so that they do not change with a default that is chosen for short runs."""
    assert horizon.outlasting(load(path.stem)) == []
    monkeypatch.setattr(settings, "complete", lambda mapping: mapping)
    stated = runpy.run_path(str(path))["get_config"]()
    sections = [stated["optimizer"]]
    if "vae" in stated:
        sections += [stated["latent"][name] for name in ("vae_optimizer", "vae_finetune") if name in stated["latent"]]
    for section in sections:
        assert {"warmup_steps", "ema_decay", "ema_warmup"} <= set(section)


def test_a_run_of_which_nothing_is_stated_is_long_enough_for_its_warmup_and_average():
    assert horizon.outlasting(settings.Config()) == []


@pytest.mark.parametrize("process", ["vp", "subvp", "ve", "cld", "psld", "third_order"])
def test_digits_of_any_process(process: str):
    settings_of = runpy.run_path(str(refdata.ROOT / "configs" / "digits.py"))["get_config"](process)
    config = settings.from_dict(settings_of)
    assert config.sde.name == process
    build.task(config, (8, 8, 1), 10)  # all sections fit together


@pytest.mark.parametrize("name", tiers.alike(sorted(OFFICIAL_PARAMETERS), OFFICIAL_PARAMETERS.keys() - ALIKE))
def test_published_networks_have_the_official_number_of_parameters(name: str):
    assert parameters(load(name)) == OFFICIAL_PARAMETERS[name]


@pytest.mark.parametrize("name", tiers.alike(sorted(OFFICIAL_LATENT), OFFICIAL_LATENT.keys() - ALIKE))
def test_published_vaes_and_priors_have_the_official_number_of_parameters(name: str):
    vae, prior = latent_parameters(load(name))
    official_vae, official_prior = OFFICIAL_LATENT[name]
    assert vae == official_vae
    assert prior == official_prior if official_prior is not None else prior > 10**7


SMALL = NAMES - OFFICIAL_PARAMETERS.keys() - OFFICIAL_LATENT.keys()


@pytest.mark.parametrize("name", tiers.alike(sorted(SMALL), SMALL - ALIKE))
def test_networks_for_two_cores_build_and_are_small(name: str):
    config = load(name)
    assert 10_000 < (parameters(config) if config.vae is None else sum(latent_parameters(config))) < 3_000_000


def test_a_relative_is_its_base_but_for_what_it_states(tmp_path):
    base = {"sde": {"name": "vp", "beta_max": 15.0}, "optimizer": {"eps": 1e-6}, "train": {"steps": 70}}
    base |= {"sampling": {"sampler": "pc", "options": {"snr": 0.1, "n_steps": 2}, "t_min": 1e-4}}
    changes = {"sde": {"name": "ve", "sigma_max": 9.0}, "train": {"batch_size": 8}}
    changes |= {"sampling": {"options": {"predictor": "ancestral"}}}
    call = f"get_config(kind='one'): return {{}} or complete({base!r}) if kind == 'one' else complete({{}})"
    (tmp_path / "base.py").write_text(f"from sgmjax.config import complete\ndef {call}\n")
    for argument in ("", ":one"):
        found = settings.from_dict(settings.relative(str(tmp_path / "other.py"), f"base{argument}", changes))
        expected = {**base, "sde": changes["sde"], "train": {"steps": 70, "batch_size": 8}}
        expected |= {"sampling": {**base["sampling"], **changes["sampling"]}}
        assert found == settings.from_dict(expected)
    with pytest.raises(settings.ConfigError, match="there is no config bass beside .*other.py"):
        settings.relative(str(tmp_path / "other.py"), "bass", {})
    with pytest.raises(settings.ConfigError, match="train.stepz: no such setting"):
        settings.relative(str(tmp_path / "other.py"), "base", {"train": {"stepz": 1}})


def test_stages_of_lsgm_that_were_published_apart():
    mnist = load("lsgm_mnist:vae")
    assert mnist.latent.vae_steps == mnist.train.steps and mnist.vae == load("lsgm_mnist").vae
    first, last = load("lsgm_celebahq256_qualitative"), load("lsgm_celebahq256_qualitative:prior")
    assert last.vae == first.vae and not last.latent.train_vae and last.sde.name == "vp"
    assert last.latent.vae_from == "runs/lsgm_celebahq256_qualitative" and last.latent.vae_steps == 0
    settings.validate_for_devices(last, 8)
    for name in ("lsgm_mnist", "lsgm_celebahq256_qualitative", "lsgm_digits"):
        with pytest.raises(ValueError, match="choose .* or "):
            load(f"{name}:nothing")


def test_gamma_zero_is_the_official_cld_of_the_ablation():
    config = load("psld_cifar_ablation")
    sde = settings.SDE.section("psld", gamma=0.0, nu=4.0)
    assert parameters(settings.Config(data=config.data, sde=sde, model=config.model)) == 39_393_795


def test_celeba64_with_the_switches_of_the_official_scripts():
    config = load("psld_celeba64")
    model = config.model.replace(fir=True, progressive_input="residual", embedding_type="fourier")
    assert parameters(dataclasses.replace(config, model=model)) == 62_769_158
