"""EDM against the paper's algorithm written out, the exact flow, and the law that churn must leave alone."""

from __future__ import annotations

import functools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import samplers, sdes

MU, S, T_MIN = 0.7, 0.5, 1e-2
SCALAR = ("vp", "subvp", "ve")


def level_and_mean(sde, t):
    """sigma(t) and m(t) by closed formulas, float64."""
    if isinstance(sde, sdes.VE):
        return 0.01 * 5000.0**t, np.ones_like(t)
    B = 0.1 * t + 0.5 * 19.9 * t**2
    return (2 * np.sinh(B / 2) if isinstance(sde, sdes.SubVP) else np.sqrt(np.expm1(B))), np.exp(-B / 2)


def algorithm_2(sigmas, x, noises, *, S_churn, S_min, S_max, S_noise, second_order):
    """Karras et al. 2022, alg. 2, line by line, for data N(MU, S^2). sigmas (N,): t_0 .. t_{N-1}; then t_N = 0."""
    D = lambda x, sigma: (S**2 * x + sigma**2 * MU) / (S**2 + sigma**2)  # noqa: E731
    N = len(sigmas)
    t = np.append(sigmas, 0.0)
    for i in range(N):
        gamma = min(S_churn / N, np.sqrt(2) - 1) if S_min <= t[i] <= S_max else 0.0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + np.sqrt(t_hat**2 - t[i] ** 2) * S_noise * (noises[i] if gamma else 0.0)
        d = (x_hat - D(x_hat, t_hat)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if second_order and t[i + 1] != 0:
            d_prime = (x - D(x, t[i + 1])) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_prime / 2)
    return x


@functools.partial(jax.jit, static_argnames=("grid", "options"))
def draw(sde, initial, noise, *, grid, options):
    score_fn = analytic.gaussian_score(sde, MU, S)
    options = {"noise": noise, "initial": initial, "dtype": initial.dtype} | dict(options)
    return samplers.edm(jax.random.key(0), score_fn, sde, initial.shape[:1] + (1,), times=grid, **options)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("name", SCALAR)
def test_the_papers_algorithm(name: str, second_order: bool):
    """The whole chain, in float32, for every process: only the levels of the grid and the scaling tell them apart.

    S_max leaves the first of the N = 6 steps without churn, S_min the last two.
    """
    sde, rng = analytic.PROCESSES[name], np.random.default_rng(0)
    grid = samplers.time_grid("rho", 6, t_min=T_MIN, sde=sde)
    sigma, m = level_and_mean(sde, grid)
    settings = {"S_churn": 1.5, "S_min": 1.01 * sigma[-2], "S_max": 0.9 * sigma[0], "S_noise": 1.1}
    x, noises = sigma[0] * rng.normal(size=20), rng.normal(size=(6, 20))
    expected = algorithm_2(sigma, x, noises, second_order=second_order, **settings)
    options = (*settings.items(), ("second_order", second_order))
    initial = jnp.asarray(m[0] * x, jnp.float32)[:, None, None]
    noise = jnp.asarray(noises[:5, None, :, None, None], jnp.float32)
    samples, info = draw(sde, initial, noise, grid=tuple(grid), options=options)
    # float32: 1e-7 of x ~ sigma_max, of which 1e-2 and less is left after the steps
    np.testing.assert_allclose(samples[:, 0], expected, rtol=2e-5, atol=2e-5)
    assert info.nfe == (11 if second_order else 6)  # 2 N - 1
    plain = algorithm_2(sigma, x, noises, second_order=second_order, **(settings | {"S_churn": 0.0}))
    assert np.abs(plain - expected).max() > 0.05


FAST_SCALAR = tiers.alike(("vp", "subvp", "ve"), ("vp", "ve"))


@pytest.mark.parametrize("name", FAST_SCALAR)
def test_order_of_the_flow(x64, name: str):
    """Path by path against the exact probability flow: Heun 2, Euler 1."""
    sde = analytic.PROCESSES[name]
    exact = analytic.flow_map(sde, analytic.tabulated_score(sde, MU, S, T_MIN), T_MIN)
    initial = jnp.asarray([0.0, 1.0])[:, None, None]
    prior = float(np.asarray(sde.prior_factor())[0, 0])
    for second_order, order in ((True, 2), (False, 1)):
        errors = []
        for n in (200, 400):
            grid = samplers.time_grid("rho", n, t_min=T_MIN, denoise=False, sde=sde)
            options = (("denoise", False), ("second_order", second_order))
            out = draw(sde, initial, None, grid=tuple(grid), options=options)[0][:, 0]
            errors.append(max(abs(out[0] - exact[0, 1]), abs(out[1] - out[0] - exact[0, 0]) * prior) / S)
        assert abs(np.log2(errors[0] / errors[1]) - order) < 0.1, errors


@functools.partial(jax.jit, static_argnames=("grid", "S_churn", "S_noise"))
def law(sde, score_fn, *, grid, S_churn: float, S_noise: float = 1.0):
    """Mean and variance at the end of the grid from the prior, without Monte Carlo: every step is affine in its state
    and linear in its noise. A batch element each for the offset, the start, and the noise of every step."""
    n = len(grid) - 1
    initial = jnp.zeros(n + 2).at[1].set(1.0)[:, None, None]
    noise = jnp.concatenate([jnp.zeros((n, 2)), jnp.eye(n)], axis=1)[:, None, :, None, None]
    x = samplers.edm(
        jax.random.key(0), score_fn, sde, (n + 2, 1), times=grid, initial=initial, noise=noise, S_churn=S_churn,
        S_noise=S_noise, denoise=False, dtype=jnp.float64,
    )[0][:, 0]  # fmt: skip
    response = x[1:] - x[0]
    prior = jnp.asarray(sde.prior_factor())[0, 0]
    return x[0], (response[0] * prior) ** 2 + jnp.sum(response[1:] ** 2)


@pytest.mark.parametrize("name", tiers.alike(("vp", "subvp", "ve"), ("ve",)))
def test_churn_leaves_the_law_alone(x64, name: str):
    """With the exact score the law becomes the data's at t_min, to second order, however much noise goes in. Every step
    maps the data's mean onto itself, so the mean is right once the prior's is forgotten, which churn sees to. By the
    end all noise has come from churn, so that S_noise multiplies the standard deviation."""
    sde = analytic.PROCESSES[name]
    score_fn = analytic.tabulated_score(sde, MU, S, 1e-3)
    end = analytic.moments(sde, [T_MIN], MU, S)[0]
    mean, variance = end.mean[0], end.covariance[0, 0]
    errors = []
    for n in (200, 400):
        grid = tuple(samplers.time_grid("rho", n, t_min=T_MIN, denoise=False, sde=sde))
        got = law(sde, score_fn, grid=grid, S_churn=40.0)
        assert abs(float(got[0]) - mean) < 1e-9
        errors.append(abs(float(got[1]) / variance - 1))
    assert errors[1] < 3e-3 and abs(np.log2(errors[0] / errors[1]) - 2) < 0.15, errors
    loud = law(sde, score_fn, grid=grid, S_churn=40.0, S_noise=1.05)
    np.testing.assert_allclose(float(loud[1]) / variance, 1.05**2, rtol=3e-3)


def test_churn_stops_where_the_process_ends():
    """The first step starts at t = 1 and cannot be raised: t_hat stays, and nothing is added."""
    from sgmjax.samplers._edm import levels

    for name in SCALAR:
        sde = analytic.PROCESSES[name]
        grid = samplers.time_grid("rho", 10, t_min=1e-3, sde=sde)
        got = jax.jit(lambda sde: levels(sde, grid, S_churn=100.0, S_min=0.0, S_max=np.inf, num_steps=10))(sde)  # noqa: B023
        assert got.t_hat[0] == 1 and got.sigma_hat[0] == got.sigma[0]
        np.testing.assert_allclose(
            got.sigma_hat[1:] / got.sigma[1:], np.minimum(np.sqrt(2), got.sigma[0] / got.sigma[1:]), rtol=1e-5
        )
        np.testing.assert_allclose(level_and_mean(sde, np.asarray(got.t_hat, np.float64))[0], got.sigma_hat, rtol=1e-5)


def test_bad_input_is_refused_in_one_line():
    grid = np.array([1.0, 0.5, 0.1])
    call = lambda sde, **options: samplers.edm(jax.random.key(0), None, sde, (2, 1), times=grid, **options)  # noqa: E731
    bad = [
        (lambda: call(sdes.psld()), "one variable .*, this one has 2: use sscs"),
        (lambda: call(sdes.vp(), S_churn=-1.0), "S_churn = -1"),
        (lambda: call(sdes.vp(), S_min=2.0, S_max=1.0), "S_min = 2, S_max = 1"),
        (lambda: call(sdes.vp(), S_noise=0.0), "S_noise = 0"),
        (lambda: samplers.edm(jax.random.key(0), None, sdes.vp(), (2, 1), times=grid[::-1]), "times must be"),
    ]
    for make, message in bad:
        with pytest.raises(ValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
