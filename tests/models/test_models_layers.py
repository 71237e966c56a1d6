"""FIR resampling against direct convolution, embeddings and norms against their formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from sgmjax.models import fir, layers

KERNELS = [(1, 3, 3, 1), (1, 1), (1, 2, 1), (1, 4, 6, 4, 1), (1, 2, 4, 1)]  # the last one is not symmetric


def _images(channels=3, height=6, width=8, seed=0):
    return np.random.default_rng(seed).standard_normal((2, height, width, channels))


def _per_channel(function, x):
    planes = [[function(x[b, :, :, c]) for c in range(x.shape[-1])] for b in range(x.shape[0])]
    return np.moveaxis(np.asarray(planes), 1, -1)


def _zero_insert(plane):
    out = np.zeros((2 * plane.shape[0], 2 * plane.shape[1]))
    out[::2, ::2] = plane
    return out


def _fir(plane, kernel, gain):
    """Full two-dimensional convolution with the normalised filter."""
    k = np.outer(kernel, kernel).astype(float)
    return scipy.signal.convolve2d(plane, k * gain / k.sum(), mode="full")


@pytest.mark.parametrize("kernel", KERNELS)
def test_upsample_is_zero_insertion_and_convolution(x64, kernel):
    x = _images()
    p = len(kernel) - 2
    # Full convolution starts n - 1 before the image; StyleGAN2 pads (p + 1) // 2 + 1 before.
    start = len(kernel) - 1 - ((p + 1) // 2 + 1)
    expected = _per_channel(
        lambda a: _fir(_zero_insert(a), kernel, 4.0)[start:, start:][: 2 * a.shape[0], : 2 * a.shape[1]], x
    )
    np.testing.assert_allclose(fir.upsample_2d(jnp.asarray(x), kernel), expected, atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS)
def test_downsample_is_convolution_and_decimation(x64, kernel):
    x = _images()
    p = len(kernel) - 2
    start = len(kernel) - 1 - (p + 1) // 2
    expected = _per_channel(lambda a: _fir(a, kernel, 1.0)[start:, start:][: a.shape[0] : 2, : a.shape[1] : 2], x)
    np.testing.assert_allclose(fir.downsample_2d(jnp.asarray(x), kernel), expected, atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS)
def test_convolution_after_the_filter_is_stylegan2s_upsample_conv(x64, kernel):
    """StyleGAN2: transposed convolution of stride 2, then the filter padded by ((p + 1) // 2 + 1, p // 2 + 1)."""
    x = _images(channels=1)
    w = np.random.default_rng(1).standard_normal((3, 3))
    p = len(kernel) - 2 - 2
    before, after = (p + 1) // 2 + 1, p // 2 + 1

    def direct(a):
        y = scipy.signal.correlate2d(_zero_insert(a)[:-1, :-1], w, mode="full")
        y = np.pad(y, ((before, after), (before, after)))
        k = np.outer(kernel, kernel) * 4.0 / np.outer(kernel, kernel).sum()
        return scipy.signal.convolve2d(y, k, mode="valid")

    filtered = np.asarray(fir.filter_before_upsampled_conv(jnp.asarray(x), kernel))
    ours = _per_channel(lambda a: scipy.signal.correlate2d(a, w, mode="valid"), filtered)
    assert ours.shape == (2, 12, 16, 1)
    np.testing.assert_allclose(ours, _per_channel(direct, x), atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_filter_before_strided_convolution_halves(x64, kernel):
    x = _images(channels=1)
    w = np.random.default_rng(1).standard_normal((3, 3))
    p = len(kernel) - 2 + 2
    start = len(kernel) - 1 - (p + 1) // 2

    def direct(a):
        n = len(kernel)
        padded = np.pad(_fir(a, kernel, 1.0), n)  # room for a start before the full convolution
        side = [a.shape[i] + p - n + 1 for i in (0, 1)]
        y = padded[start + n : start + n + side[0], start + n : start + n + side[1]]
        return scipy.signal.correlate2d(y, w, mode="valid")[::2, ::2]

    filtered = np.asarray(fir.filter_before_strided_conv(jnp.asarray(x), kernel))
    ours = _per_channel(lambda a: scipy.signal.correlate2d(a, w, mode="valid")[::2, ::2], filtered)
    assert ours.shape == (2, 3, 4, 1)
    np.testing.assert_allclose(ours, _per_channel(direct, x), atol=1e-13)


def test_naive_resampling():
    x = jnp.asarray(_images(), jnp.float32)
    np.testing.assert_array_equal(fir.naive_upsample_2d(x), np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))
    four = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(fir.naive_downsample_2d(x), four, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fir.naive_downsample_2d(fir.naive_upsample_2d(x)), x, rtol=1e-6)


def test_fir_keeps_dtype_and_constants():
    x = jnp.full((1, 8, 8, 2), 3.0, jnp.bfloat16)
    up, down = fir.upsample_2d(x), fir.downsample_2d(x)
    assert up.dtype == down.dtype == jnp.bfloat16
    np.testing.assert_array_equal(up[:, 2:-2, 2:-2].astype(jnp.float32), 3.0)
    np.testing.assert_array_equal(down[:, 1:-1, 1:-1].astype(jnp.float32), 3.0)


@pytest.mark.parametrize("kernel", [(), (1,), (1, -1), (1.0, float("nan"))])
def test_impossible_fir_kernel(kernel):
    with pytest.raises(ValueError, match="fir_kernel"):
        fir.normalized_kernel(kernel)


@pytest.mark.parametrize("dim", [4, 7, 128])
def test_timestep_embedding_formula(x64, dim):
    t = np.array([0.0, 1e-3, 1.0, 499.5, 999.0])
    half = dim // 2
    angles = t[:, None] * 10_000.0 ** (-np.arange(half) / (half - 1))
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((5, dim % 2))], axis=1)
    np.testing.assert_allclose(layers.timestep_embedding(jnp.asarray(t), dim), expected, atol=1e-12)
    whole = layers.timestep_embedding(jnp.array([0, 1, 999]), dim)  # indices of noise levels
    assert whole.dtype == jnp.float32
    np.testing.assert_allclose(whole, expected[[0, 2, 4]], atol=1e-4)


def test_fourier_embedding_formula_and_accuracy():
    cond = np.array([1e-5, 0.013, 1.0, 378.0], np.float32)
    module = layers.FourierEmbedding(64, scale=16.0)
    params = module.init(jax.random.key(0), jnp.asarray(cond))["params"]
    frequencies = np.asarray(params["frequencies"], np.float64)
    assert 12 < frequencies.std() < 20
    turns = np.log(cond.astype(np.float64))[:, None] * frequencies
    expected = np.concatenate([np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)], axis=1)
    # The product W log(cond) has a relative error of 2 ulp in float32; nothing is lost after it.
    bound = 2 * np.pi * 2.0**-22 * np.abs(turns).max()
    np.testing.assert_allclose(module.apply({"params": params}, jnp.asarray(cond)), expected, atol=bound)
    grads = jax.grad(lambda p: module.apply({"params": p}, jnp.asarray(cond)).sum())(params)
    np.testing.assert_array_equal(grads["frequencies"], 0.0)


@pytest.mark.parametrize(
    ("channels", "norm", "groups"),
    [(128, "ncsnpp", 32), (96, "ncsnpp", 24), (16, "ncsnpp", 4), (384, "ncsnpp", 32), (6, "ncsnpp", 1)]
    + [(144, "ncsnpp", 24), (3, "ncsnpp", 1), (32, "ddpm", 32), (64, "ddpm", 32), (16, "ddpm", 4)],
)
def test_num_groups(channels, norm, groups):
    assert layers.num_groups(channels, norm) == groups


def test_attention_against_numpy(x64):
    """float64 softmax attention by hand, with weights that are not zero."""
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 8))
    module = layers.AttnBlock(skip_rescale=True, init_scale=1.0, dtype=jnp.float64)
    params = module.init(jax.random.key(1), jnp.asarray(x))["params"]
    p = jax.tree.map(np.asarray, params)
    grouped = x.reshape(2, 16, 2, 4)  # groups of four channels
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    h = ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(2, 16, 8)
    q, k, v = (h @ p[n]["kernel"] + p[n]["bias"] for n in ("query", "key", "value"))
    logits = np.einsum("bqc,bkc->bqk", q, k) / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    out = np.einsum("bqk,bkc->bqc", weights, v) @ p["out"]["kernel"]
    expected = (x + out.reshape(x.shape)) / np.sqrt(2)
    np.testing.assert_allclose(module.apply({"params": params}, jnp.asarray(x)), expected, atol=1e-7)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1.0), (0.0, 1e-10), (0.1, 0.1)])
def test_ddpm_init_variance(scale, expected):
    w = layers.ddpm_init(scale)(jax.random.key(0), (3, 3, 64, 32), jnp.float32)
    variance = expected / (9 * (64 + 32) / 2)
    bound = np.sqrt(3 * variance)
    assert np.abs(w).max() <= bound * (1 + 1e-6)
    # The sample variance of n uniforms has relative standard error sqrt(0.8 / n).
    np.testing.assert_allclose(np.var(w), variance, rtol=5 * np.sqrt(0.8 / w.size))


def test_torch_default_init_bounds():
    w = layers.torch_default_init()(jax.random.key(0), (50, 40), jnp.float32)
    b = layers.torch_default_init(50)(jax.random.key(1), (4000,), jnp.float32)
    for value in (w, b):
        assert 0.99 / np.sqrt(50) < np.abs(value).max() <= 1 / np.sqrt(50)


def test_unknown_activation():
    with pytest.raises(ValueError, match="nonlinearity 'gelu'.*swish"):
        layers.activation("gelu")
