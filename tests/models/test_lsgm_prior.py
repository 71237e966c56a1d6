"""LSGM's prior network: official outputs, parameter counts of the published settings, conversion, options."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax import interop, models
from sgmjax.config import MODEL

NETS = refdata.files("nets/lsgm_ncsnpp*.json")

# README of the official repository; channels of the latent are groups x latents a group of its VAE commands
SHARED = {
    "num_cell_per_scale_dae": 8, "num_latent_scales": 1, "dropout": 0.2, "embedding_dim": 128,
    "embedding_type": "positional", "embedding_scale": 1000.0, "progressive": "none", "progressive_input": "none",
    "progressive_combine": "sum",
}  # fmt: skip
PUBLISHED = {
    "cifar_fid": (
        {"dataset": "cifar10", "num_channels_dae": 512, "num_scales_dae": 3, "num_preprocess_blocks": 1, "fir": True,
         "num_groups_per_scale": 20, "num_latent_per_group": 9}, 375_561_064, (16, 16, 180),
    ),
    "mnist": (
        {"dataset": "mnist", "num_channels_dae": 256, "num_scales_dae": 2, "num_preprocess_blocks": 2, "fir": False,
         "num_groups_per_scale": 2, "num_latent_per_group": 20}, 63_774_544, (8, 8, 40),
    ),
    "omniglot": (
        {"dataset": "omniglot", "num_channels_dae": 256, "num_scales_dae": 3, "num_preprocess_blocks": 1, "fir": False,
         "num_groups_per_scale": 3, "num_latent_per_group": 20}, 97_804_152, (16, 16, 60),
    ),
}  # fmt: skip


def load(path):
    arrays = refdata.load_npz(refdata.beside(path, ".npz"))
    prefix = "state_dict/"
    weights = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    return json.loads(path.read_text()), arrays, weights


def last(x):
    return np.moveaxis(x, 1, -1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    settings, count, event = PUBLISHED[name]
    network = interop.from_lsgm_prior_config(SHARED | settings)
    assert network.event_shape == event
    x, cond = jax.ShapeDtypeStruct((1, *event), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(network.module.init, jax.random.key(0), x, cond)["params"]
    assert models.count_parameters(params) + event[-1] == count  # the official count has mixing_logit


@pytest.mark.parametrize("path", NETS)
def test_outputs(path):
    config, arrays, weights = load(path)
    network = interop.from_lsgm_prior_config(config)
    assert network.event_shape == last(arrays["input"]).shape[1:]
    params = interop.convert_lsgm_prior(network, {f"module.{key}": value for key, value in weights.items()})
    assert params["mixing_logit"].shape == (1, network.event_shape[-1])
    np.testing.assert_array_equal(params["mixing_logit"].ravel(), weights["mixing_logit"].ravel())
    apply = jax.jit(network.module.apply, compiler_options={"xla_backend_optimization_level": 0})
    output = apply({"params": params["network"]}, jnp.asarray(last(arrays["input"]), jnp.float32), arrays["time"])
    expected = last(arrays["output_f64"])
    assert output.dtype == np.float32
    assert np.abs(np.asarray(output) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("path", NETS)
def test_weights_must_match(path):
    config, _, weights = load(path)
    network = interop.from_lsgm_prior_config(config)
    convert = lambda changed: interop.convert_lsgm_prior(network, changed)  # noqa: E731
    bias = next(k for k in weights if k.startswith("all_modules.") and k.endswith(".bias"))
    with pytest.raises(ValueError, match="lacks 1 parameters"):
        convert({k: v for k, v in weights.items() if k != bias})
    with pytest.raises(ValueError, match="'mixing_logit' has [0-9]+ entries"):
        convert(weights | {"mixing_logit": np.zeros((1, network.event_shape[-1] + 1, 1, 1))})
    with pytest.raises(ValueError, match="not used by this network"):
        convert(weights | {"extra.weight": np.zeros(3)})
    without = {k: v for k, v in weights.items() if k != "mixing_logit"}
    assert set(convert(without)) == {"network"}
    fourier = config["embedding_type"] == "fourier"
    changed = {k: v for k, v in weights.items() if k != "temb_fun.w"}
    changed = changed if fourier else weights | {"temb_fun.w": np.zeros((1, 4))}
    with pytest.raises(ValueError, match="Fourier frequencies 'temb_fun.w'"):
        convert(changed)


def test_settings_are_checked():
    settings = SHARED | PUBLISHED["mnist"][0]
    for change, message in (
        ({"num_scales_dae": 3}, "num_scales_dae: 3; the official prior for mnist has at most 2"),
        ({"dataset": "imagenet_32"}, "knows no 'imagenet_32'"),
        ({"dataset": "ffhq", "num_scales_dae": 2}, "has 3, 4 or 5"),
        ({"dae_arch": "unet"}, "no conversion for LSGM's 'unet'"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.from_lsgm_prior_config(settings | change)
    del settings["embedding_dim"]
    with pytest.raises(ValueError, match="no 'embedding_dim'"):
        interop.from_lsgm_prior_config(settings)


# The prior's options.
PRIOR = MODEL.section(
    "ncsnpp", nf=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), embedding_dim=16, embedding_scale=1000.0
)


def test_phase_space_prior_and_bad_options():
    """PSLD's prior takes both variables of the latent; the embedding's size is free of the width."""
    module = models.build(PRIOR, in_channels=12, out_channels=12, image_size=4)
    x, cond = jnp.zeros((1, 4, 4, 12)), jnp.full((1,), 0.3)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, cond)["params"]
    assert shapes["time_dense_0"]["kernel"].shape == (16, 64)
    for change, message in (
        ({"embedding_dim": 2}, "model.embedding_dim: must be 4 or more, for the time embedding, got 2"),
        ({"embedding_scale": 0.0}, "model.embedding_scale: must be positive, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            PRIOR.replace(**change)


@pytest.mark.slow
def test_embedding_scale_is_a_scale_of_time():
    """Scale 1000 at t is scale 1 at 1000 t: score_sde's discrete time."""
    make = lambda scale: models.build(  # noqa: E731
        PRIOR.replace(embedding_scale=scale), in_channels=3, out_channels=3, image_size=4
    )
    x, t = jax.random.normal(jax.random.key(1), (2, 4, 4, 3)), jnp.asarray([0.25, 0.75])
    params = make(1.0).init(jax.random.key(0), x, t)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # away from the zero initialisation of the last layer
    np.testing.assert_allclose(make(1000.0).apply(params, x, t), make(1.0).apply(params, x, 1000 * t), rtol=1e-5)
