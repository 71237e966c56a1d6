"""Settings: defaults, round trips, and errors that name the key and the fix."""

from __future__ import annotations

import dataclasses
import json
import typing

import jax.numpy as jnp
import pytest
from flax import linen as nn

from sgmjax import _schema as schema
from sgmjax import models, sdes
from sgmjax._ranges import PositiveFloat, PositiveInt, Range
from sgmjax.config import (
    MODEL,
    SDE,
    Config,
    ConfigError,
    complete,
    differences,
    from_dict,
    to_dict,
    validate_for_devices,
)
from sgmjax.spec import parameters
from sgmjax.tasks import build

MATRIX = [[0, 0], [0, 1]]
RECIPE = {"D": MATRIX, "Q": [[0, -1], [1, 0]]}


@pytest.mark.parametrize("sde", sdes.PROCESSES)
@pytest.mark.parametrize("model", models.NETWORKS)
def test_round_trip_is_exact(sde, model):
    process = {"name": sde} | (RECIPE if sde == "recipe" else {})
    config = from_dict({"sde": process, "model": {"name": model}, "optimizer": {"learning_rate": 1 / 3}})
    assert config.sde.constructor is sdes.PROCESSES[sde] and config.model.constructor is models.NETWORKS[model]
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(complete(to_dict(config))) == config
    assert hash(config) == hash(from_dict(to_dict(config)))


def test_defaults_satisfy_their_own_types():
    assert from_dict({}) == from_dict(to_dict(Config())) == Config()


def test_integers_become_floats_and_lists_tuples():
    config = from_dict({"sde": {"name": "recipe", **RECIPE}, "model": {"ch_mult": [1, 2]}})
    assert config.sde.D == ((0.0, 0.0), (0.0, 1.0)) and isinstance(config.sde.D[1][1], float)
    assert config.model.ch_mult == (1, 2)
    assert isinstance(from_dict({"optimizer": {"learning_rate": 1}}).optimizer.learning_rate, float)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.steps = 3


def test_complete_holds_every_setting():
    filled = complete({"train": {"steps": 7}}).to_dict()
    assert filled == to_dict(from_dict({"train": {"steps": 7}}))


def test_settings_that_may_be_none_take_values_in_a_config_dict():
    filled = complete({})
    filled.data.image_size = 32
    filled.optimizer.grad_clip = None
    config = from_dict(filled)
    assert config.data.image_size == 32 and config.optimizer.grad_clip is None


BAD = [
    ({"train": {"stpes": 5}}, "train.stpes: no such setting; did you mean train.steps?"),
    ({"trian": {}}, "trian: no such setting; did you mean train?"),
    ({"sde": {"name": "vp", "gamma": 1.0}}, "sde.gamma: no such setting of vp; there are name, beta_min, beta_max"),
    ({"train": {"steps": "5"}}, "train.steps: expected an integer, got '5' (str)"),
    ({"train": {"steps": 5.5}}, "train.steps: expected an integer, got 5.5 (float)"),
    ({"train": {"steps": True}}, "train.steps: expected an integer, got True (bool)"),
    ({"data": {"flip": 1}}, "data.flip: expected True or False, got 1 (int)"),
    ({"data": {"name": 3}}, "data.name: expected a string, got 3 (int)"),
    ({"sampling": {"options": 3}}, "sampling.options: expected a dictionary of settings, got 3 (int)"),
    (
        {"sampling": {"denoise": "tweedy"}},
        "sampling.denoise: expected True, False or one of sde, ode, tweedie, x_mean, got 'tweedy'; "
        "did you mean tweedie?",
    ),
    ({"optimizer": {"learning_rate": "fast"}}, "optimizer.learning_rate: expected a number, got 'fast' (str)"),
    ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate: must be finite, got nan"),
    ({"model": {"ch_mult": "12"}}, "model.ch_mult: expected a tuple, got '12' (str)"),
    ({"model": {"ch_mult": [1, "a"]}}, "model.ch_mult[1]: expected an integer, got 'a' (str)"),
    ({"model": {"ch_mult": [1, 0]}}, "model.ch_mult[1]: must be positive, got 0"),
    ({"train": 5}, "train: expected a dictionary of settings, got 5 (int)"),
    ({"train": {"steps": -1}}, "train.steps: must be positive, got -1"),
    ({"train": {"batch_size": 0}}, "train.batch_size: must be positive, got 0"),
    ({"seed": -1}, "seed: must be zero or positive, got -1"),
    ({"optimizer": {"ema_decay": 1.0}}, "optimizer.ema_decay: must be at least 0 and below 1, got 1.0"),
    ({"objective": {"t_min": 0.0}}, "objective.t_min: 0 is for a latent prior; use 1e-5"),
    ({"optimizer": {"grad_clip": -1.0}}, "optimizer.grad_clip: must be positive, got -1.0"),
    ({"data": {"image_size": 0}}, "data.image_size: must be positive, got 0"),
    ({"sde": {"name": "plsd"}}, "sde.name: no sde called 'plsd'; choose one of vp, "),
    ({"sde": {"name": "recipe"}}, "sde.D: must be given for recipe; set it to a tuple"),
    ({"sde": {"name": "recipe", "schedule": 1}}, "sde.schedule: follows from the data and the other settings"),
    ({"model": {"out_channels": 3}}, "model.out_channels: follows from the data and the other settings; leave it out"),
    ({"model": {"resblock_type": "bigan"}}, "expected one of biggan, ddpm, got 'bigan'; did you mean biggan?"),
    ({"train": {"batch_size": 10, "grad_accumulation": 3}}, "train.batch_size: 10 is not divisible by"),
    (
        {"train": {"steps_per_dispatch": 7}},
        "train.steps: 1000 is not a multiple of train.steps_per_dispatch=7; use 994",
    ),
    ({"sampling": {"steps": 1}}, "sampling.steps: 1 leaves nothing beside the denoising step"),
    ({"sde": {"beta_min": 9.0}}, "sde.beta_min: 9.0 is above sde.beta_max=8.0"),
    ({"vae": {"kl_min": 0.9}}, "vae.kl_min: 0.9 is above vae.kl_max=0.7; use at most 0.7"),
    ({"vae": {}, "latent": {"kl_max": 0.5}}, "latent.kl_min: 0.7 is above latent.kl_max=0.5; use at most 0.5"),
    ({"optimizer": {"learning_rate_min": 1.0}}, "optimizer.learning_rate_min: 1.0 is above optimizer.learning_rate="),
    (
        {"vae": {}, "latent": {"vae_steps": 10, "vae_optimizer": {"learning_rate": 1e-5}}},
        "latent.vae_optimizer.learning_rate_min: 0.0001 is above latent.vae_optimizer.learning_rate=1e-05; use at most",
    ),
]


@pytest.mark.parametrize(
    ("settings", "message"), BAD, ids=[message.split(":")[0] + str(i) for i, (_, message) in enumerate(BAD)]
)
def test_errors_name_the_key_and_the_fix(settings, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(settings)
    text = str(caught.value)
    assert message in text and "\n" not in text


def test_what_is_left_out_of_a_nested_section_is_its_own_default():
    """LSGM's optimisers are not those of `optimizer`: a setting of one leaves the others as they are."""
    latent = from_dict({"vae": {}, "latent": {"vae_steps": 1, "vae_optimizer": {"learning_rate": 5e-3}}}).latent
    assert latent.vae_optimizer == dataclasses.replace(schema.LatentConfig().vae_optimizer, learning_rate=5e-3)
    assert latent.vae_optimizer.name == "adamax" and latent.vae_optimizer.grad_clip is None
    assert latent.vae_finetune == schema.LatentConfig().vae_finetune


@pytest.mark.parametrize(
    ("train", "devices", "message"),
    [
        ({"batch_size": 12}, 8, "train.batch_size: 12 cannot be split over 8 devices; use 8 or 16"),
        ({"batch_size": 4}, 8, "use 8"),
        ({"batch_size": 16, "grad_accumulation": 4}, 8, "8 devices x 4 microbatches (train.grad_accumulation); use 32"),
        ({"batch_size": 64, "fsdp": 3}, 8, "train.fsdp: 3 does not divide the 8 devices; use one of 1, 2, 4, 8"),
    ],
)
def test_batches_that_do_not_divide(train, devices, message):
    with pytest.raises(ConfigError) as caught:
        validate_for_devices(from_dict({"train": train}), devices)
    assert message in str(caught.value)


def test_batches_that_divide():
    config = from_dict({"train": {"batch_size": 64, "grad_accumulation": 2, "fsdp": 2}})
    for devices, processes in ((2, 1), (8, 2), (32, 4)):
        validate_for_devices(config, devices, processes)


def test_differences():
    old, new = {"a": {"b": (1, 2), "c": 1}, "d": 0}, {"a": {"b": [1, 2], "c": 2}, "d": 0}
    assert differences(old, new) == [("a.c", 1, 2)]


def _unbounded(hint) -> bool:
    """Whether a type takes numbers without a range."""
    if typing.get_origin(hint) is typing.Annotated:
        return not any(isinstance(condition, Range) for condition in hint.__metadata__)
    return hint in (int, float) or any(map(_unbounded, typing.get_args(hint)))


def test_every_number_has_a_range():
    """A new setting without one would let nonsense through to the compiler. A matrix or a kernel is checked whole."""
    whole = {"fir_kernel", "D", "Q", "Sigma_inf", "Sigma_0"}
    sections = (schema.TrainConfig, schema.OptimizerConfig, schema.SamplingConfig)
    hints = {cls.__name__: parameters(cls) for cls in sections}
    hints |= {name: table.parameters(name) for table in (SDE, MODEL) for name in table.constructors}
    for owner, known in hints.items():
        for name, parameter in known.items():
            assert name in whole or not _unbounded(parameter.hint), f"{owner}.{name}"
    assert _unbounded(float) and _unbounded(tuple[int, ...]) and _unbounded(float | None)


# ------------------------------------------------------------------------------------------ what is declared once only
def toy_process(*, speed: PositiveFloat = 1.0):
    """VP at a constant rate."""
    return sdes.vp(beta_min=speed, beta_max=speed)


class ToyNetwork(nn.Module):
    """A linear map, whatever the time."""

    out_channels: int = 1
    width: PositiveInt = 4
    centered: bool = True
    dtype: typing.Any = jnp.float32

    @nn.compact
    def __call__(self, x, cond, *, train=False, labels=None):
        return nn.Dense(self.out_channels)(nn.Dense(self.width)(x))


def test_a_new_process_and_a_new_network_are_declared_once(monkeypatch):
    """A constructor and a line in a table: the settings, their checks and the run follow from the signature."""
    monkeypatch.setitem(sdes.PROCESSES, "toy", toy_process)
    monkeypatch.setitem(models.NETWORKS, "toy", ToyNetwork)
    settings = {"data": {"name": "ring"}, "sde": {"name": "toy", "speed": 2}, "model": {"name": "toy", "width": 8}}
    config = from_dict(complete(settings))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert to_dict(config)["sde"] == {"name": "toy", "speed": 2.0}
    problem = build.task(config, (2,))
    assert problem.sde.schedule.beta_max == 2.0
    assert problem.network == ToyNetwork(out_channels=2, width=8, dtype=jnp.dtype("float32"))
    for wrong, message in (
        ({"sde": {"name": "toy", "speed": -1}}, "sde.speed: must be positive, got -1.0"),
        ({"sde": {"name": "toy", "beta_min": 1}}, "sde.beta_min: no such setting of toy; there are name, speed"),
        ({"model": {"name": "toy", "widht": 8}}, "model.widht: no such setting of toy; did you mean model.width?"),
    ):
        with pytest.raises(ConfigError) as caught:
            from_dict(settings | wrong)
        assert str(caught.value) == message
