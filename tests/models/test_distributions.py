"""Output distributions of image decoders, against 60-digit arithmetic and as the probabilities they claim to be."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from sgmjax.models import distributions

# Locations inside and far outside of the image's range, scales from the smallest allowed to far wider than the range.
LOCATIONS = (-3.0, -1.0, -0.31, 0.0, 0.4, 1.0, 2.5)
LOG_SCALES = (-7.0, -4.0, -1.0, 3.0)


def _levels(num_bits):
    return 2.0 * np.arange(2**num_bits) / (2**num_bits - 1) - 1.0


def _grid(num_bits):
    """Every level under every pair of parameters, as images of one pixel: x, loc, log_scale, each (n, 1, 1, 1)."""
    grid = np.asarray(list(itertools.product(_levels(num_bits), LOCATIONS, LOG_SCALES)), np.float32)
    return tuple(jnp.asarray(column).reshape(-1, 1, 1, 1) for column in grid.T)


def _exact_log_mass(cdf, x, loc, log_scale, half_bin):
    """log of the mass of a level's bin in 60 digits, from the cumulative distribution function."""
    with mpmath.workdps(60):
        x, loc, scale = mpmath.mpf(float(x)), mpmath.mpf(float(loc)), mpmath.exp(mpmath.mpf(float(log_scale)))
        if x < -0.999:
            return float(mpmath.log(cdf((x + half_bin - loc) / scale)))
        if x > 0.999:
            return float(mpmath.log(cdf(-(x - half_bin - loc) / scale)))
        if x > loc:  # both functions are symmetric
            x, loc = -x, -loc
        return float(mpmath.log(cdf((x + half_bin - loc) / scale) - cdf((x - half_bin - loc) / scale)))


def _logistic_cdf(x):
    return 1 / (1 + mpmath.exp(-x))


def test_discretised_logistic_is_right_in_float32_also_in_the_tails():
    x, loc, log_scale = _grid(4)
    got = distributions.DiscretizedLogistic(loc, log_scale, num_bits=4).log_prob(x)
    half_bin = mpmath.mpf(1) / 15
    expected = [_exact_log_mass(_logistic_cdf, *v, half_bin) for v in zip(*map(np.ravel, (x, loc, log_scale)))]
    assert np.min(expected) < -3000  # the tails are in the test
    # The standardised edge x / scale carries float32's rounding of x - loc: 2e-7 * e^7 in nats at the narrowest scale.
    np.testing.assert_allclose(np.ravel(got), expected, rtol=2e-6, atol=5e-4)


def test_discretised_normal_is_right_in_float32():
    x, loc, log_scale = _grid(4)
    keep = (np.ravel(log_scale) > -6.0).nonzero()[0]  # narrower, log-probabilities of -1e6 are nobody's
    x, loc, log_scale = x[keep], loc[keep], log_scale[keep]
    got = distributions.discretized_normal_log_prob(x, loc, log_scale, num_bits=4)
    half_bin = mpmath.mpf(1) / 15
    expected = [_exact_log_mass(mpmath.ncdf, *v, half_bin) for v in zip(*map(np.ravel, (x, loc, log_scale)))]
    # Bins 1/150 of a sigma wide: the difference of two logarithms near each other costs 1e-7 * 150.
    np.testing.assert_allclose(np.ravel(got), expected, rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_of_logistics_sums_to_one_over_all_images(channels):
    bits, mixtures = 3, 4
    outputs = distributions.decoder_channels("dml", channels, mixtures)
    logits = 2.0 * jax.random.normal(jax.random.key(0), (1, 1, 1, outputs))
    images = np.asarray(list(itertools.product(_levels(bits), repeat=channels)), np.float32)
    decoder = distributions.decoder_distribution("dml", logits, num_bits=bits, num_mixtures=mixtures)
    log_prob = decoder.log_prob(jnp.asarray(images)[:, None, None, :])
    assert log_prob.shape == (8**channels, 1, 1)
    np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64)).sum(), 1.0, rtol=2e-6)


def test_gradients_are_finite_for_any_parameters():
    extremes = jnp.asarray([-1e4, -30.0, 0.0, 30.0, 1e4])
    for name in ("bin", "dl", "dml"):
        n = distributions.decoder_channels(name, 3)
        logits = jnp.broadcast_to(extremes[:, None, None, None], (5, 1, 1, n))

        def loss(logits, name=name):
            decoder = distributions.decoder_distribution(name, logits)
            return sum(
                jnp.sum(distributions.reconstruction_loss(decoder, jnp.full((5, 1, 1, 3), v))) for v in (-1, 0, 1)
            )

        assert np.isfinite(jax.grad(loss)(logits)).all(), name


def test_bernoulli():
    logits = jnp.asarray([-40.0, -1.0, 0.0, 2.0, 90.0]).reshape(1, 1, 5, 1)
    decoder = distributions.Bernoulli(logits)
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    np.testing.assert_allclose(decoder.log_prob(jnp.ones_like(logits)), np.log(p), rtol=1e-6)
    np.testing.assert_allclose(decoder.log_prob(-jnp.ones_like(logits))[0, 0, -1, 0], -90.0)
    np.testing.assert_allclose(decoder.mean(), 2 * p - 1, rtol=1e-6)
    draws = jax.vmap(decoder.sample)(jax.random.split(jax.random.key(0), 4000))
    # Four standard errors.
    np.testing.assert_allclose(np.mean(draws == 1, axis=0), p, atol=4 * 0.5 / np.sqrt(4000))
    assert set(np.unique(draws)) == {-1.0, 1.0}


def test_normal_log_prob_and_samples():
    loc, log_sigma = jnp.full((1, 1, 1, 1), 0.3), jnp.full((1, 1, 1, 1), -1.0)
    decoder = distributions.Normal(loc, log_sigma)
    x = jnp.asarray([-1.0, 0.2, 0.9]).reshape(3, 1, 1, 1)
    z = (np.ravel(x) - 0.3) * np.e
    np.testing.assert_allclose(np.ravel(decoder.log_prob(x)), -0.5 * z**2 - 0.5 * np.log(2 * np.pi) + 1.0, rtol=1e-6)
    draws = jax.vmap(decoder.sample)(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(draws.std(), np.exp(-1.0), rtol=0.05)  # standard error 1.1%
    np.testing.assert_allclose(decoder.sample(jax.random.key(1), temperature=0.0), loc)


def test_samples_of_logistics_follow_their_cumulative_distribution():
    logits = jnp.asarray([0.1, -0.2, 0.05, -2.0, -1.5, -3.0]).reshape(1, 1, 1, 6)
    decoder = distributions.decoder_distribution("dl", logits)
    draws = np.asarray(jax.vmap(decoder.sample)(jax.random.split(jax.random.key(0), 4000)))[:, 0, 0, 0]
    for channel, (loc, scale) in enumerate(zip([0.1, -0.2, 0.05], np.exp([-2.0, -1.5, -3.0]), strict=True)):
        for x in (-0.5, 0.0, 0.2):
            share = np.mean(draws[:, channel] < x)
            assert abs(share - 1 / (1 + np.exp(-(x - loc) / scale))) < 4 * 0.5 / np.sqrt(4000)


def test_mixture_samples_depend_on_earlier_channels_as_the_density_says():
    """One component almost without width: green is a function of red, and blue of both."""
    loc, coeffs = np.asarray([0.2, -0.1, 0.3]), np.asarray([0.5, -0.4, 0.8])
    parameters = np.stack([loc, np.full(3, -20.0), np.arctanh(coeffs)], axis=-1)  # (channel, parameter), one component
    logits = jnp.asarray(np.concatenate([[0.0], parameters.ravel()]), jnp.float32).reshape(1, 1, 1, 10)
    decoder = distributions.decoder_distribution("dml", logits, num_mixtures=1)
    red = loc[0]
    green = loc[1] + coeffs[0] * red
    expected = [red, green, loc[2] + coeffs[1] * red + coeffs[2] * green]
    np.testing.assert_allclose(np.ravel(decoder.mean()), expected, rtol=1e-5)
    sample = np.ravel(decoder.sample(jax.random.key(0)))
    np.testing.assert_allclose(sample, expected, atol=10 * np.exp(-7))  # log-scales are at least -7
    # The density is highest there.
    near = decoder.log_prob(jnp.asarray(expected, jnp.float32).reshape(1, 1, 1, 3))
    off = decoder.log_prob(
        jnp.asarray(expected, jnp.float32).reshape(1, 1, 1, 3) + jnp.asarray([0, 0.1, 0.0]).reshape(1, 1, 1, 3)
    )
    assert float(near.sum()) > float(off.sum()) + 10


def test_fewer_bits_are_the_upper_bits():
    levels = np.arange(256)
    x = jnp.asarray(levels / 255, jnp.float32)
    np.testing.assert_array_equal(np.rint(np.asarray(distributions.reduce_bits(x, 5)) * 31), levels >> 3)
    back = (jnp.asarray(levels / 127.5 - 1, jnp.float32) + 1) / 2  # as it comes back from [-1, 1]
    np.testing.assert_array_equal(np.rint(np.asarray(distributions.reduce_bits(back, 5)) * 31), levels >> 3)
    assert distributions.reduce_bits(x, 8) is x


def test_reconstruction_loss_leaves_out_the_border():
    logits = jax.random.normal(jax.random.key(0), (2, 6, 6, 1))
    x = jnp.sign(jax.random.normal(jax.random.key(1), (2, 6, 6, 1)))
    loss = functools.partial(distributions.reconstruction_loss, crop=2)
    inside = slice(2, 4)
    expected = distributions.reconstruction_loss(
        distributions.Bernoulli(logits[:, inside, inside]), x[:, inside, inside]
    )
    np.testing.assert_allclose(loss(distributions.Bernoulli(logits), x), expected, rtol=1e-6)
    assert distributions.bits_per_dim(784 * np.log(2.0), 784) == pytest.approx(1.0)


def test_a_binary_decoder_refuses_grey_data():
    for grey in (np.asarray([0, 17, 255], np.uint8), np.asarray([0.0, 0.5, 1.0]), np.asarray([-1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match="'bin' is for binary images and the data have grey values such as"):
            distributions.check_binary(grey)
        distributions.check_binary(grey, "dl")
    for binary in (np.asarray([0, 255], np.uint8), np.asarray([0, 1]), np.zeros(3), np.asarray([-1.0, 1.0])):
        distributions.check_binary(binary)


def test_unknown_decoders_and_impossible_images_are_refused():
    with pytest.raises(ValueError, match="'gauss' is unknown; choose one of bin, dl, dml, normal"):
        distributions.decoder_channels("gauss", 3)
    with pytest.raises(ValueError, match="'gauss' is unknown"):
        distributions.decoder_distribution("gauss", jnp.zeros((1, 1, 1, 6)))
    with pytest.raises(ValueError, match="'dml' is for images of 1 or 3 channels, not 4"):
        distributions.decoder_channels("dml", 4)
    assert distributions.decoder_channels("dml", 3) == 100
