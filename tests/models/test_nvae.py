"""NVAE: its layers against their definitions, its flow's Jacobian, what it promises about latent variables."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import tiers
from jax.sharding import NamedSharding, PartitionSpec

from sgmjax.models import count_parameters
from sgmjax.models.distributions import decoder_distribution
from sgmjax.models.nvae import NVAE, build_nvae, cells, flows, regularization, terms

TINY = NVAE(
    encoder_channels=4,
    decoder_channels=4,
    ch_mult=(1, 1, 2),
    num_scales=2,
    groups_per_scale=2,
    latents_per_group=3,
    preprocess_cells=1,
    postprocess_cells=1,
    encoder_cells=1,
    decoder_cells=1,
    cells="res_mbconv",
    num_flows=1,
    progressive_input="input_skip",
    decoder="bin",
    pad=1,
)

# Settings and the counts of the official networks: HYPERPARAMETERS of Vahdat et al. 2021, the README's commands.
OFFICIAL = {
    "cifar_fid": (NVAE(), 32, 3, (16, 16, 180), 100_867_740),
    "cifar_nll": (
        NVAE(
            encoder_channels=256,
            decoder_channels=256,
            preprocess_cells=3,
            postprocess_cells=3,
            encoder_cells=3,
            decoder_cells=3,
            latents_per_group=45,
            groups_per_scale=4,
            num_flows=2,
        ),
        32,
        3,
        (16, 16, 180),
        130_622_772,
    ),
    "mnist": (
        NVAE(
            encoder_channels=64,
            decoder_channels=64,
            preprocess_cells=3,
            postprocess_cells=3,
            encoder_cells=1,
            decoder_cells=1,
            latents_per_group=20,
            groups_per_scale=2,
            num_blocks=2,
            ch_mult=(1, 2, 2),
            cells="res_mbconv",
            decoder="bin",
            pad=2,
        ),
        28,
        1,
        (8, 8, 40),
        3_005_822,
    ),
    "omniglot": (
        NVAE(
            encoder_channels=64,
            decoder_channels=64,
            encoder_cells=3,
            decoder_cells=3,
            latents_per_group=20,
            groups_per_scale=3,
            cells="res_mbconv",
            decoder="bin",
            pad=2,
        ),
        28,
        1,
        (16, 16, 60),
        5_384_190,
    ),
}


@pytest.mark.parametrize("name", tiers.alike(OFFICIAL, ["mnist"]))  # those of the configurations: test_configs.py
def test_official_parameter_counts(name):
    config, side, channels, latent_shape, count = OFFICIAL[name]
    module = build_nvae(config, image_size=side, channels=channels)
    assert module.latent_shape == latent_shape
    x = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(module.init, key, x, key)
    assert count_parameters(variables["params"]) == count
    out = jax.eval_shape(module.apply, variables, x, key)
    assert tuple(e.shape for e in out.eps) == module.group_shapes(2)
    scales = jax.eval_shape(module.concat_eps_per_scale, out.eps)
    assert tuple(e.shape[1:] for e in scales) == module.latent_shapes


@dataclasses.dataclass
class Example:
    """A tiny VAE on two scales with everything in it, and what it makes of a batch."""

    module: NVAE
    variables: dict
    x: jax.Array
    noise: tuple
    out: object

    def __post_init__(self):
        self.decode = jax.jit(lambda v, eps: self.module.apply(v, eps, method=NVAE.decode))


@pytest.fixture(scope="module")
def example():
    module = build_nvae(TINY, image_size=6, channels=1)
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.where(rng.uniform(size=(3, 6, 6, 1)) < 0.5, 1.0, -1.0), jnp.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(module.init, key, x, key)

    def draw(path, leaf):  # compiles nothing; gains that are not one and biases that are not zero
        noise = rng.standard_normal(leaf.shape)
        name = path[-1].key
        if name == "kernel":
            noise /= np.sqrt(np.prod(leaf.shape[-4:-1]))
        elif name in ("scale", "var"):
            noise = 1.0 + 0.2 * noise.clip(-3, 3)
        else:
            noise *= 0.3
        return jnp.asarray(noise, jnp.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    noise = tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in module.group_shapes(3))
    return Example(module, variables, x, noise, jax.jit(module.apply)(variables, x, noise=noise))


def test_decoding_the_encoded_gives_the_same_image(example):
    m, out = example.module, example.out
    assert m.padded_size == 8 and m.latent_shapes == ((2, 2, 6), (4, 4, 6))
    np.testing.assert_allclose(example.decode(example.variables, out.eps), out.logits, atol=2e-6)
    loss = m.reconstruction_loss(out.logits, example.x)
    np.testing.assert_allclose(m.reconstruction_loss(out.logits, m.pad_images(example.x)), loss)
    assert m.mean_image(out.logits).shape == example.x.shape
    np.testing.assert_array_equal(m.crop(m.pad_images(example.x)), example.x)
    assert float(m.pad_images(example.x)[0, 0, 0, 0]) == -1.0
    x = example.x
    wrong = {
        "images and logits": x[:1],
        "this VAE is for images": jnp.repeat(x, 2, axis=-1),
        "of side": x[:, :1, :1],
        "x is uint8": x.astype(jnp.uint8),
    }
    for words, images in wrong.items():
        with pytest.raises(ValueError, match=words):
            m.reconstruction_loss(out.logits, images)


def test_latent_variables_join_and_part(example):
    m, eps = example.module, example.out.eps
    coarse, fine = m.concat_eps_per_scale(eps)
    assert coarse.shape[1:] == m.latent_shape
    for joined, parts in ((coarse, eps[:2]), (fine, eps[2:])):
        for got, expected in zip(m.decompose_eps(joined), parts, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_decoding_draws_the_groups_that_are_missing(example):
    m, eps = example.module, example.out.eps
    coarse = m.concat_eps_per_scale(eps)[0]
    drawn = m.noise(jax.random.key(3), 3)

    @jax.jit
    def decode(v, coarse, key, temperature):
        return m.apply(v, coarse, key=key, temperature=temperature, method=NVAE.decode)

    for temperature in (0.0, 0.7):
        whole = [*eps[:2], *(temperature * d for d in drawn[2:])]
        expected = example.decode(example.variables, tuple(whole))
        np.testing.assert_allclose(
            decode(example.variables, coarse, jax.random.key(3), temperature), expected, atol=2e-6
        )
    shape = jax.eval_shape(
        lambda v, k: m.apply(v, key=k, batch=5, method=NVAE.decode), example.variables, jax.random.key(0)
    )
    assert shape.shape == (5, 8, 8, 1)


def test_posterior_density_is_that_of_the_noise_over_sigma(example):
    """log q(eps | x) = log N(noise) - log sigma with sigma = d eps / d noise; a group without its flow."""
    m = example.module.clone(num_flows=0)

    @jax.jit
    def first(noise):
        out = m.apply(example.variables, example.x, noise=(noise, *example.noise[1:]))
        return out.eps[0], out.log_q[0]

    (low, log_q), (high, _) = first(jnp.zeros_like(example.noise[0])), first(jnp.ones_like(example.noise[0]))
    np.testing.assert_allclose(log_q, -0.5 * np.log(2 * np.pi) - np.log(high - low), atol=1e-5)


@pytest.mark.parametrize("mirror", [False, True])
def test_flow_is_autoregressive_with_determinant_one(mirror):
    latents, side = 2, 3
    cell = flows.ShiftCell(mirror=mirror)
    z = jax.random.normal(jax.random.key(0), (1, side, side, latents))
    params = cell.init(jax.random.key(1), z)
    jacobian = jax.jacfwd(lambda v: cell.apply(params, v.reshape(z.shape)).reshape(-1))(z.reshape(-1))
    # Order of the variables: pixels in raster order, or reversed, and in a pixel the channels.
    pixels = np.arange(side * side).reshape(-1, 1)
    order = ((pixels[::-1] if mirror else pixels) * latents + np.arange(latents)).ravel()
    ordered = np.asarray(jacobian)[np.ix_(order, order)]
    np.testing.assert_allclose(np.triu(ordered), np.eye(len(order)), atol=1e-6)
    assert np.count_nonzero(np.abs(np.tril(ordered, -1)) > 1e-7) > 0.5 * len(order) * (len(order) - 1) / 2 * 0.8


def test_kernels_have_the_length_that_is_their_parameter():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    log_norm = jnp.linspace(-1.0, 1.0, 5)
    mask = flows.causal_mask(3, 4, 4, strict=True, mirror=False)
    normalized = cells.normalize_kernel(kernel, log_norm)
    np.testing.assert_allclose(np.linalg.norm(normalized.reshape(-1, 5), axis=0), np.exp(log_norm), rtol=1e-5)
    masked = cells.normalize_kernel(kernel[..., :4], log_norm[:4], mask)
    assert np.all(np.asarray(masked)[mask == 0] == 0)
    # Of the first output channel nothing at the centre pixel is seen, of the last all earlier channels.
    assert mask[1, 1, :, 0].sum() == 0 and mask[1, 1, :, 3].tolist() == [1, 1, 1, 0]
    # A fresh layer is the layer without normalisation, up to the small constants of the official initialisation.
    conv = cells.Conv(5)
    params = conv.init(jax.random.key(1), jnp.zeros((1, 4, 4, 4)))["params"]
    fresh = cells.normalize_kernel(params["kernel"], params["log_weight_norm"])
    np.testing.assert_allclose(fresh, params["kernel"], rtol=0.03)


def test_bilinear_upsampling_keeps_the_corners():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 2)).astype(np.float32)
    expected = scipy.ndimage.zoom(x, (1, 2, 2, 1), order=1)  # scipy's zoom aligns corners
    np.testing.assert_allclose(cells.upsample_bilinear(jnp.asarray(x)), expected, atol=1e-6)
    assert cells.upsample_bilinear(jnp.ones((1, 1, 1, 1))).shape == (1, 2, 2, 1)


def test_batch_norm_has_pytorchs_statistics():
    """Normalised by the biased variance; running statistics move by 5% towards mean and unbiased variance."""
    x = 3.0 + 2.0 * np.random.default_rng(0).standard_normal((2, 3, 2, 4)).astype(np.float32)
    norm = cells.BatchNorm(train=True)
    variables = norm.init(jax.random.key(0), jnp.asarray(x))
    assert np.all(variables["batch_stats"]["mean"] == 0) and np.all(variables["batch_stats"]["var"] == 1)
    y, new = norm.apply(variables, jnp.asarray(x), mutable=["batch_stats"])
    mean, biased = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(biased + 1e-5), atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.05 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.95 + 0.05 * x.var((0, 1, 2), ddof=1), rtol=1e-5)
    frozen = cells.BatchNorm(train=False).apply({"params": variables["params"], **new}, jnp.asarray(x))
    running_mean, running_var = (np.asarray(new["batch_stats"][k]) for k in ("mean", "var"))
    np.testing.assert_allclose(frozen, (x - running_mean) / np.sqrt(running_var + 1e-5), atol=1e-5)
    # bfloat16 inputs far from zero: statistics in float32.
    far = jnp.asarray(1000.0 + x, jnp.bfloat16)
    low = cells.BatchNorm(train=True, dtype=jnp.bfloat16)
    y, _ = low.apply(variables, far, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16 and abs(float(jnp.mean(y.astype(jnp.float32)))) < 1e-2


def test_batch_norm_is_synchronised_over_devices():
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 4)) + jnp.arange(8.0).reshape(-1, 1, 1, 1)
    cell = cells.Cell(4, "mbconv3", train=True)
    variables = jax.jit(cell.init)(jax.random.key(1), x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    apply = jax.jit(lambda v, x: cell.apply(v, x, mutable=["batch_stats"]))
    whole = apply(variables, x)
    parts = apply(variables, jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)


@pytest.mark.slow
def test_low_precision_keeps_densities_and_statistics_wide(example):
    m = build_nvae(TINY, image_size=6, channels=1, dtype=jnp.bfloat16)
    step = lambda v: m.apply(v, example.x, noise=example.noise, train=True, mutable=["batch_stats"])  # noqa: E731
    shapes = jax.eval_shape(step, example.variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    params = jax.eval_shape(m.init, jax.random.key(0), example.x, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    # Evaluation in bfloat16 is near that in float32: its rounding, 2^-8, through some twenty layers.
    low = jax.jit(m.apply)(example.variables, example.x, noise=example.noise)
    np.testing.assert_allclose(low.logits, example.out.logits, atol=0.1)


# --------------------------------------------------------------------------------------------------------- terms of KL
def test_kl_terms_add_up(example):
    out = example.out
    kl = terms.normal_prior_terms(out.log_q, out.eps)
    log_p = terms.log_prob_of_groups([-0.5 * e**2 - 0.5 * np.log(2 * np.pi) for e in out.eps])
    np.testing.assert_allclose(kl.total, terms.log_prob_of_groups(out.log_q) - log_p, rtol=1e-5)
    assert kl.per_group.shape == (3, 4) and [c.shape for c in kl.per_channel] == [(3,)] * 4
    np.testing.assert_allclose([c.sum() for c in kl.per_channel], kl.per_group.mean(axis=0), rtol=1e-5, atol=1e-5)
    by_hand = terms.KLTerms(jnp.zeros((1, 2)), (jnp.asarray([0.05, 0.2]), jnp.asarray([3.0, 0.1])))
    assert int(by_hand.active_units) == 2
    np.testing.assert_array_equal(terms.active_channels(by_hand.per_channel[0]), [False, True])
    with pytest.raises(ValueError, match="log_q has 4 groups and neg_log_p 2"):
        terms.kl_terms(out.log_q, out.eps[:2])


def test_kl_balancing():
    np.testing.assert_allclose(terms.group_weights((2, 4), "square"), [1, 1, 2, 2, 2, 2])
    np.testing.assert_allclose(terms.group_weights((2, 1), "sqrt"), [1, 1, np.sqrt(2)])
    kl = jnp.asarray([[1.0, 5.0], [3.0, 5.0]])
    alpha = np.asarray([1.0, 2.0])

    def objective(kl, coefficient):
        value, weights = terms.balance_kl(kl, coefficient, alpha)
        return jnp.sum(value), weights

    # E|KL| + 0.01 = 2.01 and 5.01, over alpha 2.01 and 2.505, over their mean.
    expected = np.asarray([2.01, 2.505]) / np.mean([2.01, 2.505])
    gradient, weights = jax.grad(objective, has_aux=True)(kl, 0.5)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, 0.5 * np.tile(expected, (2, 1)), rtol=1e-6)  # weights are held fixed
    value, weights = terms.balance_kl(kl, 1.0, alpha)
    np.testing.assert_allclose(value, [6.0, 8.0])
    np.testing.assert_allclose(weights, 1.0)
    with pytest.raises(ValueError, match="kl_balance: 'cubic' is unknown"):
        terms.group_weights((2,), "cubic")


def test_kl_annealing():
    settings = {"anneal_steps": 100, "constant_steps": 10, "minimum": 0.1, "maximum": 0.7}
    steps = np.asarray([0, 10, 60, 110, 500])
    np.testing.assert_allclose(terms.kl_coefficient(steps, **settings), [0.1, 0.1, 0.4, 0.7, 0.7])
    np.testing.assert_allclose(jax.jit(lambda s: terms.kl_coefficient(s, **settings))(60), 0.4, rtol=1e-6)
    at_once = settings | {"anneal_steps": 0}
    np.testing.assert_allclose(terms.kl_coefficient(steps, **at_once), [0.1, 0.7, 0.7, 0.7, 0.7])


# ------------------------------------------------------------------------------------------------------ regularisation
def test_spectral_norm_is_the_largest_singular_value(example):
    params = example.variables["params"]["decoder_1"]  # two groups in a stack, with flows, whose kernels are masked
    matrices_of = jax.jit(regularization.kernel_matrices)
    norm = jax.jit(regularization.spectral_norm)
    state = jax.jit(regularization.init_spectral)(jax.random.key(0), params)
    kernels = [v for k, v in jax.tree_util.tree_leaves_with_path(params) if k[-1].key == "kernel" and v.ndim == 5]
    for moved in (params, jax.tree.map(lambda p: p + 0.01 * np.sin(100.0 * np.asarray(p)), params)):
        for _ in range(30):  # the state remembers: a few iterations a step are enough
            total, state = norm(moved, state)
        matrices = [np.asarray(w, np.float64) for stack in matrices_of(moved).values() for w in stack]
        assert len(matrices) == 2 * len(kernels)
        # Converges as (second / first singular value)^300: those that nearly agree leave 1e-3 at most.
        np.testing.assert_allclose(total, sum(np.linalg.norm(w, 2) for w in matrices), rtol=1e-3)
    # What is masked in the flow is not in the matrices: half of the weights around the centre.
    shift = params["flow_0"]["raster"]["lift"]["kernel"]
    lift = [w for w in matrices_of({"flow_0": {"raster": {"lift": params["flow_0"]["raster"]["lift"]}}}).values()][0]
    assert np.mean(np.asarray(lift) == 0) > 0.4 and lift.shape == (2, shift.shape[-1], 9 * shift.shape[-2])


def test_spectral_norm_gradient_is_the_outer_product_of_the_singular_vectors():
    kernel = jax.random.normal(jax.random.key(0), (1, 1, 6, 4))
    params = {
        "layer": {"kernel": kernel},
        "skipped": {"kernel": 10.0 * kernel},
        "norm": {"scale": jnp.asarray([1.0, -3.0])},
    }
    select = lambda path: path[0] == "layer"  # noqa: E731
    state = regularization.init_spectral(jax.random.key(1), params, select=select, iterations=300)
    gradient, _ = jax.grad(lambda p: regularization.spectral_norm(p, state, select=select), has_aux=True)(params)
    u, _, vt = np.linalg.svd(np.asarray(kernel, np.float64)[0, 0])
    np.testing.assert_allclose(gradient["layer"]["kernel"][0, 0], np.outer(u[:, 0], vt[0]), atol=1e-4)
    np.testing.assert_array_equal(gradient["skipped"]["kernel"], 0.0)
    assert float(regularization.norm_gain(params)) == 3.0
    assert float(regularization.norm_gain({"norms": {"scale": jnp.asarray([[1.0, -3.0], [0.5, 0.2]])}})) == 3.5
    nothing = lambda path: False  # noqa: E731
    total, empty = regularization.spectral_norm(params, {}, select=nothing)
    assert (
        float(total) == 0.0 and empty == regularization.init_spectral(jax.random.key(0), params, select=nothing) == {}
    )
    with pytest.raises(ValueError, match="the spectral state has kernels"):
        regularization.spectral_norm(params, {})
    with pytest.raises(ValueError, match="the spectral state has 1 kernels 4x6, not 2"):
        regularization.spectral_norm(params, state)


# ------------------------------------------------------------------------------------------------------- what's refused
@pytest.mark.parametrize(
    ("change", "side", "channels", "message"),
    [
        ({"ch_mult": (1, 2)}, 6, 1, r"vae.ch_mult: 1 blocks and 2 scales need 3 multipliers; got \(1, 2\)"),
        ({}, 7, 1, r"vae.pad: side 7 \+ 2 \* 1 must be a multiple of 4"),
        ({"cells": "conv"}, 6, 1, "vae.cells: 'conv' is unknown; choose one of res_bnswish"),
        ({"decoder": "gauss"}, 6, 1, "vae.decoder: 'gauss' is unknown"),
        ({"decoder": "dml"}, 6, 2, "vae.decoder: 'dml' is for images of 1 or 3 channels"),
        ({"num_bits": 5}, 6, 1, "vae.num_bits: the decoder 'bin' has no levels"),
        ({"decoder": "dl", "num_bits": 9}, 6, 1, "vae.num_bits: 9 must be from 1 to 8"),
        ({"progressive_input": "residual"}, 6, 1, "vae.progressive_input: 'residual' is unknown"),
        ({"groups_per_scale": 0}, 6, 1, "vae.groups_per_scale: 0 must be positive"),
        ({"encoder_channels": 3}, 6, 1, "vae.encoder_channels: 3 is too small"),
    ],
)
def test_impossible_settings_are_refused(change, side, channels, message):
    with pytest.raises(ValueError, match=message):
        build_nvae(TINY.clone(**change), image_size=side, channels=channels)


def test_shapes_that_do_not_fit_are_refused(example):
    m, x, eps = example.module, example.x, example.out.eps
    m.check_prior_shape((2, 2, 6))
    with pytest.raises(
        ValueError, match=r"the prior is for latent variables of shape \(4, 4, 6\) and this VAE's are \(2"
    ):
        m.check_prior_shape((4, 4, 6))
    with pytest.raises(ValueError, match="this VAE is for images of side 6"):
        m.pad_images(jnp.zeros((2, 5, 5, 1)))
    with pytest.raises(ValueError, match=r"this VAE is for images \(batch, H, W, 1\)"):
        m.pad_images(jnp.zeros((2, 6, 6, 3)))
    with pytest.raises(ValueError, match="NVAE needs a key, or the noise of each group"):
        m.apply(example.variables, x)
    with pytest.raises(ValueError, match="this VAE has 4 groups; got noise of 3"):
        m.apply(example.variables, x, noise=example.noise[:3])
    with pytest.raises(ValueError, match=r"latent variables of group 1 must have shape \(3, 2, 2, 3\)"):
        m.apply(example.variables, (eps[0], eps[2], *eps[2:]), method=NVAE.decode)
    with pytest.raises(ValueError, match="2 of 4 groups are given: decode needs a key"):
        m.apply(example.variables, eps[:2], method=NVAE.decode)
    with pytest.raises(ValueError, match="decode needs latent variables, or the number of images"):
        m.apply(example.variables, method=NVAE.decode)
    with pytest.raises(ValueError, match=r"latent variables of shape \(3, 2, 2, 5\) are not"):
        m.decompose_eps(jnp.zeros((3, 2, 2, 5)))


# ----------------------------------------------------------------------------------------------------------------- slow
@pytest.mark.slow
def test_remat_changes_no_gradient(example):
    def loss(params, m):
        variables = {"params": params, "batch_stats": example.variables["batch_stats"]}
        out, new = m.apply(variables, example.x, noise=example.noise, train=True, mutable=["batch_stats"])
        kl = terms.normal_prior_terms(out.log_q, out.eps).total
        return jnp.mean(m.reconstruction_loss(out.logits, example.x) + kl), new["batch_stats"]

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (plain, statistics), (again, _) = (
        gradient(example.variables["params"], example.module.clone(remat=remat)) for remat in (False, True)
    )
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), statistics, example.variables["batch_stats"])
    assert all(jax.tree.leaves(moved))  # every norm layer saw the batch

    def close(a, b):  # sums in another order; biases before a batch norm have gradient zero up to rounding
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(a).max())))

    jax.tree.map(close, plain, again)


@pytest.mark.slow
def test_unbiased_estimate_of_the_evidence(example):
    """The mean over draws of p(x, eps) / q(eps | x) is p(x): for one pair of pixels against the prior's own average."""
    m = build_nvae(
        dataclasses.replace(TINY, num_scales=1, ch_mult=(1, 1), pad=0, num_flows=1, progressive_input="none"),
        image_size=2,
        channels=1,
    )
    x = jnp.asarray([1.0, -1.0, -1.0, 1.0]).reshape(1, 2, 2, 1)
    variables = m.init(jax.random.key(0), x, jax.random.key(1))
    n = 20_000
    xs = jnp.broadcast_to(x, (n, *x.shape[1:]))
    out = jax.jit(m.apply)(variables, xs, jax.random.key(2))
    kl = terms.normal_prior_terms(out.log_q, out.eps).total
    weights = np.exp(np.asarray(-m.reconstruction_loss(out.logits, xs) - kl, np.float64))
    logits = jax.jit(lambda v, k: m.apply(v, key=k, batch=n, method=NVAE.decode))(variables, jax.random.key(3))
    prior = np.exp(-np.asarray(m.reconstruction_loss(logits, xs), np.float64))
    error = np.hypot(weights.std(), prior.std()) / np.sqrt(n)
    assert abs(weights.mean() - prior.mean()) < 4 * error
    assert error < 0.05 * prior.mean()  # or the comparison says nothing


def test_decoder_of_the_configuration_is_that_of_the_module(example):
    logits = example.out.logits
    assert isinstance(example.module.output_distribution(logits), type(decoder_distribution("bin", logits)))
