"""NCSN and NCSNv2: sizes, blocks against definitions written out in NumPy, and the official networks' outputs."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata
import tiers
from flax import traverse_util

from sgmjax import interop, models
from sgmjax.config import MODEL
from sgmjax.models import NCSN, NCSNv2, refinenet

NETS = refdata.files("nets/ncsnv2repo_*.json")
CHECKPOINTS = refdata.files("checkpoints/ncsnv2repo_*.json")


# ------------------------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("config", "side", "count"),
    [
        (MODEL.section("ncsnv2"), 32, 29_694_083),
        (MODEL.section("ncsn"), 32, 30_117_635),
        (MODEL.section("ncsnv2", variant="deeper"), 128, 83_445_379),
        (MODEL.section("ncsnv2", variant="deepest", remat=True), 256, 94_132_611),
    ],
)
def test_official_parameter_counts(config, side, count):
    """Counted by building the official networks of the published configurations."""
    module = models.build(config, in_channels=3, out_channels=3, image_size=side)
    x, cond = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x, cond)
    assert models.count_parameters(variables["params"]) == count
    assert out.shape == x.shape and out.dtype == jnp.float32


@pytest.mark.parametrize(
    "config", [MODEL.section("ncsn", variant="deeper", ngf=4, num_levels=7), MODEL.section("ncsnv2", ngf=6)]
)
def test_every_setting_reaches_the_module(config):
    module = models.build(config, in_channels=6, out_channels=3, image_size=28, centered=False, dtype="bfloat16")
    for name, value in config.settings.items():
        assert getattr(module, name) == value, name
    assert (module.out_channels, module.centered, module.dtype) == (3, False, jnp.bfloat16)
    hash(module)
    x, cond = jax.ShapeDtypeStruct((2, 28, 28, 6), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x, cond)
    assert out.shape == (2, 28, 28, 3) and out.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("changes", "side", "message"),
    [
        (dict(ngf=1), 32, r"model\.ngf: must be 2 or more, .* got 1"),
        (dict(variant="deep"), 32, r"model\.variant: expected one of standard, deeper, deepest, got 'deep'"),
        (dict(nonlinearity="gelu"), 32, r"model\.nonlinearity"),
        (dict(), 27, r"model\.variant: 'standard' halves the image 1 times: .* multiple of 2; got 27"),
        (dict(variant="deepest"), 28, r"model\.variant: 'deepest' halves the image 3 times: .* multiple of 8; got 28"),
        (dict(variant="deeper"), 4, r"model\.variant: 'deeper' .* at least 8; got 4"),
        (dict(), None, r"model\.name: 'ncsnv2' needs images"),
    ],
)
def test_what_cannot_be_built(changes, side, message):
    with pytest.raises(ValueError, match=message) as error:
        models.build(MODEL.section("ncsnv2", **changes), in_channels=3, out_channels=3, image_size=side)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"model\.num_levels: must be positive, got 0"):
        MODEL.section("ncsn", num_levels=0)


# ------------------------------------------------------------------------------------------------------------ blocks
def _numpy_norm(x, gamma, alpha, beta):
    """InstanceNorm++ of one image (H, W, C) in float64, from the definition."""
    x = x.astype(np.float64)
    mu, s2 = x.mean(axis=(0, 1)), x.var(axis=(0, 1))
    spread = np.sqrt(mu.var(ddof=1) + 1e-5)
    return gamma * ((x - mu) / np.sqrt(s2 + 1e-5) + alpha * (mu - mu.mean()) / spread) + beta


@pytest.mark.parametrize("num_levels", [None, 3])
def test_instance_norm_plus_is_its_definition(num_levels):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(4, 3, 5, 6)) * rng.uniform(0.1, 9, 6) + 20 * rng.normal(size=6)).astype(np.float32)
    if num_levels is None:
        rows, level = rng.normal(size=(1, 3, 6)).astype(np.float32), None
        params = dict(zip(("gamma", "alpha", "beta"), rows[0], strict=True))
        used = np.zeros(4, int)
    else:
        rows, level = rng.normal(size=(3, 3, 6)).astype(np.float32), jnp.array([2, 0, 1, 2])
        params = {"levels": rows.reshape(3, 18)}
        used = np.asarray(level)
    out = refinenet.InstanceNormPlus(num_levels).apply({"params": params}, jnp.asarray(x), level)
    expected = np.stack([_numpy_norm(image, *rows[i]) for image, i in zip(x, used, strict=True)])
    np.testing.assert_allclose(out, expected, atol=2e-5 * np.abs(expected).max())


def test_norms_start_near_the_identity():
    """Scales N(1, 0.02^2), shifts 0: as the official code draws them."""
    shape = (1, 4, 4, 500)
    for level in (None, jnp.zeros((1,), jnp.int32)):
        norm = refinenet.InstanceNormPlus(None if level is None else 8)
        params = norm.init(jax.random.key(0), jnp.ones(shape), level)["params"]
        rows = (
            params
            if level is None
            else dict(zip(("gamma", "alpha", "beta"), jnp.split(params["levels"], 3, -1), strict=True))
        )
        for name in ("gamma", "alpha"):
            np.testing.assert_allclose(rows[name].mean(), 1, atol=5 * 0.02 / np.sqrt(500))
            np.testing.assert_allclose(rows[name].std(), 0.02, rtol=0.2)
        assert not np.any(rows["beta"])


def test_pooling_and_resizing_are_their_definitions():
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    padded = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    assert np.array_equal(refinenet.max_pool_5x5(jnp.asarray(x)), windows.max(axis=(-1, -2)))
    for size in ((7, 6), (14, 12), (9, 3), (1, 6)):
        out = np.asarray(refinenet.resize_bilinear(jnp.asarray(x), size))
        rows, columns = (
            np.linspace(0, old - 1, new) if new > 1 else np.zeros(1) for old, new in zip((7, 6), size, strict=True)
        )
        expected = np.stack(
            [[np.interp(rows, np.arange(7), x[b, :, j, c]) for j in range(6)] for b in range(2) for c in range(3)]
        )
        expected = np.stack(
            [[np.interp(columns, np.arange(6), plane[:, i]) for i in range(size[0])] for plane in expected]
        )
        np.testing.assert_allclose(np.moveaxis(out, -1, 1).reshape(6, *size), expected, atol=2e-6)


# ---------------------------------------------------------------------------------------------------------- networks
@pytest.fixture(scope="module")
def small():
    """A network with its parameters, its jitted output and an input."""
    module = NCSNv2(ngf=4, out_channels=2)
    x = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3))
    return module, _draw(module, x), x


def _jit(function):
    """Compiled quickly rather than well."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def _draw(module, x):
    """Parameters N(0, 1 / fan_in); quicker than a compiled `init`."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, jnp.ones(len(x)))["params"]
    return jax.tree.map(lambda s: rng.normal(0, np.prod(s.shape[:-1]) ** -0.5, s.shape).astype(np.float32), shapes)


def test_output_is_divided_by_sigma(small):
    """Technique 3, at levels that no table holds; and data in [0, 1] are mapped to [-1, 1]."""
    module, params, x = small
    sigma = jnp.array([0.01, 1.7, 50.0])
    plain = _jit(module.clone(scale_by_sigma=False).apply)({"params": params}, x, sigma)
    divided = _jit(module.apply)({"params": params}, x, sigma)
    assert divided.shape == (3, 8, 8, 2)
    np.testing.assert_allclose(divided * sigma[:, None, None, None], plain, rtol=1e-5, atol=1e-6)
    unit = _jit(module.clone(centered=False).apply)({"params": params}, (x + 1) / 2, sigma)
    np.testing.assert_allclose(unit, divided, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="labels were given to a network without classes"):
        module.apply({"params": params}, x, sigma, labels=jnp.zeros(3, jnp.int32))


@pytest.mark.slow
def test_remat_and_bfloat16_change_the_network_as_they_should(small):
    module, params, x = small
    sigma = jnp.full((3,), 0.5)

    def loss(module):
        return lambda p: jnp.sum(module.apply({"params": p}, x, sigma) ** 2)

    plain, again = (jax.jit(jax.grad(loss(m)))(params) for m in (module, module.clone(remat=True)))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), plain, again)
    wide = _jit(module.apply)({"params": params}, x, sigma)
    narrow = _jit(module.clone(dtype=jnp.bfloat16).apply)({"params": params}, x, sigma)
    assert narrow.dtype == jnp.float32
    assert 0 < np.abs(narrow - wide).max() < 0.2 * np.abs(wide).max()  # 8 bits, some forty layers


@pytest.mark.slow
def test_levels_of_ncsn_as_integers_or_floats():
    """Each level has rows of its own; a float that holds the index reads the same row."""
    module = NCSN(ngf=2, num_levels=3, out_channels=1)
    x = jnp.repeat(jax.random.uniform(jax.random.key(1), (1, 4, 4, 1)), 3, axis=0)
    params = _draw(module, x)
    apply = _jit(module.apply)
    whole = apply({"params": params}, x, jnp.arange(3))
    assert np.array_equal(whole, apply({"params": params}, x, jnp.arange(3.0)))
    assert len({image.tobytes() for image in np.asarray(whole)}) == 3


# --------------------------------------------------------------------------------------------- official configurations
def _official(**changes):
    model = {
        "sigma_begin": 2.0, "sigma_end": 0.5, "num_classes": 3, "sigma_dist": "geometric", "ngf": 4,
        "normalization": "InstanceNorm++", "nonlinearity": "ELU", "spec_norm": False,
    }  # fmt: skip
    data = {"image_size": 32, "channels": 1, "logit_transform": False, "rescaled": False, "dataset": "CIFAR10"}
    for key, value in changes.items():
        (data if key in data else model)[key] = value
    return {"model": model, "data": data}


def test_official_configs():
    network = interop.from_ncsnv2_config(_official())
    assert network.module == NCSNv2(ngf=4, out_channels=1, centered=False) and network.event_shape == (32, 32, 1)
    np.testing.assert_allclose(network.sigmas, [2, 1, 0.5], rtol=1e-7)
    uniform = interop.from_ncsnv2_config(_official(sigma_dist="uniform", rescaled=True, dataset="FFHQ"))
    assert uniform.module.centered and uniform.module.variant == "deepest"
    np.testing.assert_allclose(uniform.sigmas, [2, 1.25, 0.5], rtol=1e-7)
    assert interop.from_ncsnv2_config(_official(dataset="LSUN")).module.variant == "deeper"
    first = interop.from_ncsnv2_config(_official(), network="NCSN")
    assert isinstance(first.module, NCSN) and first.module.num_levels == 3
    for changes, message in (
        (dict(normalization="BatchNorm"), "no conversion for 'BatchNorm'"),
        (dict(sigma_dist="cosine"), r"model\.sigma_dist: 'cosine'"),
        (dict(dataset="MNIST"), "set network to NCSN, "),
        (dict(image_size=30, dataset="LSUN"), r"data\.image_size: .* multiple of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.from_ncsnv2_config(_official(**changes))
    with pytest.raises(ValueError, match="spectral norms"):
        interop.from_ncsnv2_config(_official(spec_norm=True), network="NCSN")


# ------------------------------------------------------------------------------------------- recorded official outputs
def _load(path):
    arrays = refdata.load_npz(path)
    weights = {k.removeprefix("state_dict/"): v for k, v in arrays.items() if k.startswith("state_dict/")}
    return arrays, weights


def _output(network, params, arrays):
    """Our output, (batch, H, W, C), at the recorded inputs."""
    labels = arrays["labels"]
    cond = jnp.asarray(network.sigmas[labels]) if isinstance(network.module, NCSNv2) else jnp.asarray(labels, jnp.int32)
    apply = _jit(network.module.apply)
    return np.asarray(apply({"params": params}, jnp.asarray(np.moveaxis(arrays["input"], 1, -1)), cond))


def _close(output, recorded, bound):
    """Relative to the scale of each image's output, which differs by sigma between images."""
    expected = np.moveaxis(recorded, 1, -1)
    error, scale = (np.abs(a).max(axis=(1, 2, 3)) for a in (output - expected, expected))
    assert (error <= bound * scale).all(), error / scale


@pytest.mark.parametrize("path", tiers.each(NETS, 2))
def test_network_outputs(path):
    arrays, weights = _load(refdata.beside(path, ".npz"))
    network = interop.from_ncsnv2_config(json.loads(path.read_text()))
    assert network.event_shape == np.moveaxis(arrays["input"], 1, -1).shape[1:]
    params = interop.convert_weights(network, {f"module.{key}": value for key, value in weights.items()})
    output = _output(network, params, arrays)
    assert output.dtype == np.float32
    _close(output, arrays["output_f64"], 1e-5)


@pytest.mark.parametrize("path", NETS)
def test_weights_must_match_exactly(path):
    _, weights = _load(refdata.beside(path, ".npz"))
    network = interop.from_ncsnv2_config(json.loads(path.read_text()))
    trained = [key for key in weights if key != "sigmas"]
    shapes = jax.tree.leaves(interop.convert_weights(network, {key: weights[key] for key in trained}))
    assert len(shapes) == len(trained)
    with pytest.raises(ValueError, match="lacks 1 parameters"):
        interop.convert_weights(network, {key: weights[key] for key in trained[1:]})
    key = trained[-1]
    with pytest.raises(ValueError, match=f"state dict key '{key}' has shape"):
        interop.convert_weights(network, weights | {key: np.concatenate([weights[key]] * 2)})
    for extra in ("extra.3.weight", "res9.0.conv1.weight", "res1.0.conv3.weight", "refine2.msf.conv.0.weight"):
        with pytest.raises(ValueError, match=f"'{extra}' is not used"):
            interop.convert_weights(network, weights | {extra: np.zeros((1, 1, 3, 3))})
    with pytest.raises(ValueError, match=r"'refine2\.crp\.convs\.7\.weight' has no counterpart"):
        interop.convert_weights(network, weights | {"refine2.crp.convs.7.weight": np.zeros((1, 1, 3, 3))})
    with pytest.raises(ValueError, match="'sigmas' differs"):
        interop.convert_weights(network, weights | {"sigmas": network.sigmas * 1.1})


@pytest.mark.parametrize("path", NETS)
def test_parameters_have_the_names_of_the_module(path):
    """What the conversion fills is what the module would initialise, leaf by leaf."""
    _, weights = _load(refdata.beside(path, ".npz"))
    network = interop.from_ncsnv2_config(json.loads(path.read_text()))
    x, cond = jax.ShapeDtypeStruct((1, *network.event_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    fresh = jax.eval_shape(network.module.init, jax.random.key(0), x, cond)["params"]
    params = traverse_util.flatten_dict(interop.convert_weights(network, weights))
    assert {k: v.shape for k, v in traverse_util.flatten_dict(fresh).items()} == {k: v.shape for k, v in params.items()}


@pytest.mark.parametrize("path", CHECKPOINTS)
def test_checkpoints(path, tmp_path):
    torch = pytest.importorskip("torch")
    arrays, _ = _load(refdata.beside(path, "_expected.npz"))
    network = interop.from_ncsnv2_config(json.loads(path.read_text()))
    file = refdata.beside(path, ".pth")
    checkpoint = interop.read_ncsnv2(file, network)
    averaged = "ema_output_f32" in arrays
    assert checkpoint.step > 0 and (checkpoint.ema_params is not None) == averaged
    # The recorded side is float32 here, so both sides round.
    _close(_output(network, checkpoint.params, arrays), arrays["model_output_f32"], 2e-5)
    if averaged:
        _close(_output(network, checkpoint.ema_params, arrays), arrays["ema_output_f32"], 2e-5)
        differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), checkpoint.params, checkpoint.ema_params)
        assert any(jax.tree.leaves(differs))

    states = torch.load(file, map_location="cpu", weights_only=True)
    torch.save(states[:4], tmp_path / "without.pth")
    assert interop.read_ncsnv2(tmp_path / "without.pth", network).ema_params is None
    torch.save({"model": states[0]}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is no checkpoint of ncsnv2"):
        interop.read_ncsnv2(tmp_path / "other.pth", network)
    with pytest.raises(ValueError, match="absent.pth: No such file"):
        interop.read_ncsnv2(tmp_path / "absent.pth", network)
