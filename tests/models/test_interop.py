"""Conversion on weights made here: layouts by hand, configs in the form the repositories have them, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import interop
from sgmjax.models import DDPM, NCSNpp, NCSNppClassifier

SCORESDE = {
    "model": {
        "name": "ncsnpp",
        "scale_by_sigma": True,
        "nonlinearity": "Swish",
        "nf": 8,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "attn_resolutions": [8],
        "resamp_with_conv": True,
        "conditional": True,
        "fir": True,
        "fir_kernel": [1, 3, 3, 1],
        "skip_rescale": True,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "residual",
        "progressive_combine": "sum",
        "embedding_type": "fourier",
        "init_scale": 0.0,
        "fourier_scale": 16,
        "sigma_min": 0.01,
        "sigma_max": 50.0,
        "num_scales": 1000,
        "dropout": 0.1,
    },
    "data": {"centered": False, "image_size": 16, "num_channels": 3},
}
PSLD = {k: v for k, v in SCORESDE["model"].items() if k not in ("conditional", "scale_by_sigma")} | {
    "noise_cond": True,
    "in_ch": 6,
    "out_ch": 3,
}
CLD = (
    {
        "name": "ncsnpp",
        "sde": "cld",
        "image_size": 16,
        "image_channels": 3,
        "n_channels": 8,
        "n_resblocks": 2,
        "ch_mult": "1,2",
        "attn_resolutions": "8",
        "use_fir": True,
        "fir_kernel": "1,3,3,1",
    }
    | {k: v for k, v in SCORESDE["model"].items() if k not in ("name", "nf", "num_res_blocks", "fir", "ch_mult")}
    | {
        "attn_resolutions": "8",
        "fir_kernel": "1,3,3,1",
    }
)


def _swish(x):
    return x / (1 + np.exp(-x))


def test_toy_mlp_against_numpy():
    rng = np.random.default_rng(0)
    sizes = [(8, 5), (8, 8), (8, 8), (8, 8), (2, 8)]
    weights = {}
    for i, (out, fan_in) in enumerate(sizes):
        weights[f"module.main.{2 * i}.weight"] = rng.standard_normal((out, fan_in)) / np.sqrt(fan_in)
        weights[f"module.main.{2 * i}.bias"] = 0.2 * rng.standard_normal(out)
    u, t = rng.standard_normal((3, 4)), np.array([0.1, 0.5, 0.9])
    h = np.concatenate([u, t[:, None]], axis=1)
    for i in range(5):
        h = _swish(h) if i else h
        h = h @ weights[f"module.main.{2 * i}.weight"].T + weights[f"module.main.{2 * i}.bias"]
    network = interop.from_cld_config({"name": "mlp", "sde": "cld"})
    network = interop.OfficialNetwork(network.module.clone(hidden_dim=8), network.event_shape)
    params = interop.convert_weights(network, weights)
    out = network.module.apply({"params": params}, jnp.asarray(u, jnp.float32), jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(out, h, atol=1e-6)
    with pytest.raises(ValueError, match=r"main\.1\.weight"):
        interop.convert_weights(network, weights | {"module.main.1.weight": np.zeros((8, 8))})


def test_scoresde_config():
    network = interop.from_scoresde_config(SCORESDE)
    module = network.module
    assert isinstance(module, NCSNpp)
    assert network.event_shape == (16, 16, 3)
    assert (module.centered, module.scale_by_sigma, module.fir, module.embedding_type) == (False, True, True, "fourier")
    assert (module.nonlinearity, module.ch_mult, module.attn_resolutions) == ("swish", (1, 2), (8,))
    ddpm = interop.from_scoresde_config(SCORESDE | {"model": SCORESDE["model"] | {"name": "ddpm"}})
    assert isinstance(ddpm.module, DDPM)
    with pytest.raises(ValueError, match="'ncsnv2'"):
        interop.from_scoresde_config(SCORESDE | {"model": SCORESDE["model"] | {"name": "ncsnv2"}})
    with pytest.raises(ValueError, match="no 'model.fir'"):
        interop.from_scoresde_config(SCORESDE | {"model": {k: v for k, v in SCORESDE["model"].items() if k != "fir"}})
    with pytest.raises(ValueError, match=r"config's 'model\.nonlinearity': expected one of swish, .*lrelu, got 'gelu'"):
        interop.from_scoresde_config(SCORESDE | {"model": SCORESDE["model"] | {"nonlinearity": "GELU"}})


def test_psld_config_flat_and_nested():
    data = {"image_size": 16}
    flat = interop.from_psld_config({"score_fn": PSLD, "data": data})
    nested = interop.from_psld_config({"diffusion": {"model": {"score_fn": PSLD}, "data": data}})
    assert flat == nested
    assert (flat.event_shape, flat.module.out_channels, flat.module.centered) == ((16, 16, 6), 3, True)
    # The official output pyramid ignores out_ch.
    pyramid = interop.from_psld_config({"score_fn": PSLD | {"progressive": "output_skip"}, "data": data})
    assert pyramid.module.out_channels == 6
    classifier = interop.from_psld_config(
        {"clf": {"model": {"clf_fn": PSLD | {"name": "ncsnpp_clf", "n_cls": 7}}, "data": data}}
    )
    assert isinstance(classifier.module, NCSNppClassifier)
    assert classifier.module.out_channels == 7
    with pytest.raises(ValueError, match="image_size"):
        interop.from_psld_config({"score_fn": PSLD})
    with pytest.raises(ValueError, match="neither 'score_fn' nor 'clf_fn'"):
        interop.from_psld_config({"data": data})
    with pytest.raises(ValueError, match="'unet'"):
        interop.from_psld_config({"score_fn": PSLD | {"name": "unet"}, "data": data})


def test_cld_config():
    network = interop.from_cld_config(CLD)
    assert (network.event_shape, network.module.out_channels) == ((16, 16, 6), 3)
    assert (network.module.nf, network.module.num_res_blocks, network.module.ch_mult) == (8, 2, (1, 2))
    assert interop.from_cld_config(CLD | {"sde": "vpsde"}).event_shape == (16, 16, 3)
    with pytest.raises(ValueError, match="'ncsnpp_openai'"):
        interop.from_cld_config(CLD | {"name": "ncsnpp_openai"})
    words = interop.from_cld_config(CLD | {"use_fir": "False", "fir_kernel": "0.5,1.5,1.5,0.5"}).module
    assert words.fir is False and words.fir_kernel == (0.5, 1.5, 1.5, 0.5)
    for wrong, message in (
        ({"n_channels": 128.9}, "'n_channels' is 128.9, expected a whole number"),
        ({"ch_mult": [1, 2.5]}, r"'ch_mult' is \[1, 2.5\], expected whole numbers"),
        ({"use_fir": "maybe"}, "'use_fir' is maybe, expected True or False"),
        ({"dropout": True}, "'dropout' is True, expected a number"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.from_cld_config(CLD | wrong)
    with pytest.raises(ValueError, match="no 'use_fir'"):
        interop.from_cld_config({k: v for k, v in CLD.items() if k != "use_fir"})


def test_toy_resnet_shapes_and_a_missing_parameter():
    network = interop.from_cld_config({"name": "resnet", "sde": "cld"})
    shapes = jax.eval_shape(network.module.init, jax.random.key(0), jnp.zeros((1, 4)), jnp.ones(1))["params"]
    weights = {}
    for i in range(22):
        layer = shapes[f"dense_{i}"]
        weights[f"layers.{i}.weight"] = np.ones(layer["kernel"].shape[::-1])
        weights[f"layers.{i}.bias"] = np.zeros(layer["bias"].shape)
    params = interop.convert_weights(network, weights)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, shapes)
    with pytest.raises(ValueError, match="dense_21/kernel"):
        interop.convert_weights(network, {k: v for k, v in weights.items() if k != "layers.21.weight"})


def test_conversion_does_not_depend_on_remat():
    network = interop.from_cld_config(CLD)
    remat = interop.OfficialNetwork(network.module.clone(remat=True), network.event_shape)
    weights = {"all_modules.0.W": np.zeros(8), "all_modules.4.Conv_0.weight": np.zeros((8, 8, 3, 3))}
    messages = []
    for case in (network, remat):
        with pytest.raises(ValueError, match="lacks") as error:
            interop.convert_weights(case, weights)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
