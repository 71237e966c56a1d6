"""Gaussian data and the exact score: every sampler's law, computed without Monte Carlo, and its order of convergence.

A step of a fixed-grid sampler is then an affine map of the state plus a linear map of its noise. Applying the step to
basis states and unit noises gives both maps, and mean and covariance follow through the grid to rounding error.
"""

from __future__ import annotations

import functools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import samplers, sdes
from sgmjax.samplers._euler_maruyama import em_step
from sgmjax.samplers._sscs import free_step, sscs_step
from sgmjax.samplers.common import denoise_step

MU, S, T_MIN = 0.7, 0.5, 1e-3


def _em(score_fn, sde, z, t, s, noises):
    return em_step(score_fn, sde, z, t, s, noises[0])[0]


def _official_sscs(*args):
    return sscs_step(*args, official=True)


STEP = {"em": (_em, 1), "sscs": (sscs_step, 2), "sscs without prior": (free_step, 2)}


GRIDS = [samplers.time_grid("quadratic", n, t_min=T_MIN, denoise=False) for n in (512, 1024, 2048)]


@pytest.mark.parametrize("kind", ["em", "sscs", "sscs without prior"])
@pytest.mark.parametrize("name", tiers.alike(analytic.PROCESSES, ("vp", "ve", "psld", "oblique")))
def test_order_of_the_law(x64, name: str, kind: str):
    """EM and SSCS are of weak order 1, SSCS without the prior of order 2.

    EM: the classical result. SSCS: A/2, S, A/2 would be of order 2 were S exact. Its one Euler step, with the score
    held at the time the step starts from, replaces e^{h M} by 1 + h M with M = g g^T (grad score + P) at the start. In
    reversed time the flow of S has the expansion 1 + h M + h^2 (M^2 + M') / 2 + O(h^3): an error of h^2 (M^2 + M') / 2
    in every step, hence order 1.

    One exception: VE, where P = 0 and M = -1 / C in the clock of the variance, dC = -1: M^2 + M' = 0. Indeed z +
    (sigma_t^2 - sigma_s^2) score is the exact conditional mean of z_s (Tweedie's formula). So the mean is exact, and
    the covariance, A^2 v_1 + v_2 for A (v_1 + v_2), of order 2. Without the prior every process is as VE
    there: the mean of the whole step is E[z_s | z_t].
    """
    sde = analytic.PROCESSES[name]
    score_fn = analytic.tabulated_score(sde, MU, S, T_MIN)
    mean, covariance = analytic.errors(
        analytic.laws(*STEP[kind], sde, score_fn, GRIDS), analytic.true_law(sde, MU, S, T_MIN)
    )
    if (name, kind) == ("ve", "sscs") or kind == "sscs without prior":
        assert mean.max() < 1e-9
        analytic.check_order(covariance, 2, tolerance=0.02)
        return
    analytic.check_order(mean, 1, tolerance=0.1)
    analytic.check_order(covariance, 1, tolerance=0.1)


@pytest.mark.parametrize("name", ["vp", "psld"])
def test_order_of_the_official_splitting(x64, name: str):
    """Its second half step and its beta belong to the start of the step: an error of h^2 each, still order 1."""
    schedule = {"beta_min": 0.1, "beta_max": 16.0}
    sde = sdes.vp(**schedule) if name == "vp" else sdes.psld(**schedule)
    score_fn = analytic.tabulated_score(sde, MU, S, T_MIN)
    ours = analytic.errors(analytic.laws(*STEP["sscs"], sde, score_fn, GRIDS), analytic.true_law(sde, MU, S, T_MIN))
    official = analytic.errors(
        analytic.laws(_official_sscs, 2, sde, score_fn, GRIDS), analytic.true_law(sde, MU, S, T_MIN)
    )
    for sizes, other in zip(official, ours):
        analytic.check_order(sizes, 1, tolerance=0.1)
        assert np.all(np.abs(sizes / other - 1) > 0.01)  # it is another scheme


STATIONARY = {
    "vp": sdes.vp(),
    "cld": sdes.cld(kappa=1.0),
    "psld": sdes.psld(kappa=1.0),
    "third_order": sdes.third_order(kappa=1.0),
    "oblique": analytic.oblique_recipe(Sigma_0=1.0),
}


@pytest.mark.parametrize("name", STATIONARY)
def test_splitting_is_exact_in_the_stationary_law(x64, name: str):
    """Data and auxiliaries with the stationary law: score = -P z, the S part vanishes, and any grid is exact."""
    sde = STATIONARY[name]
    grids = [np.array([1.0, 0.4, 0.001])]
    [(mean, covariance)] = analytic.laws(*STEP["sscs"], sde, analytic.tabulated_score(sde, 0.0, 1.0, T_MIN), grids)
    np.testing.assert_allclose(mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(covariance, sde.Sigma_inf, atol=1e-9)
    [(_, covariance)] = analytic.laws(*STEP["em"], sde, analytic.tabulated_score(sde, 0.0, 1.0, T_MIN), grids)
    assert np.abs(covariance - sde.Sigma_inf).max() > 0.1  # which Euler-Maruyama is not


# ---- the probability flow: an affine map of the state at t = 1, without noise

FLOW_T_MIN = 1e-2


@functools.partial(jax.jit, static_argnames=("solver", "steps"))
def flow_by_steps(sde, score_fn, *, solver: str, steps: int):
    """The same map by `samplers.ode` on a fixed grid."""
    k = sde.k
    initial = jnp.concatenate([jnp.zeros((1, k)), jnp.eye(k)])[..., None]
    times = samplers.time_grid("quadratic", steps, t_min=FLOW_T_MIN, denoise=False)
    _, info = samplers.ode(
        jax.random.key(0), score_fn, sde, (k + 1, 1), times=times, solver=solver, denoise=False, initial=initial,
        dtype=jnp.float64,
    )  # fmt: skip
    out = info.state[..., 0]
    return jnp.concatenate([(out[1:] - out[:1]).T, out[:1].T], axis=1)


@pytest.mark.parametrize("name", tiers.alike(analytic.PROCESSES, ("psld",)))
def test_order_of_the_probability_flow(x64, name: str):
    """Sample by sample: Euler 1, Heun 2, Dopri5 5. And the exact flow carries the law at 1 to the law at t."""
    sde = analytic.PROCESSES[name]
    score_fn = analytic.tabulated_score(sde, MU, S, FLOW_T_MIN)
    exact = analytic.flow_map(sde, score_fn, FLOW_T_MIN)
    top, end = analytic.moments(sde, (1.0, FLOW_T_MIN), MU, S)
    A, b = exact[:, :-1], exact[:, -1]
    scale = np.sqrt(np.diag(end.covariance))
    np.testing.assert_allclose((A @ top.mean + b) / scale, end.mean / scale, atol=1e-8)
    carried = A @ top.covariance @ A.T
    np.testing.assert_allclose(carried / np.outer(scale, scale), end.covariance / np.outer(scale, scale), atol=1e-8)
    size = np.outer(scale, 1 / np.append(np.sqrt(np.diag(top.covariance)), 1.0))
    fine = (24, 48) if name in ("vp", "subvp") else (96, 192)  # not so fine that rounding shows
    cases = (("Euler", 1, (2048, 4096), 0.1), ("Heun", 2, (512, 1024), 0.05), ("Dopri5", 5, fine, 0.25))
    for solver, order, counts, tolerance in cases:
        sizes = [np.abs((flow_by_steps(sde, score_fn, solver=solver, steps=n) - exact) / size).max() for n in counts]
        slope = np.log2(sizes[0] / sizes[1])
        assert abs(slope - order) < tolerance, f"{solver}: observed order {slope}, errors {sizes}"


# ---- the denoising step


def denoised(sde, kind, times, *, mu=MU, s=S):
    """Mean and variance of the data variable after the denoising step from the exact law at each time."""
    k, n = sde.k, len(times)
    states = jnp.tile(jnp.concatenate([jnp.zeros((1, k)), jnp.eye(k)])[..., None], (n, 1, 1))
    t = jnp.repeat(jnp.asarray(times), k + 1)
    run = jax.jit(lambda sde, z, t: denoise_step(analytic.gaussian_score(sde, mu, s), sde, z, t, kind))
    x = np.asarray(run(sde, states, t))[:, 0, 0].reshape(n, k + 1)
    offset, row = x[:, 0], x[:, 1:] - x[:, :1]
    laws = analytic.moments(sde, times, mu, s)
    mean = np.asarray([r @ law.mean + b for r, b, law in zip(row, offset, laws)])
    return mean, np.asarray([r @ law.covariance @ r for r, law in zip(row, laws)]), laws


def test_effect_of_the_denoising_step(x64):
    """VP at rate beta from the exact law at t. Variance left over: beta (1 - s^2) t without the step, -beta t after the
    step of the reverse SDE (its drift removes noise that is not added), O(t^2) after the probability flow's, and
    s^4 a^2 / (a^2 s^2 + sigma^2) after Tweedie's posterior mean. The mean is right to O(t^2), by Tweedie exactly."""
    sde, times = sdes.vp(beta_min=2.0, beta_max=2.0), np.array([2e-4, 1e-4])
    _, _, laws = denoised(sde, True, times)
    for t, law in zip(times, laws):
        np.testing.assert_allclose(law.covariance[0, 0] - S**2, 2.0 * (1 - S**2) * t, rtol=2e-3)
    mean, variance, _ = denoised(sde, True, times)
    np.testing.assert_allclose(variance - S**2, -2.0 * times, rtol=2e-3)
    np.testing.assert_allclose(np.log2((mean[0] - MU) / (mean[1] - MU)), 2.0, atol=0.01)
    mean, variance, _ = denoised(sde, "ode", times)
    for error in (mean - MU, variance - S**2):
        np.testing.assert_allclose(np.log2(error[0] / error[1]), 2.0, atol=0.01)
    mean, variance, _ = denoised(sde, "tweedie", np.array([0.1, 0.6]))
    a2 = np.exp(-2.0 * np.array([0.1, 0.6]))
    np.testing.assert_allclose(mean, MU, rtol=1e-12)
    np.testing.assert_allclose(variance, S**4 * a2 / (a2 * S**2 + 1 - a2), rtol=1e-12)


def test_tweedie_in_phase_space(x64):
    """The posterior mean of x_0 has the variance of its regression on the whole of z_t, c^T C^-1 c with c = s^2 E_0."""
    sde, times = sdes.psld(), np.array([0.02, 0.3])
    mean, variance, laws = denoised(sde, "tweedie", times)
    np.testing.assert_allclose(mean, MU, rtol=1e-9)
    for value, law in zip(variance, laws):
        c = S**2 * law.E[:, 0]
        np.testing.assert_allclose(value, c @ np.linalg.solve(law.covariance, c), rtol=1e-9)


def test_denoising_where_the_data_receives_no_noise(x64):
    """CLD: x is smooth in t, so one step of either drift is right to O(t^2)."""
    for kind in ("sde", "ode"):
        mean, variance, _ = denoised(sdes.cld(), kind, np.array([2e-4, 1e-4]))
        for error in (mean - MU, variance - S**2):
            np.testing.assert_allclose(np.log2(error[0] / error[1]), 2.0, atol=0.05)


# ---- end to end by Monte Carlo, in float32


BATCH, EVENT = 100, 200  # 20,000 independent draws


def check_samples(states, mean, covariance) -> None:
    """Sample moments of (batch, k, event) against N(mean, covariance) within 4.5 standard errors each."""
    z = np.asarray(states, np.float64).swapaxes(1, 2).reshape(-1, states.shape[1])
    n, variance = len(z), np.diag(covariance)
    assert np.all(np.abs(z.mean(0) - mean) < 4.5 * np.sqrt(variance / n))
    offset = z - mean
    spread = np.outer(variance, variance) + covariance**2  # of a product of two of the variables
    assert np.all(np.abs(offset.T @ offset / n - covariance) < 4.5 * np.sqrt(spread / n))


@pytest.mark.parametrize("name", tiers.alike(("vp", "psld", "oblique"), ("psld",)))
@pytest.mark.parametrize("kind", ["em", "sscs", "ode"])
def test_end_to_end(name: str, kind: str):
    """The public samplers from prior to samples: state before the denoising step and samples after it.

    EM and SSCS on a grid so coarse that their law is visibly not the true one: the expected law is theirs, from the
    maps of their steps. For the adaptive ODE it is that of the exact flow.
    """
    sde, t_min = analytic.PROCESSES[name], FLOW_T_MIN
    grid = samplers.time_grid("quadratic", 60, t_min=t_min, denoise=False)
    with jax.enable_x64(True):
        score_fn = analytic.tabulated_score(sde, MU, S, t_min)
        if kind == "ode":
            flow = analytic.flow_map(sde, score_fn, t_min)
            prior = np.asarray(sde.prior_factor())
            mean, covariance = flow[:, -1], flow[:, :-1] @ prior @ prior.T @ flow[:, :-1].T
        else:
            [(mean, covariance)] = analytic.laws(*STEP[kind], sde, score_fn, [grid])
            top, end = analytic.moments(sde, (1.0, t_min), MU, S)
            prior = np.asarray(sde.prior_factor())
            _, exact = analytic.reverse_law(top, end, np.zeros(sde.k), prior @ prior.T)
            assert np.abs(covariance / exact - 1).max() > 0.02
        z = jnp.concatenate([jnp.zeros((1, sde.k)), jnp.eye(sde.k)])[..., None]
        x = np.asarray(denoise_step(score_fn, sde, z, jnp.full(sde.k + 1, t_min), True))[:, 0, 0]
        last, offset = x[1:] - x[0], x[0]

    @jax.jit
    def run(key, sde):
        options = {"rtol": 1e-6, "atol": 1e-6, "t_min": t_min} if kind == "ode" else {"times": grid, "trajectory": True}
        score_fn = analytic.gaussian_score(sde, MU, S)
        return samplers.SAMPLERS[kind](key, score_fn, sde, (BATCH, EVENT), denoise=True, **options)

    samples, info = run(jax.random.key(1), sde)
    assert samples.shape == (BATCH, EVENT) and samples.dtype == jnp.float32
    if kind != "ode":
        check_samples(info.trajectory[-1], mean, covariance)
    check_samples(samples[:, None], np.array([last @ mean + offset]), np.array([[last @ covariance @ last]]))
