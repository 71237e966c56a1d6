"""The variational bound with exact scores is an equality, for every x_0."""

from __future__ import annotations

import functools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import exact, objectives, sdes
from sgmjax.samplers import variational_bound
from sgmjax.samplers._likelihood import auxiliary_entropy
from sgmjax.samplers._variational_bound import prior_divergence

MIXTURE = exact.mixture([[-0.5, 0.4], [0.7, -0.5]], [0.3, 0.5], [0.4, 0.6])
PROCESSES = tiers.alike(analytic.PROCESSES, ("psld",))


@functools.partial(jax.jit, static_argnames="truncation")
def bound(sde, mixture, time_law, x0, noise, t_min, *, truncation):
    return variational_bound(
        jax.random.key(0), mixture.score_fn(sde), sde, x0, t_min=t_min, time_law=time_law, noise=noise,
        truncation=truncation,
    )  # fmt: skip


def normal_nodes(k: int, n: int):
    """Gauss-Hermite points (n^k, k) and weights of a standard normal, exact for polynomials of degree 2 n - 1."""
    points, weights = np.polynomial.hermite_e.hermegauss(n)
    grid = np.stack(np.meshgrid(*[points] * k, indexing="ij"), axis=-1).reshape(-1, k)
    product = functools.reduce(np.multiply.outer, [weights] * k).ravel()
    return grid, product / product.sum()


def quadrature(sde, mixture, x0, t_min: float, truncation: str, *, times: int, n: int):
    """Bounds (m,) at x0 (m,), one-dimensional, without drawing: nodes in time and noise are examples of one draw."""
    points, weights = normal_nodes(sde.k, n)
    u = np.repeat((np.arange(times) + 0.5) / times, len(points))
    eps = np.tile(points, (times, 1))
    # the middles of intervals of equal length in log t
    sampler = objectives.Bins(edges=np.geomspace(t_min, 1, times + 1), cdf=np.linspace(0, 1, times + 1))
    noise = np.tile(u, len(x0))[None], np.tile(eps, (len(x0), 1))[None, :, :, None]
    each = jnp.repeat(jnp.asarray(x0, jnp.float32), len(u))[:, None]
    lower, info = bound(sde, mixture, sampler, each, noise, t_min, truncation=truncation)
    # the sum of numbers of size 1 in float32, which may nearly cancel
    np.testing.assert_allclose(lower, -(info.prior + info.diffusion + info.reconstruction), rtol=1e-5, atol=1e-6)
    values = np.asarray(lower, np.float64).reshape(len(x0), times, len(points))
    return np.sum(values * weights, axis=2).mean(axis=1)


def expected(function, sde, x0, t: float, n: int):
    """E function(z) over q(z_t | x_0), (m,). function: (batch, k, 1), (batch,) -> (batch,)."""
    points, weights = normal_nodes(sde.k, n)
    each = jnp.repeat(jnp.asarray(x0, jnp.float32), len(points))[:, None]
    eps = jnp.asarray(np.tile(points, (len(x0), 1)), jnp.float32)[:, :, None]
    z = sde.transition(jnp.full(1, t)).perturb(sde.augment(each), eps)
    values = np.asarray(function(z, jnp.full(len(z), t)), np.float64)
    return values.reshape(len(x0), -1) @ weights


def mismatch(sde, mixture, x0, n: int):
    """E log p_1 / prior over q(z_1 | x_0): what is lost because the model starts from the prior."""
    return expected(lambda z, t: mixture.log_prob_t(sde, z, t) - sde.prior_logp(z), sde, x0, 1.0, n)


@pytest.mark.parametrize("name", PROCESSES)
def test_equality_for_a_gaussian(name: str):
    """To 1e-3 nats/dim. The loss of an affine score is quadratic in the noise: two nodes a variable are exact.

    "bound": the mean over data, two points of which have its first two moments, is minus the entropy; for a t_min
    where the momentum's variance has doubled it may lose something, and never gains. "ignore": the density at t_min.
    """
    sde, mean, std = analytic.PROCESSES[name], 0.3, 0.5
    mixture, x0 = exact.mixture([[mean]], [std]), np.array([mean - std, mean + std])
    entropy, lost = 0.5 * np.log(2 * np.pi * np.e * std**2), mismatch(sde, mixture, x0, 2)
    lower = quadrature(sde, mixture, x0, 1e-5, "bound", times=1000, n=2)
    np.testing.assert_allclose(np.mean(lower + lost), -entropy, atol=1e-3)
    lower = quadrature(sde, mixture, x0, 1e-2, "bound", times=1000, n=2)
    assert -0.05 < np.mean(lower + lost) + entropy < 1e-4
    lower = quadrature(sde, mixture, x0, 1e-5, "ignore", times=1000, n=2)
    start = expected(lambda z, t: mixture.log_prob_t(sde, z, t), sde, x0, 1e-5, 2) + auxiliary_entropy(sde, 1)
    np.testing.assert_allclose(lower + lost, start, atol=1e-3)


@pytest.mark.parametrize("name", [p for p in PROCESSES if analytic.PROCESSES[p.values[0]].k <= 2])
def test_equality_for_a_mixture(name: str):
    """For every x_0, to 1e-3 nats/dim; VE's mixture is blurred by sigma_min."""
    sde, x0 = analytic.PROCESSES[name], np.array([-0.6, 0.1, 0.9])
    mixture = exact.mixture([[-0.5], [0.7]], [0.3, 0.5], [0.4, 0.6])
    lower = quadrature(sde, mixture, x0, 1e-5, "bound", times=1000, n=10)
    truth = mixture.log_prob(jnp.asarray(x0[:, None], jnp.float32))
    np.testing.assert_allclose(lower + mismatch(sde, mixture, x0, 10), truth, atol=1e-3)


def test_drawn_times():
    """Unbiased, and steadier with stratified times; the same key gives the same bound."""
    sde, mixture = sdes.vp(), MIXTURE
    x0 = jnp.broadcast_to(jnp.asarray([[0.2, -0.4]]), (400, 2))
    truth = float(mixture.log_prob(x0[:1])[0])
    draw = jax.jit(lambda key, n: variational_bound(key, mixture.score_fn(sde), sde, x0, draws=n), static_argnums=1)
    spread = []
    for n in (1, 16):
        lower, info = draw(jax.random.key(0), n)
        assert abs(np.mean(lower) - truth) < 4.5 * np.std(lower) / 20 + 5e-3
        assert info.prior.shape == info.diffusion.shape == info.reconstruction.shape == (400,)
        spread.append(np.std(lower))
    assert spread[1] < 1.2 * spread[0] / 4
    assert np.array_equal(lower, draw(jax.random.key(0), 16)[0])


@pytest.mark.parametrize("name", PROCESSES)
def test_prior_divergence(name: str):
    """KL of two Gaussians, by numpy."""
    sde, x0 = analytic.PROCESSES[name], jnp.asarray([[0.5, -2.0, 1.0]])
    kernel = sde.transition(jnp.ones(1))
    prior = np.asarray(sde.prior_factor(), np.float64)
    a, b = np.asarray(kernel.covariance[0], np.float64), prior @ prior.T
    m = np.asarray(kernel.mean[0, :, :1], np.float64) * np.asarray(x0)
    trace = np.trace(np.linalg.solve(b, a)) - sde.k + np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1]
    expected = 0.5 * (3 * trace + np.sum(m * np.linalg.solve(b, m)))
    np.testing.assert_allclose(prior_divergence(sde, sde.augment(x0))[0], expected, rtol=1e-4, atol=1e-5)


BAD = {
    "truncation": ({"truncation": "x"}, "truncation must be"),
    "t_min": ({"t_min": 1.0}, "t_min = 1"),
    "bytes": ({"x0": np.zeros((2, 3), np.uint8)}, "x0 is uint8: give floats in the network's range"),
    "draws": ({"draws": 0}, "draws = 0"),
    "noise": ({"noise": (np.zeros((1, 2)), np.zeros((1, 2, 1, 3)))}, "noise has shapes"),
    "a point": ({"sde": sdes.recipe(D=[[0, 0], [0, 1]], Q=[[0, -1], [1, 0]], Sigma_0=[[0]])}, "no density"),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label: str):
    options, message = BAD[label]
    options = dict(options)
    sde = options.pop("sde", sdes.psld())
    x0 = options.pop("x0", jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=message) as caught:
        variational_bound(jax.random.key(0), lambda z, t: jnp.zeros_like(z), sde, x0, **options)
    assert "\n" not in str(caught.value)
