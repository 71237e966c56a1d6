"""Splitting integrators: the papers' updates written out for PSLD, orders, conservation, laws of O, errors."""

from __future__ import annotations

import functools
import itertools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import samplers, sdes
from sgmjax.samplers._splitting import SCHEMES, evaluations, noise_part, splitting_step

MU, S, T_MIN = 0.7, 0.3, 1e-2
GRIDS, FINE = (
    [samplers.time_grid("quadratic", n, t_min=T_MIN, denoise=False) for n in counts]
    for counts in ((256, 512), (4096, 8192))
)


def _step(scheme: str, noise_scale=1.0):
    def step(score_fn, sde, z, t, s, noises):
        mean, factor = noise_part(sde, t.reshape(1), s.reshape(1), noise_scale=noise_scale, dtype=z.dtype)
        return splitting_step(score_fn, sde, z, t, s, noises, scheme=scheme, noise=(mean[0], factor[0]))

    return step


STEP = functools.cache(_step)  # one function object a scheme, so that `step_maps` compiles it once


# ---- the updates as PSLD's paper has them, in its notation, in plain numpy


def published_step(scheme: str, sde_args: dict, x, m, t, s, eps_x, eps_m, score):
    """PSLD's A, B and O by hand: constant beta, Gamma = gamma, M = 1 / m_inv, h = t - s; score(x, m, t) is a pair."""
    beta, gamma, nu = (sde_args[v] for v in ("beta", "gamma", "nu"))
    M = 4 / (gamma - nu) ** 2
    h = t - s
    kind, word = scheme.split("_", 1)
    letters = {"symplectic_euler": "BA", "velocity_verlet": "BAB"}.get(word, word.upper())
    twice = 2 if "O" in letters else 1  # reverse SDE: both frictions and scores double against the probability flow
    count, values = 0, None
    for letter in letters:
        tau = h / letters.count(letter)
        if letter == "O":
            x = np.exp(-tau * beta * gamma / 2) * x + np.sqrt(1 - np.exp(-tau * beta * gamma)) * eps_x
            m = np.exp(-tau * beta * nu / 2) * m + np.sqrt(M) * np.sqrt(1 - np.exp(-tau * beta * nu)) * eps_m
            continue
        if kind == "naive" or count in (0, 2):
            values = score(x, m, s if kind == "reduced" and count == 2 else t)
        count += 1
        s_x, s_m = values
        if letter == "A":
            x = x + tau * beta / 2 * (twice * gamma * x - m / M + twice * gamma * s_x)
        else:
            m = m + tau * beta / 2 * (x + twice * nu * m + twice * M * nu * s_m)
    return x, m


@pytest.mark.parametrize("scheme", SCHEMES)
def test_updates_of_the_paper(x64, scheme: str):
    """Term by term for PSLD, with a score that tells x, m and t apart."""
    parameters = {"beta": 8.0, "gamma": 0.25, "nu": 4.25}
    sde = sdes.psld(beta_min=8.0, beta_max=8.0, gamma=0.25, nu=4.25)
    rng = np.random.default_rng(0)
    z, noises = rng.normal(size=(5, 2, 3)), rng.normal(size=(1, 5, 2, 3))
    calls: list = []

    def score_fn(z, t):
        calls.append(1)
        t = t[:, None]
        return jnp.stack([-jnp.sin(z[:, 0]) + t * z[:, 1], -z[:, 1] * (1 + t) + jnp.cos(z[:, 0])], axis=1)

    def by_hand(x, m, t):
        return -np.sin(x) + t * m, -m * (1 + t) + np.cos(x)

    t, s = np.float64(0.6), np.float64(0.45)
    out = STEP(scheme)(score_fn, sde, jnp.asarray(z), jnp.asarray(t), jnp.asarray(s), jnp.asarray(noises))
    x, m = published_step(scheme, parameters, z[:, 0], z[:, 1], t, s, noises[0, :, 0], noises[0, :, 1], by_hand)
    np.testing.assert_allclose(out[:, 0], x, rtol=1e-12)
    np.testing.assert_allclose(out[:, 1], m, rtol=1e-12)
    assert len(calls) == evaluations(scheme)


# ---- orders


@functools.cache
def exact(name: str, stochastic: bool):
    """The score, and where the prior is carried: by the reverse SDE, or by the probability flow."""
    sde = analytic.PROCESSES[name]
    score_fn = analytic.tabulated_score(sde, MU, S, T_MIN)
    if stochastic:
        return score_fn, analytic.true_law(sde, MU, S, T_MIN)
    flow, prior = analytic.flow_map(sde, score_fn, T_MIN), np.asarray(sde.prior_factor())
    return score_fn, (flow[:, -1], flow[:, :-1] @ prior @ prior.T @ flow[:, :-1].T)


FAST = ("reduced_velocity_verlet", "reduced_oba", "naive_obab")
ORDER_CASES = itertools.product(SCHEMES, ("cld", "psld", "third_order", "recipe4", "oblique"))


@pytest.mark.parametrize("scheme, name", tiers.alike(ORDER_CASES, [(scheme, "psld") for scheme in FAST]))
def test_order(x64, scheme: str, name: str):
    """First order in the law: A and B are Euler steps in their own variable. Three and four variables without friction
    of their own amplify the errors of coarse grids, so that the limit is reached late."""
    sde, stochastic = analytic.PROCESSES[name], "oba" in scheme or "bao" in scheme
    score_fn, law = exact(name, stochastic)
    grids = GRIDS if name == "psld" else FINE
    mean, covariance = analytic.errors(analytic.laws(STEP(scheme), 1, sde, score_fn, grids), law)
    for sizes in (mean, covariance):
        slope = np.log2(sizes[0] / sizes[1])
        assert abs(slope - 1) < 0.15, (slope, sizes)


def exact_step(sde, score_fn, t: float, h: float) -> np.ndarray:
    """(k, k + 1), matrix and offset of the probability flow from t to t - h: Runge-Kutta of order 4, 20 steps."""
    F, D = np.asarray(sde.F), np.asarray(sde.D)

    def field(tau, y):
        affine = score_fn.series(np.float64(tau), np)[0]
        push = affine[:, :-1] @ y
        push[:, -1] += affine[:, -1]
        return float(sde.schedule.beta(tau)) * (D @ push - F @ y)

    y, step = np.eye(sde.k, sde.k + 1), h / 20
    for i in range(20):
        tau = t - i * step
        k1 = field(tau, y)
        k2 = field(tau - step / 2, y + step / 2 * k1)
        k3 = field(tau - step / 2, y + step / 2 * k2)
        y = y + step / 6 * (k1 + 2 * k2 + 2 * k3 + field(tau - step, y + step * k3))
    return y


def test_error_of_a_step_of_reduced_velocity_verlet(x64):
    """h^3 in x where x has no friction (CLD), h^2 in the momentum; symplectic Euler has h^2 in both."""
    sde, t, sizes = analytic.PROCESSES["cld"], 0.3, np.array([0.008, 0.004])
    score_fn = analytic.tabulated_score(sde, MU, S, T_MIN)
    exact_maps = [exact_step(sde, score_fn, t, h) for h in sizes]
    for scheme, orders in (("reduced_velocity_verlet", [3.0, 2.0]), ("reduced_symplectic_euler", [2.0, 2.0])):
        A, b, _ = analytic.step_maps(sde, score_fn, np.full(2, t), t - sizes, step=STEP(scheme), draws=1)
        steps = np.concatenate([A, b[..., None]], axis=-1)
        errors = np.abs(steps - np.stack(exact_maps)).max(axis=-1)
        np.testing.assert_allclose(np.log2(errors[0] / errors[1]), orders, atol=0.15)


def test_area_is_kept_without_friction(x64):
    """An oscillator: D = 0 on x and y alike but for a trace of noise on y. The steps of BA and BAB are shears, so they
    keep areas to the divergence of the flow, which Euler's does not by h^2: here 0.6 % a step, thirty-fold over 60."""
    sde = sdes.recipe(
        D=np.diag([0.0, 1e-12]), Q=[[0.0, -1.0], [1.0, 0.0]], Sigma_0=[[0.04]],
        schedule=sdes.LinearSchedule(beta_min=5.0, beta_max=5.0),
    )  # fmt: skip
    grid = np.linspace(1.0, 0.01, 64)
    initial = jnp.concatenate([jnp.zeros((1, 2)), jnp.eye(2)])[..., None]

    def zero(z, t):
        return jnp.zeros_like(z)

    for scheme in ("reduced_symplectic_euler", "reduced_velocity_verlet", "naive_velocity_verlet"):
        _, info = samplers.splitting(
            jax.random.key(0), zero, sde, (3, 1), times=grid, scheme=scheme, denoise=False, initial=initial,
            dtype=jnp.float64,
        )  # fmt: skip
        out = np.asarray(info.state)[..., 0]
        matrix = (out[1:] - out[:1]).T
        np.testing.assert_allclose(np.linalg.det(matrix), 1.0, rtol=1e-9)
        assert np.abs(np.linalg.eigvals(matrix)).max() < 1 + 1e-9  # and so the energy stays bounded
    euler = np.eye(2) + np.diff(-grid)[0] * 5.0 * np.array([[0.0, -1.0], [1.0, 0.0]])
    assert np.linalg.det(np.linalg.matrix_power(euler, 63)) > 1.4


# ---- O


@pytest.mark.parametrize("name", ["cld", "psld", "third_order", "recipe4", "oblique"])
def test_noise_keeps_the_stationary_law(name: str):
    """E Sigma E^T + L L^T = Sigma at every step size in float32, traced or not; no noise along D's null space."""
    sde = analytic.PROCESSES[name]
    t = np.array([1.0, 0.5, 0.01, 0.001])
    s = np.array([0.0, 0.4, 0.0099, 0.000999])
    size = np.sqrt(np.diag(sde.Sigma_inf))
    both = noise_part(sde, t, s), jax.jit(noise_part)(sde, jnp.asarray(t), jnp.asarray(s))
    for mean, factor in both:
        mean, factor = np.asarray(mean, np.float64), np.asarray(factor, np.float64)
        kept = mean @ sde.Sigma_inf @ mean.swapaxes(1, 2) + factor @ factor.swapaxes(1, 2)
        np.testing.assert_allclose(kept / np.outer(size, size), [sde.Sigma_inf / np.outer(size, size)] * 4, atol=2e-6)
        small = factor[3] @ factor[3].T  # two orders of the series: 2 D B - ...
        B = sde.schedule.between(s[3], t[3])
        np.testing.assert_allclose(small, 2 * sde.D * B, atol=1e-3 * B * np.abs(sde.D).max() + 1e-11)


def test_noise_scale(x64):
    """PSLD's O: x receives 1 - exp(-lambda_s beta gamma h), m what it always does, and the means do not change."""
    sde = sdes.psld(gamma=0.25, nu=4.25)
    t, s = np.array([0.7]), np.array([0.5])
    for scale in (0.0, 0.4, 1.0, 2.5):
        mean, factor = (np.asarray(v)[0] for v in noise_part(sde, t, s, noise_scale=scale, dtype=jnp.float64))
        covariance = factor @ factor.T
        M = 1 / 4.0
        np.testing.assert_allclose(covariance[0, 0], 1 - np.exp(-scale * 8 * 0.25 * 0.2), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(covariance[1, 1], M * (1 - np.exp(-8 * 4.25 * 0.2)), rtol=1e-12)
        np.testing.assert_allclose(mean, np.diag(np.exp(-8 * 0.2 / 2 * np.array([0.25, 4.25]))), rtol=1e-12, atol=1e-15)


# ---- errors


def call(sde=None, **options):
    def nothing(z, t):
        raise AssertionError("the score must not be called")

    times = samplers.time_grid("quadratic", 5)
    return samplers.splitting(jax.random.key(0), nothing, sde or sdes.psld(), (2, 3), times=times, **options)


BAD = {
    "scheme": (lambda: call(scheme="leapfrog"), "scheme must be one of 'reduced_symplectic_euler'"),
    "half a scheme": (lambda: call(scheme="reduced"), "scheme must be one of"),
    "vp": (lambda: call(sdes.vp()), "vp has no auxiliary ones: use it for cld"),
    "ve": (lambda: call(sdes.ve(), scheme="naive_oba"), "ve has no auxiliary ones"),
    "subvp": (lambda: call(sdes.subvp()), "subvp has no auxiliary ones"),
    "negative noise": (lambda: call(scheme="reduced_oba", noise_scale=-1.0), "noise_scale = -1: must be >= 0"),
    "noise without O": (lambda: call(noise_scale=0.5), "adds no noise that it could scale"),
    "noise shape": (lambda: call(scheme="reduced_oba", noise=np.zeros((4, 2, 2, 2, 3))), "noise has shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str):
    run, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        run()
