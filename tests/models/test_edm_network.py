"""EDM's networks, sampler and loss against what the official program gave on fixed inputs, in float64.

`edm_song.npz` holds random networks of NVlabs/edm (training/networks.py) with its outputs: `EDMPrecond` around SongUNet
as DDPM++, DDPM++ with classes, NCSN++; `edm_sampler` of 9 steps without and with churn; `EDMLoss`. Its casts to float32
were taken out.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import objectives, preconditioning, samplers, sdes
from sgmjax._inputs import InputError
from sgmjax.interop import OfficialEDM, edm_denoiser

FILE = Path(__file__).with_name("edm_song.npz")
NAMES = ("ddpmpp", "ddpmpp_labels", "ncsnpp")
SAMPLER = {"sampled": {}, "churned": {"S_churn": 5.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}}


@pytest.fixture(scope="module")
def recorded():
    with np.load(FILE) as archive:
        return dict(archive)


def snapshot(recorded, name: str) -> OfficialEDM:
    prefix = f"{name}/state/"
    state = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
    return OfficialEDM("EDMPrecond", json.loads(str(recorded[f"{name}/kwargs"])), state, {})


def denoiser(recorded, name: str):
    """The model and its parameters in float64."""
    model, params = edm_denoiser(snapshot(recorded, name), sdes.edm())
    network = model.network.clone(dtype=jnp.float64)
    return dataclasses.replace(model, network=network), jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)


def last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1), jnp.float64)


@pytest.mark.parametrize("name", NAMES)
def test_the_denoiser_is_the_official_one(recorded, name, x64):
    model, params = denoiser(recorded, name)
    labels = recorded.get(f"{name}/labels")
    x, sigma = last(recorded[f"{name}/x"]), jnp.asarray(recorded[f"{name}/sigma"])
    found = jax.jit(lambda x: model.denoiser(params, labels=labels)(x, sigma))(x)
    expected = np.moveaxis(recorded[f"{name}/D"], 1, -1)
    # the softmax of attention is float32 whatever the type
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("how", SAMPLER)
@pytest.mark.parametrize("name", NAMES)
def test_the_sampler_is_the_official_one(recorded, name, how, x64):
    model, params = denoiser(recorded, name)
    labels = recorded.get(f"{name}/labels")
    score_fn = model.score_fn(params, labels=None if labels is None else labels[:2])
    times = samplers.time_grid("rho", 9, t_min=0.002 / 80, sde=model.sde)
    noise = jnp.stack([last(one) for one in recorded[f"{name}/noises"][:8]])[:, None, :, None]
    options = SAMPLER[how] | ({"noise": noise} if how == "churned" else {})
    initial = 80 * last(recorded[f"{name}/latents"])[:, None]
    samples, info = jax.jit(
        lambda: samplers.edm(
            jax.random.key(0), score_fn, model.sde, (2, 8, 8, 3), times=times, initial=initial, dtype=jnp.float64,
            **options,
        )
    )()  # fmt: skip
    expected = np.moveaxis(recorded[f"{name}/{how}"], 1, -1)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert info.nfe == 17


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_official_one(recorded, name, x64):
    model, params = denoiser(recorded, name)
    labels = recorded.get(f"{name}/labels")
    sigma = jnp.asarray(recorded[f"{name}/loss_sigma"])
    found = objectives.denoising_loss(
        model.denoiser(params, labels=labels), last(recorded[f"{name}/images"]), sigma,
        last(recorded[f"{name}/loss_noise"]),
        weight=lambda s: preconditioning.scales("edm", s).c_out ** -2.0,
    )  # fmt: skip
    np.testing.assert_allclose(found, recorded[f"{name}/loss"], rtol=1e-6)


def test_what_is_not_here_is_named(recorded):
    known = snapshot(recorded, "ddpmpp")
    for change, message in (
        ({"class_name": "VPPrecond"}, "is a VPPrecond; only EDMPrecond is known here"),
        (
            {"init_kwargs": known.init_kwargs | {"model_type": "DhariwalUNet"}},
            "model_type is DhariwalUNet; only SongUNet",
        ),
        ({"init_kwargs": known.init_kwargs | {"decoder_type": "skip"}}, "decoder_type='skip'"),
        ({"init_kwargs": known.init_kwargs | {"channel_mult_noise": 2}}, "channel_mult_noise: known are 1"),
        ({"state_dict": known.state_dict | {"model.enc.8x8_odd.weight": np.ones(3)}}, "is not used by this network"),
        ({"state_dict": dict(list(known.state_dict.items())[:-1])}, "the state dict lacks 1 parameters"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            edm_denoiser(dataclasses.replace(known, **change), sdes.vp())
        assert "\n" not in str(caught.value)
