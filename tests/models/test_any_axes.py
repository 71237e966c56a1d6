"""Networks of signals, rectangles and volumes: the layers act on every spatial axis as they act on two."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import models
from sgmjax.config import MODEL
from sgmjax.models import fir

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "resample", [fir.upsample_2d, fir.downsample_2d, fir.naive_upsample_2d, fir.naive_downsample_2d]
)
def test_resampling_of_a_product_is_the_product_of_the_resampled(resample):
    """All of them are separable: so those of signals give those of images, and of volumes."""
    parts = [RNG.normal(size=side) for side in (4, 6, 2)]
    one = [np.asarray(resample(jnp.asarray(part)[None, :, None]))[0, :, 0] for part in parts]
    two = resample(jnp.asarray(np.einsum("i,j->ij", *parts[:2]))[None, ..., None])
    three = resample(jnp.asarray(np.einsum("i,j,k->ijk", *parts))[None, ..., None])
    np.testing.assert_allclose(np.asarray(two)[0, ..., 0], np.einsum("i,j->ij", *one[:2]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(three)[0, ..., 0], np.einsum("i,j,k->ijk", *one), rtol=1e-5, atol=1e-6)
    if resample is fir.naive_upsample_2d:
        np.testing.assert_allclose(one[0], np.repeat(parts[0], 2), rtol=1e-6)
    if resample is fir.naive_downsample_2d:
        np.testing.assert_allclose(one[0], parts[0].reshape(-1, 2).mean(axis=1), rtol=1e-6)


def random_params(module, x, cond, **inputs):
    """Parameters none of which is zero, so that every part of the network matters."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, cond, **inputs))["params"]
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(0.3 * draw.normal(size=s.shape), s.dtype), shapes)


def test_a_signal_is_an_image_of_width_one_whose_kernels_have_one_column():
    config = MODEL.section("unet1d", nf=8, ch_mult=(1,), num_res_blocks=1, num_classes=3)
    build = lambda size: models.build(config, in_channels=2, out_channels=2, image_size=size)  # noqa: E731
    module = build((6,))
    x, cond, labels = jnp.asarray(RNG.normal(size=(2, 6, 2)), jnp.float32), jnp.array([0.1, 0.9]), jnp.array([0, 2])
    params = random_params(module, x, cond, labels=labels)
    image = models.NCSNpp(
        out_channels=2, nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), dropout=0.0, num_classes=3,
        embedding_type="fourier",
    )  # fmt: skip

    def column(path, leaf):
        if leaf.ndim != 3:
            return leaf
        return leaf[:, None] if leaf.shape[0] == 1 else jnp.pad(leaf[:, None], ((0, 0), (1, 1), (0, 0), (0, 0)))

    wide = jax.tree_util.tree_map_with_path(column, params)
    expected = jax.jit(image.apply)({"params": wide}, x[:, :, None], cond, labels=labels)[:, :, 0]
    apply = jax.jit(lambda labels: module.apply({"params": params}, x, cond, labels=labels))
    found = apply(labels)
    scale = float(jnp.abs(expected).max())
    assert found.shape == (2, 6, 2) and scale > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4 * scale)  # float32 sums in another order
    other = apply(jnp.array([1, 2]))
    assert np.abs(other[0] - found[0]).max() > 1e-3 * scale  # the class of the first, and it alone, has changed
    np.testing.assert_allclose(other[1], found[1], atol=1e-5 * scale)


def test_a_rectangle_on_its_side_gives_the_output_on_its_side():
    """Swapping the axes of the image and of every kernel swaps those of the output, attention included."""
    options = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "dropout": 0.0, "fir": True}
    options |= {"progressive": "output_skip", "progressive_input": "residual", "attn_resolutions": ()}
    module = models.build(MODEL.section("ncsnpp", **options), in_channels=1, out_channels=1, image_size=(8, 4))
    x, cond = jnp.asarray(RNG.normal(size=(2, 8, 4, 1)), jnp.float32), jnp.array([0.1, 0.9])
    params = random_params(module, x, cond)
    turned = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1) if leaf.ndim == 4 else leaf, params)
    apply = jax.jit(lambda params, x: module.apply({"params": params}, x, cond))
    upright, lying = apply(params, x), apply(turned, jnp.swapaxes(x, 1, 2))
    scale = float(jnp.abs(upright).max())
    np.testing.assert_allclose(jnp.swapaxes(lying, 1, 2), upright, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("config", "sides"),
    [
        (MODEL.section("ncsnpp", nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,)), (16, 8)),
        (
            MODEL.section("ncsnpp", nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), resblock_type="ddpm"),
            (4, 2, 6),
        ),
        (MODEL.section("ncsnv2", ngf=4), (28, 32)),
        (MODEL.section("mlp", width=8, depth=1), (5,)),
        (MODEL.section("mlp", width=8, depth=1), (3, 2, 2)),
        (MODEL.section("unet1d", nf=8, num_res_blocks=1, attn_resolutions=(20, 5)), (20,)),
    ],
    ids=str,
)
def test_networks_of_other_shapes_keep_them(config, sides):
    module = models.build(config, in_channels=4, out_channels=2, image_size=sides)
    x, cond = jax.ShapeDtypeStruct((2, *sides, 4), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x, cond)
    assert out.shape == (2, *sides, 2)


def test_the_linear_part_of_the_mlp_is_one_matrix_of_the_channels_everywhere():
    """With the blocks silenced what is left is linear, and the same at every step of a signal."""
    module = models.build(MODEL.section("mlp", width=8, depth=1), in_channels=4, out_channels=2, image_size=(3,))
    x, cond = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32), jnp.array([0.1, 0.9])
    params = random_params(module, x, cond)
    params["dense_out"] = jax.tree.map(jnp.zeros_like, params["dense_out"])
    run = jax.jit(lambda x: module.apply({"params": params}, x, cond))
    apply = lambda x: np.asarray(run(x))  # noqa: E731
    basis = [apply(jnp.zeros((2, 3, 4)).at[:, :, i].set(1.0))[:, :1] for i in range(4)]
    expected = sum(np.asarray(x)[:, :, i : i + 1] * column for i, column in enumerate(basis))
    np.testing.assert_allclose(apply(x), expected, atol=1e-4)
    assert np.abs(basis[0]).max() > 1e-2


@pytest.mark.parametrize("network", [models.NCSNpp, models.NCSNppClassifier, models.DDPM, models.ADM])
def test_a_network_that_was_not_built_from_settings_says_what_it_cannot_halve(network):
    module = network(nf=32, ch_mult=(1, 1, 1))
    x, cond = jax.ShapeDtypeStruct((2, 32, 30, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    message = (
        "3 levels halve the image 2 times, so the image size must be a multiple of 4; got 30: shorten ch_mult or give"
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), x, cond)


@pytest.mark.parametrize(
    ("config", "sides", "message"),
    [
        (
            MODEL.section("unet1d"),
            (30,),
            r"3 levels halve the signal 2 times, so the length must be a multiple of 4; got 30: sho",
        ),
        (MODEL.section("unet1d"), (8, 8), "'unet1d' needs signals and the data are images; use 'ncsnpp' or 'ddpm'"),
        (MODEL.section("unet1d"), (), "'unet1d' needs signals and the data are vectors; use 'mlp'"),
        (MODEL.section("unet1d"), (2,), r"multiple of 4; got 2: .*signals are \(n, T, C\), channels last"),
        (
            MODEL.section("ncsnpp"),
            (32,),
            r"signals \(n, T, C\); use 'unet1d' or 'mlp'; or if they are images .* x\[..., None\]",
        ),
        (
            MODEL.section("ncsnpp"),
            (32, 28),
            r"the image size must be a multiple of 8; got 28: shorten ch_mult or make them big",
        ),
        (MODEL.section("ncsnv2"), (28, 27), "multiple of 2; got 27"),
        (MODEL.section("ncsnv2"), (4, 4, 4), "needs images and the data are volumes; use 'ncsnpp' or 'mlp'"),
        (MODEL.section("mlp_classifier"), (8,), "needs vectors and the data are signals; use 'ncsnpp_classifier'$"),
        (MODEL.section("ncsnpp_classifier"), (), "needs images and the data are vectors; use 'mlp_classifier'$"),
        (MODEL.section("feature_net"), (), "needs images and the data are vectors; there is no network of features"),
        (MODEL.section("feature_net"), (8,), r"there is no network of features for these; or if they are images .*x\["),
        (
            MODEL.section("ncsnpp", ch_mult=(1, 2), attn_resolutions=(4,)),
            (16, 8),
            "no level has side 4; images of 16 .* have 16, 8",
        ),
    ],
    ids=range(13),
)
def test_what_does_not_fit_is_said_with_what_does(config, sides, message):
    with pytest.raises(ValueError, match=message) as error:
        models.build(config, in_channels=2, out_channels=2, image_size=sides, resize="make them bigger")
    assert "\n" not in str(error.value) and "image_size" not in str(error.value)
