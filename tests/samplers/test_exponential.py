"""Exponential integrators: published updates by hand, exactness for point data, observed order, coefficients by ODEs.

Coefficients are host matrices, so most of this is numpy: on Gaussian data the score is affine and a run is a product of
small matrices (`affine_run`, the formula of a step written a second time).
"""

from __future__ import annotations

import functools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import tiers

from sgmjax import exact, samplers, sdes
from sgmjax.samplers import exponential_coefficients

MU, S, T_MIN = 0.7, 0.5, 1e-2
PHASE_SPACE = ["cld", "psld", "third_order", "oblique"]


def affine_run(coefficients, scores):
    """Matrix and offset (k, k + 1) from the first to the last state, for scores (k, k + 1) at every step's start."""
    k = coefficients.transition.shape[-1]
    state, predictions = np.eye(k, k + 1), []
    for i, score in enumerate(scores):
        c = [None if v is None else v[i] for v in coefficients]
        transition, push, from_state, from_score, weights, _, _ = c
        pushed = score[:, :-1] @ state
        pushed[:, -1] += score[:, -1]
        predictions.insert(0, from_state @ state + from_score @ pushed)
        state = transition @ state + push @ pushed
        state = state + sum(w @ (e - predictions[0]) for w, e in zip(weights, predictions[1:]))
    return state


def projection(sde):
    T = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
    return T[sde.k - sde.num_noised :].T @ T[sde.k - sde.num_noised :]


def point_scores(sde, times, x0: float):
    """(k, k + 1) scores of the noised variables where the data are the point x0."""
    return [
        projection(sde) @ np.linalg.solve(at.covariance, np.column_stack([-np.eye(sde.k), at.mean]))
        for at in analytic.moments(sde, times, x0, 0.0)
    ]


def drift_and_noise(sde, t):
    """f(t) and g g^T(t), (k, k), of a recipe in float64."""
    beta = float(sde.schedule.beta(t))
    return beta * np.asarray(sde.F), beta * np.asarray(sde.GGT)


# ---- the published updates, by hand

VP = sdes.vp(beta_min=2.0, beta_max=2.0)  # a = e^-t
HAND = -np.log([0.8, 0.96])  # a_t = 0.8, sigma_t = 0.6 and a_s = 0.96, sigma_s = 0.28


def one_step(coefficients, z, score, xi=0.0):
    """A step of a first-order integrator on numbers (k = 1)."""
    c = coefficients
    noise = 0.0 if c.noise is None else c.noise[0] * xi
    return float(np.squeeze(c.transition[0] * z + c.push[0] * score + noise))


def test_ddim_by_hand():
    """x_t = 1, eps = 0.5: x0_hat = (1 - 0.3) / 0.8 = 0.875 and x_s = 0.96 x0_hat + 0.28 eps = 0.84 + 0.14 = 0.98.

    (With the scale of the wrong time, 0.8 x0_hat + 0.28 eps, it would be 0.84.)
    """
    score = -0.5 / 0.6
    for method in ("ddim", "gddim", "dpm_solver_pp", "deis"):
        options = {"order": 1} if method in ("deis", "dpm_solver_pp") else {}
        c = exponential_coefficients(VP, HAND, method=method, **options)
        assert c.noise is None
        np.testing.assert_allclose(one_step(c, 1.0, score), 0.98, rtol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_stochastic_ddim_by_hand(eta: float):
    """DDPM's posterior variance (1 - abar_s) / (1 - abar_t) beta, beta = 1 - abar_t / abar_s, times eta^2."""
    posterior = (1 - 0.9216) / (1 - 0.64) * (1 - 0.64 / 0.9216)
    np.testing.assert_allclose(posterior, 0.0665432, rtol=1e-6)
    c = exponential_coefficients(VP, HAND, method="ddim", eta=eta)
    mean = one_step(c, 1.0, -0.5 / 0.6)
    np.testing.assert_allclose(mean, 0.96 * 0.875 + np.sqrt(0.0784 - eta**2 * posterior) * 0.5, rtol=1e-12)
    np.testing.assert_allclose((one_step(c, 1.0, -0.5 / 0.6, 1.0) - mean) ** 2, eta**2 * posterior, rtol=1e-10)
    if eta == 1.0:  # DDPM's mean: (x_t - beta eps / sqrt(1 - abar_t)) / sqrt(alpha), alpha = abar_t / abar_s
        alpha = 0.64 / 0.9216
        np.testing.assert_allclose(mean, (1 - (1 - alpha) / 0.6 * 0.5) / np.sqrt(alpha), rtol=1e-12)


@pytest.mark.parametrize("lam", [0.4, 1.0])
def test_stochastic_gddim_of_vp(lam: float):
    """The paper's variance for VP: sigma_s^2 (1 - (sigma_s^2 a_t^2 / (sigma_t^2 a_s^2))^(lam^2))."""
    variance = 0.0784 * (1 - (0.0784 * 0.64 / (0.36 * 0.9216)) ** lam**2)
    c = exponential_coefficients(VP, HAND, method="gddim", lam=lam)
    np.testing.assert_allclose(c.noise[0, 0, 0] ** 2, variance, rtol=1e-10)
    np.testing.assert_allclose(
        one_step(c, 1.0, -0.5 / 0.6), 0.84 + np.sqrt(0.0784 - variance) * 0.5, rtol=1e-10
    )  # fmt: skip


def test_ddim_of_ve_is_euler_in_sigma():
    """dx / dsigma = -sigma score: x_s = x_t + (sigma_s - sigma_t) (-sigma_t score)."""
    sde, times = sdes.ve(sigma_min=0.1, sigma_max=10.0), np.array([0.75, 0.5])
    sigma_t, sigma_s = 0.1 * 100**0.75, 1.0
    c = exponential_coefficients(sde, times, method="ddim")
    np.testing.assert_allclose(one_step(c, 2.0, -0.3), 2.0 + (sigma_s - sigma_t) * sigma_t * 0.3, rtol=1e-12)


SCALAR = {"vp": sdes.vp(), "subvp": sdes.subvp(), "ve": sdes.ve()}


def a_and_sigma(name: str, t):
    """The textbook kernels with the default parameters."""
    B = 0.1 * t + 0.5 * 19.9 * t**2
    if name == "ve":
        return np.ones_like(t), 0.01 * 5000.0**t
    return np.exp(-B / 2), np.sqrt(1 - np.exp(-B)) if name == "vp" else 1 - np.exp(-B)


@pytest.mark.parametrize("options", [{}, {"lower_order_final": True}, {"lam": 1.0}])
@pytest.mark.parametrize("name", SCALAR)
def test_dpm_solver_pp_by_its_algorithm(name: str, options: dict):
    """Lu et al. 2022 in numpy on the log-SNR, with a nonlinear data prediction: algorithm 2, and SDE-DPM-Solver++(2M).

    The latter is x_s = sigma_s / sigma_t e^-h x_t + a_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) xi, with the same D.
    """
    times = np.array([1.0, 0.7, 0.45, 0.2, 0.05])
    a, sigma = a_and_sigma(name, times)
    lam, noises = np.log(a / sigma), [0.3, -1.1, 0.7, 0.2]

    def data(i, x):
        return np.tanh(x + i)

    x, last = 1.3, 0.0
    for i in range(1, len(times)):
        h, newest = lam[i] - lam[i - 1], data(i - 1, x)
        if i == 1 or ("lower_order_final" in options and i == len(times) - 1):
            D = newest
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            D = (1 + 1 / (2 * r)) * newest - last / (2 * r)
        last = newest
        if "lam" in options:
            forgotten = -np.expm1(-2 * h)
            x = sigma[i] / sigma[i - 1] * np.exp(-h) * x + a[i] * forgotten * D
            x += sigma[i] * np.sqrt(forgotten) * noises[i - 1]
        else:
            x = sigma[i] / sigma[i - 1] * x - a[i] * np.expm1(-h) * D
    c = exponential_coefficients(SCALAR[name], times, method="dpm_solver_pp", **options)
    y, older = 1.3, 0.0
    for i in range(len(times) - 1):
        score = (a[i] * data(i, y) - y) / sigma[i] ** 2
        e = float(np.squeeze(c.from_state[i] * y + c.from_score[i] * score))
        y = float(np.squeeze(c.transition[i] * y + c.push[i] * score + c.weights[i, 0] * (older - e)))
        y += 0.0 if c.noise is None else c.noise[i, 0, 0] * noises[i]
        older = e
    np.testing.assert_allclose(y, x, rtol=1e-9)


# ---- the score of the variables without noise


@pytest.mark.parametrize("name", tiers.alike(PHASE_SPACE, ("cld", "oblique")))
def test_missing_scores_follow_from_the_noised_ones(x64, name: str):
    """A mixture's full score and posterior mean of the data, from its noised scores and the state."""
    sde = analytic.PROCESSES[name]
    times = np.array([0.9, 0.4, 0.1, 0.01])
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, sde.k, 2)))
    full = jax.jit(lambda sde, t: exact.ring().score_fn(sde, noised_only=False)(z, t))
    for t, at, eps, data in zip(
        times,
        analytic.moments(sde, times, 0.0, 0.0),
        zip(*exponential_coefficients(sde, times, method="gddim", parameterization="L")[2:4]),
        zip(*exponential_coefficients(sde, times, method="dpm_solver_pp")[2:4]),
    ):
        score = np.asarray(full(sde, jnp.full(3, t)))
        noised = np.einsum("ij,bjd->bid", projection(sde), score)
        posterior = z + np.einsum("ij,bjd->bid", at.covariance, score)  # E_0 x0_hat: Tweedie
        x0 = np.einsum("ij,bjd->bid", data[0], z) + np.einsum("ij,bjd->bid", data[1], noised)
        size = np.abs(at.E[:, :1]).max()
        np.testing.assert_allclose(at.E[:, :1] * x0 / size, posterior / size, atol=2e-7)
        assert np.abs(x0).max() < 1.6 + 1.0  # within the hull of the ring, up to its width
        T = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
        L = np.linalg.cholesky(T @ at.covariance @ T.T)
        expected = -np.einsum("ij,bjd->bid", L.T @ T, score)
        got = np.einsum("ij,bjd->bid", eps[0], z) + np.einsum("ij,bjd->bid", eps[1], noised)
        np.testing.assert_allclose(got, expected, atol=1e-6)


# ---- exactness where the data are a point


@functools.cache
def rotated_factor(name: str, low: float, high: float):
    """R at both times from its own ODE, dR/dt = (f + g g^T Sigma^-1 / 2) R, Sigma from the moments' own ODE."""
    sde = analytic.PROCESSES[name]
    [at] = analytic.moments(sde, [low], 0.0, 0.0)
    start = np.linalg.cholesky(at.covariance)

    def field(t, y):
        Sigma, R = y.reshape(2, sde.k, sde.k)
        f, ggT = drift_and_noise(sde, t)
        return np.stack([f @ Sigma + Sigma @ f.T + ggT, (f + 0.5 * ggT @ np.linalg.inv(Sigma)) @ R]).ravel()

    y = np.stack([at.covariance, start]).ravel()
    solution = scipy.integrate.solve_ivp(
        field, (low, high), y, method="DOP853", rtol=1e-11, atol=1e-14, dense_output=True
    )
    return start, lambda t: solution.sol(t)[sde.k**2 :].reshape(sde.k, sde.k)


EXACT = {
    "gddim": {"method": "gddim"},
    "ddim": {"method": "ddim"},
    "deis": {"method": "deis", "order": 3},
    "deis in t": {"method": "deis", "order": 2, "variable": "t"},
    "ipndm": {"method": "ipndm"},
    "dpm_solver_pp": {"method": "dpm_solver_pp"},
    "dpm_solver_pp 3M": {"method": "dpm_solver_pp", "order": 3},
    "sa_solver": {"method": "sa_solver", "tau": 0.0},
    "er_sde": {"method": "er_sde", "noise_scale": "ode"},
    "unipc": {"method": "unipc", "order": 3},
    "unipc bh1": {"method": "unipc", "order": 2, "variant": "bh2"},
}


@pytest.mark.parametrize("name", tiers.alike(["vp", *PHASE_SPACE], ["vp", "psld"]))
def test_any_step_is_exact_for_point_data(x64, name: str):
    """z_s = E_0(s) x_0 + R_s R_t^-1 (z_t - E_0(t) x_0), R by its ODE, though only the noised scores are given."""
    sde, x0 = analytic.PROCESSES[name], 0.7
    for times in (np.array([0.8, 0.05]), np.array([0.8, 0.5, 0.2, 0.05])):
        low, R = rotated_factor(name, 0.05, 0.8)
        carried = low @ np.linalg.inv(R(0.8))
        top, end = (at.mean for at in analytic.moments(sde, times[[0, -1]], x0, 0.0))
        expected = np.column_stack([carried, end - carried @ top])
        for label, options in EXACT.items():
            run = affine_run(exponential_coefficients(sde, times, **options), point_scores(sde, times[:-1], x0))
            np.testing.assert_allclose(run, expected, rtol=1e-6, atol=2e-8, err_msg=label)


def test_one_step_down_to_early_times(x64):
    """PSLD, where the covariance of x is 1e-5 of its scale: R R^T = Sigma, and 0.3 -> 1e-5 in one step or in many."""
    sde, few = sdes.psld(), np.array([0.3, 1e-5])
    many = samplers.time_grid("quadratic", 30, t_min=1e-5, denoise=False) * 0.3
    many[-1] = 1e-5
    one, chain = (
        affine_run(exponential_coefficients(sde, t, method="gddim"), point_scores(sde, t[:-1], 0.7))
        for t in (few, many)
    )
    top, end = analytic.moments(sde, few, 0.7, 0.0)
    np.testing.assert_allclose(one, chain, rtol=1e-6, atol=1e-10)
    scale = np.sqrt(np.diag(end.covariance))
    carried = one[:, :-1] @ top.covariance @ one[:, :-1].T
    np.testing.assert_allclose(carried / np.outer(scale, scale), end.covariance / np.outer(scale, scale), atol=1e-8)


@pytest.mark.parametrize("name, bound", [("psld", 5e-4), ("third_order", 0.1)])
def test_long_steps_in_float32(x64, name: str, bound: float):
    """Five evaluations from t = 1 with everything rounded to float32: the map to x, for states of size one.

    Psi grows to 1e4 (PSLD) and 1e8 (third order) on the way; a step that adds Psi z_t and Psi R_t eps in float32 loses
    so much of 1e-7, and was off by 10 in third order. What is left is the rounding of PSLD's two independent scores
    (1e-4 seen), and of third order's older eps, which enter with weights of 1e5 (0.03 seen).
    """
    sde, times = analytic.PROCESSES[name], samplers.time_grid("quadratic", 5)
    scores = point_scores(sde, times[:-1], 0.7)
    coefficients = exponential_coefficients(sde, times)
    single = jax.tree.map(lambda v: np.asarray(v, np.float32), coefficients)

    def run(c, scores, dtype, z):
        older = []
        for i, score in enumerate(scores):
            s = (score[:, :-1] @ z.astype(np.float64) + score[:, -1]).astype(dtype)  # a score right to rounding
            older.insert(0, c.from_state[i] @ z + c.from_score[i] @ s)
            z = c.transition[i] @ z + c.push[i] @ s
            z = z + sum(w @ (e - older[0]) for w, e in zip(c.weights[i], older[1:]))
        return z

    states = np.random.default_rng(0).normal(size=(50, sde.k)) @ np.asarray(sde.prior_factor()).T
    for z in states:
        rounded = run(single, scores, np.float32, z.astype(np.float32))
        assert rounded.dtype == np.float32
        error = np.abs(rounded - run(coefficients, scores, np.float64, z))
        assert error[0] < bound, error


STOCHASTIC = {
    "eta 0.6": {"method": "ddim", "eta": 0.6},
    "eta 1": {"method": "ddim", "eta": 1.0},
    "lam 0.5": {"method": "gddim", "lam": 0.5},
    "lam 1": {"method": "gddim", "lam": 1.0},
    "lam 3": {"method": "gddim", "lam": 3.0},
    "dpm lam 0.5": {"method": "dpm_solver_pp", "lam": 0.5},
    "dpm lam 1": {"method": "dpm_solver_pp", "lam": 1.0},
    "sa 1": {"method": "sa_solver"},
    "sa 0.5": {"method": "sa_solver", "tau": 0.5},
    "er_sde": {"method": "er_sde"},
    "er_sde sde": {"method": "er_sde", "noise_scale": "sde"},
}


@pytest.mark.parametrize("name", ["vp", *PHASE_SPACE])
def test_noise_leaves_the_law_of_point_data_exact(x64, name: str):
    """N(E_0 x_0, Sigma) at t goes to the same at s, and lam = eta = 1 is the Gaussian posterior of z_s given z_t, x_0.

    The posterior's regression is Sigma_s Psi^T Sigma_t^-1 and its covariance Sigma_s - Sigma_s Psi^T Sigma_t^-1 Psi
    Sigma_s, Psi = E_t E_s^-1 the forward mean matrix.
    """
    sde, x0, times = analytic.PROCESSES[name], 0.7, np.array([0.6, 0.3])
    top, end = analytic.moments(sde, times, x0, 0.0)
    scale = np.sqrt(np.diag(end.covariance))
    for label, options in STOCHASTIC.items():
        c = exponential_coefficients(sde, times, **options)
        run, noise = affine_run(c, point_scores(sde, times[:1], x0)), c.noise[0] @ c.noise[0].T
        A = run[:, :-1]
        np.testing.assert_allclose(A @ top.mean + run[:, -1], end.mean, atol=1e-8, err_msg=label)
        covariance = A @ top.covariance @ A.T + noise
        np.testing.assert_allclose(covariance, end.covariance, atol=1e-9, err_msg=label)
        if label in ("eta 1", "lam 1", "dpm lam 1", "sa 1", "er_sde sde"):
            Psi = top.E @ np.linalg.inv(end.E)
            regression = end.covariance @ Psi.T @ np.linalg.inv(top.covariance)
            np.testing.assert_allclose(A, regression, atol=2e-7, err_msg=label)
            left = end.covariance - regression @ Psi @ end.covariance
            np.testing.assert_allclose(noise / np.outer(scale, scale), left / np.outer(scale, scale), atol=1e-7)


@pytest.mark.parametrize("parameterization", ["R", "L"])
@pytest.mark.parametrize("name", ["psld", "third_order"])
def test_stochastic_gddim_by_its_differential_equations(x64, name: str, parameterization: str):
    """Mean and covariance of the linear SDE that a step solves, in reversed time, by DOP853.

    R: dz = f z + (1 + lam^2)/2 g g^T Sigma^-1 (z - E_0 x0_hat), x0_hat fixed.
    L: dz = f z + (1 + lam^2)/2 g g^T L^-T eps, eps fixed.
    """
    sde, lam, t, s = analytic.PROCESSES[name], 0.8, 0.5, 0.35
    c = exponential_coefficients(sde, [t, s], method="gddim", lam=lam, parameterization=parameterization)
    x0 = 0.7
    [at] = analytic.moments(sde, [t], x0, 0.0)
    z = at.mean + np.arange(1, sde.k + 1)  # any state
    score = -np.linalg.solve(at.covariance, z - at.mean)
    eps = -np.linalg.cholesky(at.covariance).T @ score
    E = scipy.linalg.expm  # f is constant here
    factor = 0.5 * (1 + lam**2)

    def field(tau, y):
        mean, P, Sigma = y[: sde.k], *y[sde.k :].reshape(2, sde.k, sde.k)
        f, ggT = drift_and_noise(sde, tau)
        center = x0 * E(f * tau)[:, 0]
        if parameterization == "R":
            hat = f + factor * ggT @ np.linalg.inv(Sigma)
            d_mean = f @ center + hat @ (mean - center)
        else:
            hat = f
            d_mean = f @ mean + factor * ggT @ np.linalg.inv(np.linalg.cholesky(Sigma)).T @ eps
        d_P = hat @ P + P @ hat.T - lam**2 * ggT
        return np.concatenate([d_mean, d_P.ravel(), (f @ Sigma + Sigma @ f.T + ggT).ravel()])

    y = np.concatenate([z, np.zeros(sde.k**2), at.covariance.ravel()])
    y = scipy.integrate.solve_ivp(field, (t, s), y, method="DOP853", rtol=1e-11, atol=1e-14).y[:, -1]
    run = affine_run(c, point_scores(sde, [t], x0))
    np.testing.assert_allclose(run[:, :-1] @ z + run[:, -1], y[: sde.k], atol=1e-7)
    P = y[sde.k : sde.k + sde.k**2].reshape(sde.k, sde.k)
    np.testing.assert_allclose(c.noise[0] @ c.noise[0].T, P, atol=1e-9)


# ---- multistep


@pytest.mark.parametrize("parameterization", ["R", "L"])
def test_multistep_weights_by_adaptive_quadrature(x64, parameterization: str):
    """C_j of the definition, with the inverse of K and polynomials in t, against integration by parts in log t."""
    sde, times = sdes.psld(), np.array([0.9, 0.6, 0.35, 0.05])
    c = exponential_coefficients(sde, times, order=3, parameterization=parameterization, variable="t")
    _, R = rotated_factor("psld", 0.05, 0.9)

    def integrand(tau):
        f, ggT = drift_and_noise(sde, tau)
        K = R(tau)
        K = K if parameterization == "R" else np.linalg.cholesky(K @ K.T)
        points = times[2::-1]
        basis = [np.prod([(tau - q) / (p - q) for q in points if q != p]) for p in points]
        push = scipy.linalg.expm(f * (times[3] - tau)) @ (0.5 * ggT) @ np.linalg.inv(K).T
        return np.stack([b * push for b in basis])

    weights = scipy.integrate.quad_vec(integrand, times[2], times[3], epsrel=1e-9)[0]
    np.testing.assert_allclose(c.weights[2], weights[1:], atol=1e-7)
    np.testing.assert_allclose(c.push[2], weights.sum(0) @ c.from_score[2], atol=1e-7)
    Psi = scipy.linalg.expm(drift_and_noise(sde, 0.5)[0] * (times[3] - times[2]))
    np.testing.assert_allclose(c.transition[2], Psi + weights.sum(0) @ c.from_state[2], atol=1e-7)
    assert not c.weights[0].any() and not c.weights[1, 1].any()  # warm-up


def smooth_grid(steps: int) -> np.ndarray:
    """Short steps at both ends, so that the first ones, of lower order, do not decide the error."""
    u = np.linspace(0.0, 1.0, steps + 1)
    return 1.0 - (1.0 - T_MIN) * u**2 * (3 - 2 * u)


@functools.cache
def flow_and_score(name: str):
    sde = analytic.PROCESSES[name]
    score = analytic.tabulated_score(sde, MU, S, T_MIN)
    return analytic.flow_map(sde, score, T_MIN), score


ORDERS = {
    "gddim": ({"method": "gddim"}, 1),
    "gddim L": ({"method": "gddim", "parameterization": "L"}, 1),
    "deis 2": ({"order": 2}, 2),
    "deis 3": ({"order": 3}, 3),
    "deis 3 in t": ({"order": 3, "variable": "t"}, 3),
    "deis 3 in rho": ({"order": 3, "variable": "rho"}, 3),
    "deis 3 L": ({"order": 3, "parameterization": "L"}, 3),
    "deis 2 corrected": ({"order": 2, "corrector": True}, 3),
    "ipndm 4": ({"method": "ipndm"}, 2),  # its weights are those of equal steps
    "dpm_solver_pp": ({"method": "dpm_solver_pp"}, 2),
    "dpm_solver_pp 3M": ({"method": "dpm_solver_pp", "order": 3}, 3),
    "unipc 1": ({"method": "unipc", "order": 1}, 2),  # the corrector gives one more
    "unipc 2": ({"method": "unipc", "order": 2}, 3),
    "unipc 2 in bh2": ({"method": "unipc", "order": 2, "variant": "bh2"}, 3),
    "unipc 3 without": ({"method": "unipc", "order": 3, "corrector": False}, 3),
}


@pytest.mark.parametrize("name", tiers.alike(analytic.PROCESSES, ("psld",)))
def test_observed_orders(x64, name: str):
    """Path by path on Gaussian data, against the exact flow by DOP853: order p of p interpolated points.

    Order 3 is reached slowly: on the last halving the slopes of VE and of the oblique recipe are 2.86 and 2.88, and
    rise, from 2.2 and 2.6 at 320 steps.
    """
    sde = analytic.PROCESSES[name]
    exact_map, score = flow_and_score(name)
    top, end = analytic.moments(sde, (1.0, T_MIN), MU, S)
    size = np.outer(
        np.sqrt(np.diag(end.covariance)), 1 / np.append(np.sqrt(np.diag(top.covariance)), 1.0)
    )  # fmt: skip
    for label, (options, order) in ORDERS.items():
        errors = []
        for steps in (640, 1280) if order == 3 and name in ("ve", "oblique") else (160, 320):
            times = smooth_grid(steps)
            run = affine_run(exponential_coefficients(sde, times, **options), score.series(times[:-1], np))
            errors.append(np.abs((run - exact_map) / size).max())
        slope = np.log2(errors[0] / errors[1])
        assert abs(slope - order) < 0.25, f"{label}: observed order {slope}, errors {errors}"


# ---- the samplers


@pytest.mark.parametrize("name", ["vp", "psld"])
def test_samplers_take_these_steps(x64, name: str):
    """`affine_run` again, by the public functions in float64 on basis states, with coefficients made inside jit too."""
    sde, (_, score) = analytic.PROCESSES[name], flow_and_score(name)
    times = np.array([1.0, 0.7, 0.4, 0.2, 0.05])
    k = sde.k
    initial = jnp.concatenate([jnp.zeros((1, k)), jnp.eye(k)])[..., None]
    for method in ("deis", "dpm_solver_pp", "ddim", "gddim"):
        expected = affine_run(exponential_coefficients(sde, times, method=method), score.series(times[:-1], np))

        def run(initial, method=method):
            options = {"times": times, "denoise": False, "initial": initial, "dtype": jnp.float64}
            return samplers.SAMPLERS[method](jax.random.key(0), score, sde, (k + 1, 1), **options)

        _, info = jax.jit(run)(initial)
        out = np.asarray(info.state)[..., 0]
        assert info.nfe == 4
        np.testing.assert_allclose(out[0], expected[:, -1], rtol=1e-9)
        np.testing.assert_allclose((out[1:] - out[0]).T, expected[:, :-1], rtol=1e-8, atol=1e-9)


def test_coefficients_do_not_depend_on_precision_or_trace():
    """Float64 on the host with x64 off, inside jit as outside."""
    sde, times = sdes.third_order(), np.array([1.0, 0.3, 1e-4])
    outside = exponential_coefficients(sde, times)
    inside: list = []
    jax.jit(lambda: inside.append(exponential_coefficients(sde, times)) or 0)()
    for a, b in zip(jax.tree.leaves(outside), jax.tree.leaves(inside[0])):
        assert a.dtype == np.float64
        np.testing.assert_array_equal(a, b)


def test_noise_of_one_direction_that_turns():
    """gDDIM by L: both variables get noise, by one Brownian motion; the covariance of a step is an integral."""
    g = lambda t: 2.0 * np.array([[np.sin(t)], [np.cos(t)]])  # noqa: E731
    f, lam, (t, s) = np.array([[-3.0, 3.0], [-3.0, -6.0]]), 0.5, (0.3, 0.2)
    sde = sdes.linear(lambda t: f, g, Sigma_0=[[1.0]])
    noise = exponential_coefficients(sde, [t, s], method="gddim", parameterization="L", lam=lam).noise[0]
    nodes, weights = np.polynomial.legendre.leggauss(20)
    expected = np.zeros((2, 2))
    for tau, weight in zip(s + 0.5 * (t - s) * (1 + nodes), 0.5 * (t - s) * weights):
        column = scipy.linalg.expm((s - tau) * f) @ g(tau)
        expected += lam**2 * weight * column @ column.T
    np.testing.assert_allclose(noise @ noise.T, expected, rtol=1e-6)


def traced():
    jax.jit(lambda sde: exponential_coefficients(sde, [1.0, 0.5]).transition)(sdes.psld())


def mismatch(times, sde):
    coefficients = exponential_coefficients(sdes.psld(), [1.0, 0.5, 0.1])
    samplers.deis(jax.random.key(0), lambda z, t: z, sde, (2, 3), times=times, coefficients=coefficients)


BAD = {
    "traced": (traced, "compute samplers.exponential_coefficients"),
    "zero": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.0]), "times must end above 0"),
    "grid": (lambda: exponential_coefficients(sdes.psld(), [0.5, 1.0]), "times must be"),
    "setting": (
        lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="deis", ordr=3),
        "ordr: method 'deis' has no such setting; there are order",
    ),
    "method": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="plms"), "method must be one of"),
    "order": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], order=5), "order = 5: must be 1 to 4"),
    "2M": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="dpm_solver_pp", order=4), "order = 4"),
    "ipndm": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="ipndm", order=0), "order = 0"),
    "tau": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="sa_solver", tau=-1.0), "tau = -1"),
    "er_sde": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="er_sde", order=4), "order = 4"),
    "noise_scale": (
        lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="er_sde", noise_scale="er_sde_6"),
        "noise_scale must be one of 'ode', .*'er_sde_5', not 'er_sde_6'",
    ),
    "taylor": (
        lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="er_sde", variant="bh1"),
        "variant must be 'exact' or 'taylor', not 'bh1'",
    ),
    "levels": (
        lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="sa_solver", S_min=2.0, S_max=1.0),
        "S_min = 2, S_max = 1: must be noise levels",
    ),
    "corrector": (
        lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="sa_solver", corrector=5),
        "corrector = 5",
    ),
    "variant": (lambda: exponential_coefficients(sdes.vp(), [1.0, 0.5], method="unipc", variant="bh3"), "'bh1'"),
    "eta": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="ddim", eta=1.5), "eta = 1.5"),
    "lam": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], method="gddim", lam=-1.0), "lam = -1"),
    "factor": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], parameterization="S"), "'R' or 'L'"),
    "variable": (lambda: exponential_coefficients(sdes.psld(), [1.0, 0.5], variable="s"), "variable must be"),
    "other steps": (lambda: mismatch([1.0, 0.5], sdes.psld()), "coefficients are for 2 steps of 2 variables"),
    "other times": (lambda: mismatch([1.0, 0.6, 0.1], sdes.psld()), "coefficients belong to another grid, of as many"),
    "other times in jit": (
        lambda: jax.jit(lambda: mismatch([1.0, 0.5, 0.2], sdes.psld()))(),
        "another grid, of as many",
    ),
    "other process": (lambda: mismatch([1.0, 0.5, 0.1], sdes.vp()), "coefficients are for 2 steps of 2 variables"),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label: str):
    make, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---- UniPC


def scalar_run(c, data, a, sigma, x: float) -> float:
    """A run on numbers (k = 1) with a data prediction data(i, x)."""
    older: list[float] = []
    for i in range(len(c.transition)):
        score = (a[i] * data(i, x) - x) / sigma[i] ** 2
        e = float(np.squeeze(c.from_state[i] * x + c.from_score[i] * score))
        x = float(np.squeeze(c.transition[i] * x + c.push[i] * score))
        x += float(np.sum([np.squeeze(w) * (o - e) for w, o in zip(c.weights[i], older)]))
        older.insert(0, e)
    return x


def moment(h: float, k: int) -> float:
    """h int_0^1 e^{-h (1 - u)} u^k du, by quadrature."""
    return h * scipy.integrate.quad(lambda u: np.exp(-h * (1 - u)) * u**k, 0, 1, epsabs=1e-14, epsrel=1e-13)[0]


def papers_unipc(times, name, data, x, *, order, variant, lower_order_final=False, corrector=True):
    """Zhao et al. 2023, multistep UniPC for data prediction, from its order conditions, in numpy on the log-SNR.

    x_s = sigma_s / sigma_t x + alpha_s (1 - e^-h) D_0 + alpha_s B sum_m a_m (D_m - D_0) / r_m,
    sum_m a_m r_m^(k-1) = moment(h, k) / B for k = 1 ... as many as there are differences, but a = 1/2 for one of them.
    """
    a, sigma = a_and_sigma(name, times)
    lam, steps = np.log(a / sigma), len(times) - 1

    def weights(r, h, halved):
        B = h if variant == "bh1" else -np.expm1(-h)
        if halved:
            return B, np.array([0.5])
        rows = np.array([np.power(r, k) for k in range(len(r))])
        return B, np.linalg.solve(rows, [moment(h, k) / B for k in range(1, len(r) + 1)])

    def update(i, x, r, values, halved):
        """The step to i + 1 from the corrected x at i; values: D_0, then those at the r."""
        h = lam[i + 1] - lam[i]
        out = sigma[i + 1] / sigma[i] * x - a[i + 1] * np.expm1(-h) * values[0]
        if len(r):
            B, weight = weights(np.array(r), h, halved)
            out += a[i + 1] * B * np.sum(weight * (np.array(values[1:]) - values[0]) / np.array(r))
        return out

    predicted, corrected, known = x, x, []
    for i in range(steps):
        known.insert(0, data(i, predicted))
        if corrector and i:
            corrected = update(i - 1, corrected, [*before[1], 1.0], [*before[0], known[0]], before[2] == 1)  # noqa: F821
        else:
            corrected = predicted
        now = min(order, i + 1, steps - i if lower_order_final else order)
        r = [(lam[i - m] - lam[i]) / (lam[i + 1] - lam[i]) for m in range(1, now)]
        before = known[:now], r, now  # noqa: F841
        predicted = update(i, corrected, r, known[:now], now == 2)
    return predicted


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", tiers.alike(["vp", "ve"], ["vp"]))
def test_unipc_by_its_order_conditions(name: str, order: int, variant: str):
    times = np.array([1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05])
    a, sigma = a_and_sigma(name, times)

    def data(i, x):
        return np.tanh(x + 0.3 * i)

    for options in ({}, {"lower_order_final": True}, {"corrector": False}):
        options = {"order": order, "variant": variant, **options}
        c = exponential_coefficients(SCALAR[name], times, method="unipc", **options)
        expected = papers_unipc(times, name, data, 1.3, **options)
        np.testing.assert_allclose(scalar_run(c, data, a, sigma, 1.3), expected, rtol=1e-8, err_msg=str(options))


# phi of the official program, as it stands there
NOISE_SCALES = {
    "ode": lambda s: s,
    "sde": lambda s: s**2,
    "er_sde_1": lambda s: s * (np.exp(-1 / s) + 10),
    "er_sde_2": lambda s: s**1.5,
    "er_sde_3": lambda s: s**2.5,
    "er_sde_4": lambda s: s**0.9 * np.log10(1 + 100 * s**1.5),
    "er_sde_5": lambda s: s * (np.exp(s**0.3) + 10),
}


@pytest.mark.parametrize("noise_scale", NOISE_SCALES)
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_er_sde_is_the_papers(x64, name: str, noise_scale: str):
    """Alg. 1 to 3 of Cui et al. 2023, their integrals of 1 / phi by quadrature; and the noise's variance."""
    phi = NOISE_SCALES[noise_scale]
    times = np.array([0.9, 0.8, 0.66, 0.5, 0.3, 0.1])
    kernel = SCALAR[name].transition(jnp.asarray(times))
    mean, std = np.asarray(kernel.mean[:, 0, 0]), np.asarray(kernel.factor[:, 0, 0])
    level = std / mean

    def data(i, x):
        return np.tanh(x / mean[i] + 0.3 * i)

    for order in (1, 2, 3):
        x, D = 1.3, []
        for i in range(len(times) - 1):
            t, s = level[i], level[i + 1]
            D.insert(0, data(i, x))
            ratio = phi(s) / phi(t)
            out = ratio * x / mean[i] + (1 - ratio) * D[0]
            if order > 1 and i > 0:
                d = (D[0] - D[1]) / (t - level[i - 1])
                out += (s - t + phi(s) * scipy.integrate.quad(lambda u: 1 / phi(u), s, t, epsabs=1e-13)[0]) * d
            if order > 2 and i > 1:
                dd = 2 * (d - (D[1] - D[2]) / (level[i - 1] - level[i - 2])) / (t - level[i - 2])
                rest = scipy.integrate.quad(lambda u, t=t: (u - t) / phi(u), s, t, epsabs=1e-13)[0]
                out += ((s - t) ** 2 / 2 + phi(s) * rest) * dd
            x = mean[i + 1] * out
        options = {"order": order, "noise_scale": noise_scale, "variant": "taylor"}
        c = exponential_coefficients(SCALAR[name], times, method="er_sde", **options)
        np.testing.assert_allclose(scalar_run(c, data, mean, std, 1.3), x, rtol=1e-7, err_msg=str(order))
        ratio = phi(level[1:]) / phi(level[:-1])
        variance = mean[1:] ** 2 * (level[1:] ** 2 - (level[:-1] * ratio) ** 2)
        found = np.zeros(len(variance)) if c.noise is None else c.noise[:, 0, 0] ** 2
        np.testing.assert_allclose(found, variance, rtol=1e-7, atol=1e-12)


POLYNOMIAL = [
    (name, order, corrector, tau)
    for name in ("psld", "third_order", "friction")
    for order in (1, 2, 3, 4)
    for corrector in (0, order)
    for tau in (0.0, 0.8)
]


@pytest.mark.slow
@pytest.mark.parametrize("name, order, corrector, tau", tiers.alike(POLYNOMIAL, [("psld", 3, 3, 0.8)]))
def test_exact_for_polynomial_estimates(x64, name: str, order: int, corrector: int, tau: float):
    """D a polynomial in lambda of the degree that the order has; the mean of its process by an integrator of order 8.

    Once the first steps, which have fewer estimates, are over: they are given D constant.
    """
    sde = (analytic.PROCESSES | analytic.NEW)[name]
    times = np.array([0.9, 0.75, 0.6, 0.48, 0.36, 0.25])
    c = exponential_coefficients(sde, times, method="sa_solver", order=order, corrector=corrector, tau=tau)
    if not tau:
        unipc = exponential_coefficients(sde, times, method="unipc", order=order, corrector=corrector > 0)
        jax.tree.map(np.testing.assert_array_equal, c, unipc)
    degree = order - 1  # of the corrector one more, which the predictor does not see
    level = lambda t: -np.log(np.asarray(sdes.noise_level(sde, jnp.asarray(np.atleast_1d(t)))))  # noqa: E731
    first = order + (corrector > 0) - 1
    start = level(times[first])[0]

    def estimate(t):
        return (0.3 + level(t) - start) ** degree if degree else np.ones_like(np.atleast_1d(t))

    @jax.jit
    def coefficients(t):
        kernel = sde.transition(t)
        return sde.drift_matrix(t)[0], sde.diffusion_squared(t)[0], kernel.mean[0, :, 0], kernel.covariance[0]

    def slope(t, z):
        f, ggT, mean, covariance = (np.asarray(v) for v in coefficients(jnp.asarray([t])))
        return f @ z - 0.5 * (1 + tau**2) * ggT @ np.linalg.solve(covariance, mean * estimate(t)[0] - z)

    z = np.random.default_rng(0).normal(size=sde.k)
    expected = scipy.integrate.solve_ivp(slope, (times[first], times[-1]), z, method="DOP853", rtol=1e-11, atol=1e-13)
    values = [estimate(t)[0] for t in times]
    for i in range(first, len(times) - 1):
        z = c.transition[i] @ z + c.push[i] @ _score_of(coefficients, times[i], z, values[i])
        z = z + sum(w[:, 0] * (values[i - 1 - j] - values[i]) for j, w in enumerate(c.weights[i]))
    np.testing.assert_allclose(z, expected.y[:, -1], rtol=0, atol=1e-7 * np.abs(expected.y).max())


def _score_of(coefficients, t, z, value):
    """The score whose data estimate is `value`; the variables without noise have none."""
    _, ggT, mean, covariance = (np.asarray(v) for v in coefficients(jnp.asarray([t])))
    score = np.linalg.solve(covariance, mean * value - z)
    return np.where(np.diag(ggT) > 0, score, 0.0)
