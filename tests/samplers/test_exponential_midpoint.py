"""The exponential midpoint rule: weak order 2 for every process, exactness on Gaussian data, its regression, errors."""

from __future__ import annotations

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import samplers, sdes
from sgmjax.samplers._exponential_midpoint import midpoint_coefficients, midpoint_step

MU, S, T_MIN = 0.7, 0.3, 1e-2


def grid(steps: int) -> np.ndarray:
    return samplers.time_grid("quadratic", steps, t_min=T_MIN, denoise=False)


def law(sde, score_fn, coefficients):
    """Mean and covariance at the end, from the prior, of the state and the remembered m: each step is an affine map."""
    k, prior = sde.k, np.asarray(sde.prior_factor())
    mean, covariance = np.zeros(k + 1), np.zeros((k + 1, k + 1))
    covariance[:k, :k] = prior @ prior.T
    for i in range(len(coefficients.middle)):
        c = jax.tree.map(lambda v: np.asarray(v)[i], coefficients)  # noqa: B023
        affine = score_fn.series(np.float64(c.middle), np)[0]

        def step(values, constant):  # noqa: B023
            z, last, first, second = np.split(values, [k, k + 1, 2 * k + 1])
            half = c.mean_1 @ z + c.factor_1 @ first  # noqa: B023
            guessed = half + c.guess @ last  # noqa: B023
            score = affine[:, :-1] @ guessed + constant * affine[:, -1]  # noqa: B023
            m = c.from_state @ guessed + c.from_score @ score  # noqa: B023
            return np.concatenate([c.mean_2 @ half + c.forcing @ m + c.factor_2 @ second, m])  # noqa: B023

        matrix = np.stack([step(v, 0.0) for v in np.eye(3 * k + 1)], axis=1)
        mean = matrix[:, : k + 1] @ mean + step(np.zeros(3 * k + 1), 1.0)
        old, noise = matrix[:, : k + 1], matrix[:, k + 1 :]
        covariance = old @ covariance @ old.T + noise @ noise.T
    return mean[:k], covariance[:k, :k]


@pytest.mark.parametrize("data_std", [1.0, 0.0])
@pytest.mark.parametrize("name", analytic.PROCESSES)
def test_weak_order(x64, name: str, data_std: float):
    """Second order in the covariance. The mean is right on any grid: m does not depend on it for Gaussian data."""
    sde = analytic.PROCESSES[name]
    score_fn = analytic.tabulated_score(sde, MU, S, T_MIN)
    laws = [law(sde, score_fn, midpoint_coefficients(sde, grid(n), data_std=data_std)) for n in (128, 256)]
    mean, covariance = analytic.errors(laws, analytic.true_law(sde, MU, S, T_MIN))
    assert mean.max() < 2e-6  # the recipes' prior is not reached exactly at t = 1; the rest is the table's rounding
    slope = np.log2(covariance[0] / covariance[1])
    assert abs(slope - 2) < 0.1, covariance


@pytest.mark.parametrize("name", analytic.PROCESSES)
def test_exact_for_gaussian_data(x64, name: str):
    """Data of standard deviation data_std, any mean: two steps carry the prior where the exact reverse SDE does."""
    sde = analytic.PROCESSES[name]
    score_fn = analytic.tabulated_score(sde, MU, S, T_MIN)
    times = np.array([1.0, 0.3, T_MIN])
    mean, covariance = analytic.errors(
        [law(sde, score_fn, midpoint_coefficients(sde, times, data_std=S))], analytic.true_law(sde, MU, S, T_MIN)
    )
    assert mean.max() < 1e-9 and covariance.max() < 1e-8


def test_one_step_is_the_regression_of_the_kernel():
    """VP: z_s given z_t and x_0 = m is the posterior of DDPM (Ho et al. 2020, eqs. 6-7), for c = 0; in float32."""
    sde = sdes.vp()
    t, s = 0.6, 0.2
    step = jax.tree.map(lambda v: v[0], midpoint_coefficients(sde, [t, s], data_std=0.0))
    alpha_t, alpha_s = (np.exp(-0.5 * sde.schedule.integral(v)) for v in (t, s))
    ratio = alpha_t / alpha_s
    z, noises = np.full((1, 1, 1), 0.3, np.float32), np.zeros((2, 1, 1, 1), np.float32)
    x0 = 1.7

    def score_fn(z, time):  # of the point x0
        alpha = jnp.exp(-0.5 * sde.schedule.integral(time))[:, None, None]
        return -(z - alpha * x0) / (1 - alpha**2)

    out, m = midpoint_step(score_fn, jnp.asarray(z), jnp.zeros((1, 1, 1)), jnp.asarray(noises), step)
    np.testing.assert_allclose(m, x0, rtol=1e-5)
    variance_t, variance_s = 1 - alpha_t**2, 1 - alpha_s**2
    expected = (ratio * variance_s * 0.3 + alpha_s * (1 - ratio**2) * x0) / variance_t
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    through = step.mean_2 @ step.factor_1
    variance = through @ through.T + step.factor_2 @ step.factor_2.T
    np.testing.assert_allclose(variance, variance_s * (1 - ratio**2) / variance_t, rtol=1e-9)


def call(sde=None, times=None, **options):
    def nothing(z, t):
        raise AssertionError("the score must not be called")

    times = grid(4) if times is None else times
    return samplers.exponential_midpoint(
        jax.random.key(0), nothing, sde or sdes.psld(), (2, 3), times=times, **options
    )  # fmt: skip


BAD = {
    "data_std": (lambda: call(data_std=-1.0), "data_std = -1.0: must be a finite number >= 0"),
    "zero": (lambda: call(times=[1.0, 0.0]), "times must end above 0"),
    "traced": (lambda: jax.jit(lambda sde: call(sde)[0])(sdes.psld()), "samplers.midpoint_coefficients"),
    "grid": (lambda: call(coefficients=midpoint_coefficients(sdes.psld(), grid(3))), "belong to another grid"),
    "other times": (
        lambda: call(coefficients=midpoint_coefficients(sdes.psld(), 0.5 * grid(4))),
        "belong to another grid, of as many steps",
    ),
    "process": (lambda: call(coefficients=midpoint_coefficients(sdes.vp(), grid(4))), "belong to another grid"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str):
    run, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        run()


def test_coefficients_after_a_float32_program_has_closed_over_the_process():
    """Which used to leave its float32 arrays behind in jax 0.10.2, to be taken for the float64 ones."""
    sde, grid = sdes.vp(), samplers.time_grid("quadratic", 4)
    fresh = samplers.midpoint_coefficients(sdes.vp(), grid)
    jax.jit(lambda key: samplers.ode(key, lambda z, t: -z, sde, (2, 3), times=grid, solver="Heun")[0])(
        jax.random.key(0)
    )
    for ours, wanted in zip(samplers.midpoint_coefficients(sde, grid), fresh):
        np.testing.assert_array_equal(ours, wanted)
