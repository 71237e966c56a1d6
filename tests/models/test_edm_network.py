"""EDM's networks, sampler and loss against what the official program gave on fixed inputs, in float64.

`edm_song.npz` holds random networks of NVlabs/edm (training/networks.py) with its outputs: `EDMPrecond` around SongUNet
as DDPM++, DDPM++ with classes, NCSN++, and around DhariwalUNet (ADM) with classes; `edm_sampler` of 9 steps without and
with churn; `EDMLoss`. Its casts to float32 were taken out, and the heads of ADM have 4 channels, not 64, so that small
networks have several.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import DenoiserModel, models, objectives, preconditioning, samplers, sdes
from sgmjax._inputs import InputError
from sgmjax.config import MODEL
from sgmjax.data.pipeline import SOURCES
from sgmjax.interop import OfficialEDM, edm_denoiser, edm_params, edm_settings
from sgmjax.interop.edm_network import network_settings

FILE = Path(__file__).with_name("edm_song.npz")
NAMES = ("ddpmpp", "ddpmpp_labels", "ncsnpp", "adm")
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
    official = snapshot(recorded, name)
    if name == "adm":
        network = models.ADM(**network_settings(official), channels_per_head=4, out_channels=3)
        model, params = DenoiserModel(sdes.edm(), network), edm_params(official, network)
    else:
        model, params = edm_denoiser(official, sdes.edm())
    network = model.network.clone(dtype=jnp.float64)
    return dataclasses.replace(model, network=network), jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)


def last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1), jnp.float64)


@pytest.mark.parametrize("name", tiers.alike(NAMES, NAMES[-1:]))
def test_the_denoiser_is_the_official_one(recorded, name, x64):
    model, params = denoiser(recorded, name)
    labels = recorded.get(f"{name}/labels")
    x, sigma = last(recorded[f"{name}/x"]), jnp.asarray(recorded[f"{name}/sigma"])
    found = jax.jit(lambda x: model.denoiser(params, labels=labels)(x, sigma))(x)
    expected = np.moveaxis(recorded[f"{name}/D"], 1, -1)
    # the softmax of attention is float32 whatever the type
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name, how",
    tiers.alike(itertools.product(NAMES, SAMPLER), [("adm", "churned")]),
)
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


@pytest.mark.parametrize("name", tiers.alike(NAMES, NAMES[::2]))
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
            {"init_kwargs": known.init_kwargs | {"model_type": "UViT"}},
            "model_type is UViT; known are SongUNet",
        ),
        ({"init_kwargs": known.init_kwargs | {"channel_mult_emb": 2}}, "channel_mult_emb is 2; only 4 is known here"),
        ({"init_kwargs": {"model_type": "SongUNet"}}, "does not say its network's img_resolution"),
        ({"init_kwargs": known.init_kwargs | {"decoder_type": "skip"}}, "decoder_type='skip'"),
        ({"init_kwargs": known.init_kwargs | {"channel_mult_noise": 2}}, "channel_mult_noise: known are 1"),
        ({"state_dict": known.state_dict | {"model.enc.8x8_odd.weight": np.ones(3)}}, "is not used by this network"),
        ({"state_dict": dict(list(known.state_dict.items())[:-1])}, "the state dict lacks 1 parameters"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            edm_denoiser(dataclasses.replace(known, **change), sdes.vp())
        assert "\n" not in str(caught.value)


def test_the_published_networks_have_as_many_parameters():
    """Counted by building them in the official program: DDPM++, NCSN++ of CIFAR-10, ADM of ImageNet 64 x 64.

    Without the embedding of augmentations, 9 features; ours of ADM has a row more, for no class.
    """
    cifar = {"model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]}
    ncsnpp = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
    for kwargs, expected in (
        ({"model_type": "SongUNet", "img_resolution": 32, **cifar}, 55_733_891 - 9 * 128),
        ({"model_type": "SongUNet", "img_resolution": 32, "resample_filter": [1, 3, 3, 1], **cifar, **ncsnpp},
         56_397_827 - 9 * 256),
        ({"model_type": "DhariwalUNet", "img_resolution": 64, "label_dim": 1000}, 295_899_267 + 768),
    ):  # fmt: skip
        official = OfficialEDM("EDMPrecond", {"img_channels": 3, **kwargs}, {}, {})
        section = MODEL.read(edm_settings(official)["model"])
        network = models.build(section, in_channels=3, out_channels=3, image_size=kwargs["img_resolution"])
        x = jax.ShapeDtypeStruct((1, kwargs["img_resolution"], kwargs["img_resolution"], 3), jnp.float32)
        shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.ones((1,)))
        assert models.count_parameters(shapes["params"]) == expected


def test_a_snapshot_of_other_images_names_a_source_that_there_is():
    """Which images they were the file does not say: a folder of them is what the config asks for."""
    official = OfficialEDM("EDMPrecond", {"img_resolution": 64, "img_channels": 3, "model_type": "SongUNet"}, {}, {})
    assert edm_settings(official)["data"] == {"name": "folder", "image_size": 64} and "folder" in SOURCES
