"""Behaviour of the networks: sizes of the published ones, conditioning, dropout, precision, every combination."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import models
from sgmjax.models import DDPM, MLP, CLDToyMLP, CLDToyResNet, NCSNpp, NCSNppClassifier

TINY = dict(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), init_scale=1.0)
SMALL = dict(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), init_scale=1.0)
FIR_RESIDUAL = dict(fir=True, progressive_input="residual")
DEEP = dict(num_res_blocks=8)


def _inputs(shape=(3, 8, 8, 3), seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return x, jnp.asarray(rng.uniform(0.05, 1.0, shape[0]), jnp.float32)


def _init(module, x, cond):
    """Random parameters, none of them zero; drawn by numpy, which needs no compilation."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        if path[-1].key == "scale":
            return jnp.asarray(1 + 0.2 * noise, leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 25
        return jnp.asarray(noise / np.sqrt(fan_in), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), x, cond)["params"])


# The programs run once on a handful of pixels, so the time goes into compiling them.
_FAST_COMPILE = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnums=0, static_argnames="train", compiler_options=_FAST_COMPILE)
def _apply(module, params, x, cond, labels=None, train=False, key=None):
    rngs = None if key is None else {"dropout": key}
    return module.apply({"params": params}, x, cond, labels=labels, train=train, rngs=rngs)


def _shapes(module, shape):
    return jax.eval_shape(
        module.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, *shape), jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.float32),
    )["params"]


PUBLISHED = {
    "PSLD CIFAR-10 best": (
        97_627_782,
        NCSNpp(out_channels=6, ch_mult=(2, 2, 2), embedding_type="fourier", **DEEP, **FIR_RESIDUAL),
        (32, 32, 6),
    ),
    "PSLD CIFAR-10, 4 blocks": (
        56_412_806,
        NCSNpp(out_channels=6, ch_mult=(2, 2, 2), embedding_type="fourier", num_res_blocks=4, **FIR_RESIDUAL),
        (32, 32, 6),
    ),
    "PSLD ablation": (39_397_254, NCSNpp(out_channels=6, num_res_blocks=2), (32, 32, 6)),
    "PSLD ablation, CLD": (39_393_795, NCSNpp(out_channels=3, num_res_blocks=2), (32, 32, 6)),
    "PSLD ablation, VP": (39_390_339, NCSNpp(out_channels=3, num_res_blocks=2), (32, 32, 3)),
    "PSLD CelebA-64": (61_811_334, NCSNpp(out_channels=6), (64, 64, 6)),
    "CLD CIFAR-10": (
        107_593_859,
        NCSNpp(out_channels=3, embedding_type="fourier", **DEEP, **FIR_RESIDUAL),
        (32, 32, 6),
    ),
    "VE deep": (107_586_947, NCSNpp(out_channels=3, embedding_type="fourier", **DEEP, **FIR_RESIDUAL), (32, 32, 3)),
    "VE": (62_758_787, NCSNpp(out_channels=3, embedding_type="fourier", **FIR_RESIDUAL), (32, 32, 3)),
    "VP deep": (106_632_579, NCSNpp(out_channels=3, **DEEP), (32, 32, 3)),
    "DDPM++": (61_804_419, NCSNpp(out_channels=3), (32, 32, 3)),
    "VP NCSN++": (62_693_251, NCSNpp(out_channels=3, **FIR_RESIDUAL), (32, 32, 3)),
    "VE CelebA-HQ-256": (
        65_574_421,
        NCSNpp(
            out_channels=3,
            ch_mult=(1, 1, 2, 2, 2, 2, 2),
            num_res_blocks=2,
            fir=True,
            progressive="output_skip",
            progressive_input="input_skip",
            embedding_type="fourier",
        ),
        (256, 256, 3),
    ),
    "DDPM": (35_218_947, DDPM(out_channels=3), (32, 32, 3)),
}


# The others are counted at once from their configurations (test_configs.py).
@pytest.mark.parametrize("name", tiers.alike(PUBLISHED, ("PSLD CIFAR-10, 4 blocks", "VP NCSN++", "DDPM")))
def test_published_parameter_counts(name):
    count, module, shape = PUBLISHED[name]
    params = _shapes(module, shape)
    assert models.count_parameters(params) == count
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


_OPTIONS = {
    "resblock_type": ("biggan", "ddpm"),
    "fir": (False, True),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
}
COMBINATIONS = [dict(zip(_OPTIONS, values, strict=True)) for values in itertools.product(*_OPTIONS.values())]


def _changes(options):
    """How many of a combination's options are not the first of their kind."""
    return sum(value != _OPTIONS[name][0] for name, value in options.items())


@pytest.mark.parametrize(
    "options",
    tiers.alike(COMBINATIONS, [options for options in COMBINATIONS if _changes(options) in (1, 5)]),
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_every_combination_has_the_output_shape(options):
    module = NCSNpp(out_channels=5, **TINY, **options)
    x, cond = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x, cond)
    assert out.shape == (2, 8, 8, 5)
    assert out.dtype == jnp.float32


REAL = {
    "biggan-fir-residual": NCSNpp(out_channels=3, embedding_type="fourier", **TINY, **FIR_RESIDUAL),
    "ddpm-fir-cat-residual": NCSNpp(
        out_channels=3,
        resblock_type="ddpm",
        fir=True,
        progressive="residual",
        progressive_input="input_skip",
        progressive_combine="cat",
        **TINY,
    ),
    "skips-noconv": NCSNpp(
        out_channels=3,
        resblock_type="ddpm",
        progressive="output_skip",
        progressive_input="input_skip",
        resamp_with_conv=False,
        skip_rescale=False,
        nonlinearity="lrelu",
        **TINY,
    ),
    "unconditional": NCSNpp(out_channels=3, conditional=False, nonlinearity="elu", **TINY),
    "ddpm": DDPM(out_channels=3, nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), nonlinearity="relu"),
    "mlp": MLP(out_channels=3, width=16, depth=2),
    "toy_mlp": CLDToyMLP(out_channels=3, hidden_dim=16),
    "toy_resnet": CLDToyResNet(out_channels=3, hidden_dim=16, num_hidden_layers=3),
    "classifier": NCSNppClassifier(out_channels=3, **TINY, **FIR_RESIDUAL),
}
VECTORS = (MLP, CLDToyMLP, CLDToyResNet)


@pytest.mark.parametrize("name", tiers.alike(REAL, ("ddpm", "mlp", "toy_mlp")))
def test_float32_against_float64_and_independence_of_batch_mates(x64, name):
    module = REAL[name]
    x, cond = _inputs((3, 6) if isinstance(module, VECTORS) else (3, 8, 8, 3))
    params = _init(module, x, cond)
    with jax.numpy_dtype_promotion("strict"):
        y = _apply(module, params, x, cond)
    assert y.dtype == jnp.float32
    wide_params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    y64 = _apply(module.clone(dtype=jnp.float64), wide_params, x.astype(jnp.float64), cond.astype(jnp.float64))
    assert y64.dtype == jnp.float64
    scale = np.abs(y64).max()
    assert scale > 1e-2
    np.testing.assert_allclose(y, y64, atol=1e-5 * scale, rtol=0)
    # Other batch-mates, same example.
    other_x, other_cond = _inputs(x.shape, seed=1)
    mixed = _apply(module, params, other_x.at[2].set(x[1]), other_cond.at[2].set(cond[1]))
    np.testing.assert_allclose(mixed[2], y[1], atol=1e-5 * scale, rtol=0)
    # The conditioning matters, except where there is none.
    changes = np.abs(_apply(module, params, x, cond * 0.5) - y).max() > 1e-3 * scale
    assert changes == (name != "unconditional")


@pytest.mark.parametrize("name", tiers.alike(["biggan-fir-residual", "ddpm", "mlp", "classifier"], ["ddpm", "mlp"]))
def test_bfloat16_is_close_and_keeps_float32_outside(name):
    module = REAL[name]
    x, cond = _inputs((3, 6) if isinstance(module, VECTORS) else (3, 8, 8, 3))
    half = module.clone(dtype=jnp.bfloat16)
    params = _init(half, x, cond)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    y, y16 = _apply(module, params, x, cond), _apply(half, params, x, cond)
    assert y16.dtype == jnp.float32
    error = np.sqrt(np.mean((y16 - y) ** 2) / np.mean(y**2))
    assert 1e-4 < error < 0.05  # bfloat16 has 8 bits: 0.4% an operation


@pytest.mark.parametrize("name", tiers.alike(["biggan-fir-residual", "ddpm-fir-cat-residual", "ddpm"], ["ddpm"]))
def test_dropout_acts_only_in_training(name):
    module = REAL[name].clone(dropout=0.5)
    x, cond = _inputs()
    params = _init(module, x, cond)
    y = _apply(module, params, x, cond)
    np.testing.assert_allclose(y, _apply(REAL[name].clone(dropout=0.0), params, x, cond), rtol=1e-5, atol=1e-5)
    first, again, second = (_apply(module, params, x, cond, train=True, key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3 * np.abs(y).max()
    assert np.abs(first - y).max() > 1e-3 * np.abs(y).max()


@pytest.mark.parametrize("name", tiers.alike(["skips-noconv", "unconditional", "ddpm", "mlp"], ["ddpm", "mlp"]))
def test_class_conditioning(name):
    module = REAL[name].clone(num_classes=4)
    x, cond = _inputs((3, 6) if isinstance(module, VECTORS) else (3, 8, 8, 3))
    params = _init(module, x, cond)
    assert params["label_embed"]["embedding"].shape[0] == 5
    none = _apply(module, params, x, cond)
    bound = 1e-5 * np.abs(none).max()
    np.testing.assert_allclose(none, _apply(module, params, x, cond, jnp.array([4, 4, 4])), rtol=0, atol=bound)
    some = _apply(module, params, x, cond, jnp.array([4, 0, 1]))
    np.testing.assert_allclose(some[0], none[0], rtol=0, atol=bound)
    assert np.abs(some[1:] - none[1:]).max() > 1e-3 * np.abs(none).max()


@pytest.mark.parametrize("name", REAL)
def test_labels_without_classes_are_refused(name):
    module = REAL[name]
    x, cond = _inputs((3, 6) if isinstance(module, VECTORS) else (3, 8, 8, 3))
    with pytest.raises(ValueError, match="class"):
        jax.eval_shape(module.init, jax.random.key(0), x, cond, labels=jnp.array([0, 1, 2]))


def test_remat_changes_neither_output_nor_gradient():
    module = NCSNpp(out_channels=3, **SMALL)
    x, cond = _inputs((2, 4, 4, 3))
    params = _init(module, x, cond)

    def gradient(m):
        def loss(p):
            return jnp.mean(m.apply({"params": p}, x, cond, train=True, rngs={"dropout": jax.random.key(3)}) ** 2)

        return jax.jit(jax.value_and_grad(loss), compiler_options=_FAST_COMPILE)(params)

    loss, grads = gradient(module)
    for how in (True, "elementwise"):
        remat_loss, remat_grads = gradient(module.clone(remat=how))
        np.testing.assert_allclose(remat_loss, loss, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(remat_grads), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("module", [NCSNpp(num_res_blocks=3), DDPM(num_res_blocks=3)], ids=type)
def test_remat_keeps_less_for_the_backward_pass(module):
    x, cond = _inputs((8, 32, 32, 3))
    params = jax.eval_shape(module.init, jax.random.key(0), x, cond)["params"]

    def kept(how):
        network = module.clone(remat=how)

        def backward(params):
            def loss(p):
                return jnp.mean(network.apply({"params": p}, x, cond, train=True, rngs={"dropout": jax.random.key(3)}))

            return jax.vjp(loss, params)[1]

        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(backward, params)))

    everything, convolutions, blocks = (kept(how) for how in (False, "elementwise", True))
    assert blocks < convolutions < everything / 2


def test_fourier_frequencies_are_fixed_and_not_counted():
    module = NCSNpp(out_channels=3, embedding_type="fourier", **SMALL)
    x, cond = _inputs((2, 4, 4, 3))
    params = _init(module, x, cond)
    gradient = jax.grad(lambda p: jnp.sum(module.apply({"params": p}, x, cond) ** 2))
    grads = jax.jit(gradient, compiler_options=_FAST_COMPILE)(params)
    np.testing.assert_array_equal(grads["fourier"]["frequencies"], 0.0)
    mask = models.trainable_mask(params)
    assert mask["fourier"] == {"frequencies": False}
    assert sum(not flag for flag in jax.tree.leaves(mask)) == 1
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert models.count_parameters(params) == total - 8
    # Everything else that is trained is reached by the gradient.
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        if path[-1].key not in ("frequencies", "bias"):
            assert np.abs(grad).max() > 0, path


def test_centered_and_scale_by_sigma():
    x, cond = _inputs((3, 4, 4, 3))
    plain = NCSNpp(out_channels=3, embedding_type="fourier", **SMALL)
    params = _init(plain, x, cond)
    y = _apply(plain, params, x, cond)
    uncentered = _apply(plain.clone(centered=False), params, (x + 1) / 2, cond)
    np.testing.assert_allclose(uncentered, y, atol=1e-4 * np.abs(y).max())
    scaled = _apply(plain.clone(scale_by_sigma=True), params, x, cond)
    np.testing.assert_allclose(scaled, y / np.asarray(cond)[:, None, None, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module", [NCSNpp(out_channels=3, **SMALL), DDPM(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())]
)
def test_discrete_noise_levels_descend_from_sigma_max(module):
    module = module.clone(sigma_min=0.1, sigma_max=10.0, num_scales=10)
    x, _ = _inputs((3, 4, 4, 3))
    index = jnp.array([0, 3, 9])
    params = _init(module, x, index)
    y = _apply(module, params, x, index)
    scaled = _apply(module.clone(scale_by_sigma=True), params, x, index)
    sigma = np.array([10.0, 10.0 * 100.0 ** (-1 / 3), 0.1], np.float32)[:, None, None, None]
    np.testing.assert_allclose(scaled * sigma, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "last"),
    [
        (NCSNpp(**SMALL).clone(init_scale=0.0), "out_conv"),
        (NCSNpp(progressive="output_skip", **SMALL).clone(init_scale=0.0), "up_0_out_conv"),
        (DDPM(ch_mult=(1,)), "out_conv"),
        (MLP(width=16, depth=1), "dense_out"),
    ],
)
def test_networks_start_at_zero(module, last):
    x, cond = _inputs((2, 6) if isinstance(module, VECTORS) else (2, 4, 4, 3))
    layer = jax.jit(lambda key: module.init(key, x, cond)["params"][last])(jax.random.key(0))
    assert 0 < np.abs(layer["kernel"]).max() < 1e-4
    assert not np.any(layer["bias"])


def test_an_equal_module_does_not_recompile():
    module = REAL["mlp"]
    x, cond = _inputs((3, 6))
    params = _init(module, x, cond)
    _apply(module, params, x, cond)
    before = _apply._cache_size()
    _apply(MLP(out_channels=3, width=16, depth=2), params, x + 1, cond)
    assert _apply._cache_size() == before
