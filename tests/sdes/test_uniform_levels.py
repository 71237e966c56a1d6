"""VE with equally spaced noise levels: its coefficients by calculus, exact samplers, and the score network's loss."""

from __future__ import annotations

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import objectives, samplers, score, sdes
from sgmjax.samplers import linear_flow
from sgmjax.sdes import noise_levels as nl

OPTIMIZED = True  # bounds of some roundings

LOW, HIGH = 0.02, 30.0
T = np.array([1e-5, 1e-3, 0.1, 0.5, 0.9, 1.0])
SIGMA = LOW + T * (HIGH - LOW)  # float64


def process(**options) -> sdes.VE:
    return sdes.ve(sigma_min=LOW, sigma_max=HIGH, sigma_dist="uniform", **options)


@pytest.mark.parametrize("sigma2_0", [None, 0.0, 1e-4])
def test_kernel(sigma2_0):
    """Variances in float32 against float64, from the start and between times; and the time of a variance."""
    sde, t = process(sigma2_0=sigma2_0), jnp.asarray(T, jnp.float32)
    t64 = np.asarray(t, np.float64)
    first = LOW**2 if sigma2_0 is None else sigma2_0
    rise = t64 * (HIGH - LOW) * (2 * LOW + t64 * (HIGH - LOW))
    kernel = sde.transition(t)
    np.testing.assert_allclose(kernel.factor[:, 0, 0] ** 2, first + rise, rtol=1e-6)
    np.testing.assert_array_equal(kernel.mean, np.ones((len(T), 1, 1)))
    np.testing.assert_allclose(sde.inverse_variance(jnp.asarray(first + rise, jnp.float32)), t, rtol=1e-4)
    s = np.float32(t64 * (1 - 2.0**-10))
    expected = (t64 - s) * (HIGH - LOW) * (2 * LOW + (t64 + s) * (HIGH - LOW))
    np.testing.assert_allclose(sde.diffusion_between(jnp.asarray(s), t)[:, 0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(sde.transition_between(jnp.asarray(s), t).factor[:, 0, 0] ** 2, expected, rtol=1e-5)


def test_diffusion_is_the_rate_of_the_variance(x64):
    sde, t = process(), jnp.asarray(T)
    rate = jax.vmap(jax.grad(lambda t: sde.transition(t[None]).factor[0, 0, 0] ** 2))(t)
    np.testing.assert_allclose(sde.diffusion_squared(t)[:, 0, 0], rate, rtol=1e-12)
    np.testing.assert_allclose(rate, 2 * SIGMA * (HIGH - LOW), rtol=1e-12)


@pytest.mark.parametrize("sigma2_0", [None, 1e-4])
def test_on_the_host_as_on_the_device(x64, sigma2_0):
    sde, t = process(sigma2_0=sigma2_0), jnp.asarray(T)
    host = linear_flow.evaluate(linear_flow.float64_process(sde), T)
    np.testing.assert_allclose(host.factor, sde.transition(t).factor, rtol=1e-12)
    np.testing.assert_allclose(host[1], sde.diffusion_squared(t), rtol=1e-12)


SDE = sdes.ve(sigma_min=0.05, sigma_max=4.0, sigma_dist="uniform")
MU, S = 0.5, 0.3  # of the data, N(MU, S^2)


def test_annealed_langevin_is_at_these_levels():
    """Each step by hand on the table of levels: alpha_i = eps (sigma_i / sigma_L)^2, x + alpha s + sqrt(2 alpha) n."""
    levels, each, eps = 5, 2, 1e-3
    rng = np.random.default_rng(0)
    initial, noise = rng.standard_normal((3, 1, 2)), rng.standard_normal((levels * each, 1, 3, 1, 2))
    score_fn = analytic.gaussian_score(SDE, MU, S)
    found, _ = samplers.annealed_langevin(
        jax.random.key(0), score_fn, SDE, (3, 2), times=sdes.level_times(levels), steps_per_level=each, step_size=eps,
        initial=jnp.asarray(initial, jnp.float32), noise=jnp.asarray(noise, jnp.float32),
    )  # fmt: skip
    x = initial[:, 0]
    for i, sigma in enumerate(np.repeat(np.linspace(4.0, 0.05, levels), each)):
        alpha = eps * (sigma / 0.05) ** 2
        x = x - alpha * (x - MU) / (S**2 + sigma**2) + np.sqrt(2 * alpha) * noise[i, 0, :, 0]
    x = x - 0.05**2 * (x - MU) / (S**2 + 0.05**2)
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ode", "ddim", "deis"])
def test_flows_end_where_they_should(name):
    """The probability flow scales the distance from the mean by the marginal's deviation."""
    z, t_min = np.random.default_rng(0).normal(0, 4, (5, 1, 2)), 1e-3
    steps = {"t_min": t_min} if name == "ode" else {"times": samplers.time_grid("rho", 60, t_min=t_min, sde=SDE)}
    score_fn = analytic.gaussian_score(SDE, MU, S)
    _, info = samplers.SAMPLERS[name](
        jax.random.key(0), score_fn, SDE, (5, 2), denoise=False, initial=jnp.asarray(z, jnp.float32), **steps
    )
    last = np.sqrt(S**2 + (0.05 + t_min * 3.95) ** 2)
    # first order in 60 steps is off by a hundredth, the others by a thousandth
    np.testing.assert_allclose(info.state, MU + (z - MU) * last / np.sqrt(S**2 + 16), atol=2e-2)


@pytest.mark.parametrize("name", ["em", "sscs", "pc"])
def test_noisy_samplers_reach_the_data(name):
    score_fn, times = analytic.gaussian_score(SDE, MU, S), samplers.time_grid("uniform", 200, t_min=1e-4)
    run = jax.jit(lambda key: samplers.SAMPLERS[name](key, score_fn, SDE, (4000, 2), times=times)[0])
    x = run(jax.random.key(0))
    # 8,000 numbers: standard errors are .3 / sqrt(8000) = .0034 and .0024; the rest is for steps of 1/200
    assert abs(float(x.mean()) - MU) < 0.02 and abs(float(x.std()) - S) < 0.02


def test_a_network_is_told_its_level_and_trained_there():
    """The loss by hand, (sigma^p / 2) |s + n / sigma|^2, at drawn levels; the index is that of the table."""
    levels = 7
    sde = sdes.ve(sigma_min=0.5, sigma_max=3.5, sigma_dist="uniform")
    table = np.linspace(3.5, 0.5, levels)
    t = jnp.asarray(sdes.level_times(levels), jnp.float32)
    np.testing.assert_array_equal(score.condition(sde, t, "level", levels), np.arange(levels))
    np.testing.assert_allclose(score.condition(sde, t, "sigma"), table, rtol=1e-6)
    n = np.random.default_rng(0).standard_normal((levels, 1, 5)).astype(np.float32)
    network = lambda x, index: 0.1 * x * (1 + index[:, None])  # noqa: E731
    eps_fn = score.eps_from_network(
        network, sde, parameterization="score", time_conditioning="level", num_levels=levels
    )
    z0 = np.ones((levels, 1, 5), np.float32)
    loss = objectives.annealed_dsm_loss(eps_fn, sde, jnp.asarray(z0), t, jnp.asarray(n), anneal_power=1.5)
    sigma, index = table[:, None, None], np.arange(levels)[:, None, None]
    predicted = 0.1 * (z0 + sigma * n) * (1 + index)
    expected = np.sum(0.5 * sigma**1.5 * (predicted + n / sigma) ** 2, axis=(1, 2))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(nl.uniform_levels(3.5, 0.5, levels), table)
