"""The oracle against automatic differentiation, quadrature and its own samples."""

from __future__ import annotations

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import exact, preconditioning, score, sdes
from sgmjax._inputs import InputError

EVENT = (3, 2)


def some_mixture() -> exact.GaussianMixture:
    rng = np.random.default_rng(0)
    return exact.mixture(rng.normal(size=(4, *EVENT)), [0.2, 0.5, 0.3, 1.0], [1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize("name", tiers.alike(["ve", "psld", "oblique"], ["psld"]))
def test_score_is_the_gradient_of_the_log_density(x64, name: str):
    sde, mixture = analytic.PROCESSES[name], some_mixture()
    z = sde.prior_sample(jax.random.key(0), (5, *EVENT), jnp.float64)
    t = jnp.asarray([1e-3, 0.05, 0.3, 0.7, 1.0])
    gradient = jax.grad(lambda z: jnp.sum(mixture.log_prob_t(sde, z, t)))(z)
    np.testing.assert_allclose(mixture.score_fn(sde, noised_only=False)(z, t), gradient, rtol=1e-9, atol=1e-9)
    noised = sde.expand(sde.restrict(gradient))
    np.testing.assert_allclose(mixture.score_fn(sde)(z, t), noised, rtol=1e-9, atol=1e-9)


def test_density_of_the_state_for_one_gaussian(x64):
    """Against the covariance of the marginal, by numpy."""
    sde, mu, s, t = analytic.PROCESSES["psld"], 0.7, 0.5, 0.2
    [law] = analytic.moments(sde, (t,), mu, s)
    z = jax.random.normal(jax.random.key(0), (3, sde.k, 4), jnp.float64)
    offset = np.asarray(z) - law.mean[None, :, None]
    square = np.einsum("bie,ij,bje->b", offset, np.linalg.inv(law.covariance), offset)
    expected = -0.5 * (square + 4 * np.linalg.slogdet(2 * np.pi * law.covariance)[1])
    mixture = exact.mixture(np.full((1, 4), mu), s)
    np.testing.assert_allclose(mixture.log_prob_t(sde, z, jnp.full((3,), t)), expected, rtol=1e-10)


def test_data_density_integrates_to_one_and_fits_the_samples(x64):
    mixture = exact.ring()
    ticks = np.linspace(-3, 3, 601)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    density = np.exp(np.asarray(mixture.log_prob(jnp.asarray(points))))
    np.testing.assert_allclose(density.sum() * 0.01**2, 1.0, atol=1e-8)
    x, label = mixture.sample(jax.random.key(0), 20_000)
    for moment in (lambda p: p[:, 0] ** 2, lambda p: np.hypot(p[:, 0], p[:, 1])):
        wanted = np.sum(moment(points) * density) * 0.01**2
        np.testing.assert_allclose(moment(np.asarray(x)).mean(), wanted, atol=4.5 * moment(np.asarray(x)).std() / 141)
    assert np.abs(np.bincount(np.asarray(label)) / 20_000 - 1 / 8).max() < 4.5 * np.sqrt(1 / 8 / 20_000)


def test_classifier_is_bayes(x64):
    """At t near 0 it names the component of the data, at t = 1 it knows the weights alone."""
    sde, mixture = analytic.PROCESSES["psld"], some_mixture()
    x, label = mixture.sample(jax.random.key(0), 8, jnp.float64)
    exact_class = mixture.classify(sde, sde.augment(x), jnp.full((8,), 1e-5))
    offset = (np.asarray(x)[:, None] - mixture.means) / mixture.stds[:, None, None]
    each = np.sum(-0.5 * offset**2, axis=(2, 3)) - 6 * np.log(mixture.stds) + mixture.log_weights
    expected = each - np.logaddexp.reduce(each, axis=1, keepdims=True)
    np.testing.assert_allclose(exact_class, expected, atol=0.02)
    last = mixture.classify(sde, sde.prior_sample(jax.random.key(1), (8, *EVENT), jnp.float64), jnp.ones(8))
    np.testing.assert_allclose(np.exp(last), np.tile([0.1, 0.2, 0.3, 0.4], (8, 1)), atol=0.1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros(3), 1.0), "components"),
        ((np.zeros((2, 3)), 0.0), "positive"),
        ((np.zeros((2, 3)), 1.0, [1.0]), "one for each of the 2"),
    ],
)
def test_bad_mixtures(arguments, message):
    with pytest.raises(ValueError, match=message):
        exact.mixture(*arguments)


def test_arrays_of_another_shape_are_refused():
    """Where they would be broadcast."""
    two, t = exact.mixture([[0.5, 0.0], [1.0, 1.0]], 1.5), jnp.full(3, 0.5)
    psld, image = sdes.psld(), exact.mixture(np.zeros((1, 8, 8, 1)), 1.0)
    for call, words in (
        (lambda: two.log_prob(jnp.zeros((3, 1))), r"x0 has shape \(3, 1\), expected \(batch, 2\)"),
        (lambda: two.log_prob(jnp.zeros(2)), r"x0 has shape \(2,\), expected \(batch, 2\)"),
        (lambda: image.log_prob(jnp.zeros((2, 8, 8, 3))), r"x0 has shape \(2, 8, 8, 3\), expected \(batch, 8, 8, 1\)"),
        (lambda: two.log_prob_t(psld, jnp.zeros((3, 1, 2)), t), r"z has shape \(3, 1, 2\), expected \(batch, 2, 2\)"),
        (lambda: two.classify(sdes.vp(), jnp.zeros((3, 2)), t), r"z has shape \(3, 2\), expected \(batch, 1, 2\)"),
        (lambda: two.score_fn(psld)(jnp.zeros((3, 2, 1)), t), r"z has shape \(3, 2, 1\), expected \(batch, 2, 2\)"),
        (lambda: two.denoiser()(jnp.zeros((3, 1)), t), r"y has shape \(3, 1\), expected \(batch, 2\)"),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_densities_of_whole_numbers_are_refused():
    """Constants of the law would be rounded to whole numbers."""
    mixture, sde, t = exact.mixture([[0.5, 0.0]], 1.5), analytic.PROCESSES["psld"], jnp.full(1, 0.5)
    x, z = jnp.array([[1, 2]]), jnp.ones((1, 2, 2), int)
    oblique = sdes.recipe(D=[[1.0, 2.0], [2.0, 4.0]], Q=[[0.0, -0.5], [0.5, 0.0]])  # whose frame is of fractions
    for call in (
        lambda: mixture.log_prob(x),
        lambda: mixture.denoiser().noise(x, t),
        lambda: preconditioning.denoiser_from_network(lambda x, cond: x)(x, t),
        lambda: mixture.log_prob_t(sde, z, t),
        lambda: mixture.score_fn(sde)(z, t),
        lambda: sde.prior_logp(z),
        lambda: score.normal_eps(sde)(z, t),
        lambda: oblique.restrict(z),
    ):
        with pytest.raises(InputError, match=r"^(x0|y|z|eps) is int32: must be floats"):
            call()
