"""Conjugate integrators: closed forms for k = 1, identities between their members, orders for every lambda, errors."""

from __future__ import annotations

import functools
import itertools

import analytic
import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import tiers

from sgmjax import samplers, sdes
from sgmjax.samplers._conjugate import conjugate_coefficients

MU, S, T_MIN = 0.7, 0.3, 1e-2


def grid(steps: int) -> np.ndarray:
    return samplers.time_grid("quadratic", steps, t_min=T_MIN, denoise=False)


# ---- closed forms


def vp_alpha_sigma(sde, t):
    B = sde.schedule.integral(t)
    return np.exp(-0.5 * B), np.sqrt(-np.expm1(-B))


def test_lambda_zero_is_ddim():
    """x_s = (alpha_s / alpha_t) (x_t - sigma_t eps) + sigma_s eps (Song, Meng & Ermon 2021, eq. 12), eps = -sigma
    score; for VP, and for VE, where alpha = 1. The predictions are the same for k = 1 and lambda = 0."""
    times = grid(6)
    sde, ve = sdes.vp(), sdes.ve()
    alpha, sigma = vp_alpha_sigma(sde, times)
    ve_sigma = 0.01 * 5000.0**times
    for process, a, b in ((sde, alpha, sigma), (ve, np.ones(7), ve_sigma)):
        state = a[1:] / a[:-1]
        score = -(b[1:] - state * b[:-1]) * b[:-1]
        for prediction in ("R", "cholesky", "data"):
            first = conjugate_coefficients(process, times, prediction=prediction).first
            np.testing.assert_allclose(first[:, 0, 0, 0], state, rtol=1e-9)
            np.testing.assert_allclose(first[:, 1, 0, 0], score, rtol=1e-9)


def test_lambda_ddim_in_one_dimension():
    """VP by hand: z_s = (A_t / A_s)(1 - lam h) z_t + (Phi_s - Phi_t) eps / A_s, A = exp(lam t + B / 2) and
    dPhi/dt = A beta / (2 sigma), h = t - s. Scipy's quadrature; both kinds of B are one for k = 1."""
    sde, times = sdes.vp(), np.array([0.8, 0.5, 0.3])

    def rate(tau, lam):
        return np.exp(lam * tau + 0.5 * sde.schedule.integral(tau)) * sde.schedule.beta(tau) / (
            2 * vp_alpha_sigma(sde, tau)[1]
        )  # fmt: skip

    for lam in (-0.5, 0.7, 2.0):
        for B in ("identity", "ones"):
            first = conjugate_coefficients(sde, times, lam=lam, B=B).first
            for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
                A_t, A_s = (np.exp(lam * v + 0.5 * sde.schedule.integral(v)) for v in (t, s))
                phi = scipy.integrate.quad(rate, t, s, args=(lam,), epsabs=1e-13, epsrel=1e-12)[0]
                np.testing.assert_allclose(first[i, 0], A_t / A_s * (1 - lam * (t - s)), rtol=1e-9)
                np.testing.assert_allclose(first[i, 1], -phi / A_s * vp_alpha_sigma(sde, t)[1], rtol=1e-9)


def test_the_linear_part_is_a_matrix_exponential():
    """PSLD at constant beta and u = eps_L: A_t = exp(t (B - beta F)), the paper's form, also where B and F do not
    commute. What multiplies z is exp(h (B - beta F)) (1 - h B), h = t - s, since the noised scores alone make u."""
    sde = sdes.psld()
    t, s, lam = 0.5, 0.3, 0.8
    for B, free in (("identity", lam * np.eye(2)), ("ones", lam * np.ones((2, 2)))):
        first = conjugate_coefficients(sde, [t, s], lam=lam, B=B, prediction="cholesky").first
        A = scipy.linalg.expm((t - s) * (free - 8.0 * np.asarray(sde.F)))  # A_s^-1 A_t
        np.testing.assert_allclose(first[0, 0], A @ (np.eye(2) - (t - s) * free), rtol=1e-8)


@pytest.mark.parametrize("name", ["cld", "psld", "third_order", "oblique"])
@pytest.mark.parametrize("prediction", ["R", "data"])
def test_one_step_is_exact_for_a_point(name: str, prediction: str):
    """Data at one point and lambda = 0: u is constant along the flow, so that one step is as good as many, and every
    step carries the kernel's law at its start to that at its end."""
    sde = analytic.PROCESSES[name]
    times = np.array([0.9, 0.5, 0.2, 0.05])
    coefficients = conjugate_coefficients(sde, times, prediction=prediction)
    once = conjugate_coefficients(sde, times[[0, -1]], prediction=prediction)
    with jax.enable_x64(True):
        kernel = sde.transition(np.asarray(times))
        covariance = np.asarray(kernel.covariance)
        e = np.asarray(kernel.mean)[:, :, 0]
    T = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
    noised = T[sde.k - sde.num_noised :].T @ T[sde.k - sde.num_noised :]

    def maps(first, i):
        """z -> z_s around the mean, the score being -Sigma^-1 (z - e x0) in the noised variables."""
        matrix = -noised @ np.linalg.inv(covariance[i])
        return first[0] + first[1] @ matrix, first[1] @ matrix @ e[i]

    total = np.eye(sde.k)
    for i in range(3):
        linear, shift = maps(coefficients.first[i], i)
        total = linear @ total
        size = np.sqrt(np.diag(covariance[i + 1]))
        moved = linear @ covariance[i] @ linear.T
        np.testing.assert_allclose(moved / np.outer(size, size), covariance[i + 1] / np.outer(size, size), atol=1e-7)
        np.testing.assert_allclose(linear @ e[i] - shift, e[i + 1], atol=1e-7 * np.abs(e).max())
    linear, _ = maps(once.first[0], 0)
    np.testing.assert_allclose(
        linear / size[:, None], total / size[:, None], atol=1e-6 * np.abs(total / size[:, None]).max()
    )


def test_symplectic_euler_is_euler_where_nothing_couples():
    """B = lambda I: y and x do not see each other in the new coordinates; with ones they do."""
    sde, times = sdes.psld(), grid(5)
    for lam, B, same in ((0.7, "identity", True), (0.0, "ones", True), (0.7, "ones", False)):
        euler, split = (
            conjugate_coefficients(sde, times, lam=lam, B=B, scheme=scheme).first
            for scheme in ("euler", "symplectic_euler")
        )
        assert np.allclose(euler, split, rtol=1e-10, atol=1e-12) == same


def test_predictions_differ_in_phase_space():
    """eps_L is not constant along the flow of a point, eps_R is: 5 % apart already over one step."""
    R, L = (conjugate_coefficients(sdes.psld(), grid(5), prediction=p).first for p in ("R", "cholesky"))
    assert np.abs(R - L).max() > 0.05


# ---- orders, sample by sample


def composed(score_fn, times, coefficients) -> np.ndarray:
    """(k, k + 1), matrix and offset of the map from times[0] to times[-1]."""
    k = coefficients.first.shape[-1]
    values = np.eye(k, k + 1)

    def score(t, values):
        affine = score_fn.series(np.float64(t), np)[0]
        out = affine[:, :-1] @ values
        out[:, -1] += affine[:, -1]
        return out

    for i in range(len(times) - 1):
        inputs = [values, score(times[i], values)]
        values = sum(m @ v for m, v in zip(coefficients.first[i], inputs))
        if coefficients.second is not None:
            inputs += [values, score(times[i + 1], values)]
            values = sum(m @ v for m, v in zip(coefficients.second[i], inputs))
    return values


@functools.cache
def exact(name: str):
    """The score and the exact flow, and the scale of its entries."""
    sde = analytic.PROCESSES[name]
    score_fn = analytic.tabulated_score(sde, MU, S, T_MIN)
    top, end = analytic.moments(sde, (1.0, T_MIN), MU, S)
    scale = np.sqrt(np.diag(end.covariance)), 1 / np.append(np.sqrt(np.diag(top.covariance)), 1.0)
    return sde, score_fn, analytic.flow_map(sde, score_fn, T_MIN), np.outer(*scale)


ORDERS = {"euler": 1, "symplectic_euler": 1, "velocity_verlet": 1, "heun": 2}
FAST = {
    ("vp", "euler", "R"), ("psld", "euler", "data"), ("psld", "heun", "R"), ("psld", "symplectic_euler", "R"),
    ("psld", "velocity_verlet", "cholesky"),
}  # fmt: skip
ORDER_CASES = [
    case
    for case in itertools.product(analytic.PROCESSES, ORDERS, ("R", "cholesky", "data"))
    if case[0] not in ("vp", "subvp", "ve") or case[1] in ("euler", "heun")
]


@pytest.mark.parametrize("name, scheme, prediction", tiers.alike(ORDER_CASES, FAST))
def test_order_for_every_lambda(x64, name: str, scheme: str, prediction: str):
    """All converge to the same flow, whatever B is."""
    sde, score_fn, flow, size = exact(name)
    fast = (name, scheme, prediction) in FAST
    counts = (128, 256) if fast else (512, 1024)
    tolerance = 0.2  # towards their limits: 0.85 then 0.93 for Verlet, third order; 1.81 then 1.92 for Heun, sub-VP
    for lam, B in ((0.0, "identity"), (0.5, "ones")) if fast else ((1.0, "identity"), (1.0, "ones"), (-0.5, "ones")):
        errors = []
        for steps in counts:
            times = grid(steps)
            coefficients = conjugate_coefficients(sde, times, lam=lam, B=B, scheme=scheme, prediction=prediction)
            errors.append(np.abs((composed(score_fn, times, coefficients) - flow) / size).max())
        slope = np.log2(errors[0] / errors[1])
        assert abs(slope - ORDERS[scheme]) < tolerance, (lam, B, errors)


# ---- errors


def call(sde=None, times=None, **options):
    def nothing(z, t):
        raise AssertionError("the score must not be called")

    times = grid(4) if times is None else times
    return samplers.conjugate(jax.random.key(0), nothing, sde or sdes.psld(), (2, 3), times=times, **options)


def traced(**options):
    return jax.jit(lambda sde: call(sde, **options)[0])(sdes.psld())


HERE = conjugate_coefficients(sdes.psld(), grid(4))
BAD = {
    "scheme": (lambda: call(scheme="rk4"), "scheme must be one of 'euler'"),
    "B": (lambda: call(B="II"), "B must be 'identity' or 'ones'"),
    "prediction": (lambda: call(prediction="eps"), "prediction must be 'R'"),
    "lam": (lambda: call(lam=np.nan), "lam = nan: must be a finite number"),
    "zero": (lambda: call(times=[1.0, 0.5, 0.0]), "times must end above 0"),
    "vp splitting": (lambda: call(sdes.vp(), scheme="velocity_verlet"), "vp has no auxiliary ones"),
    "traced": (traced, "samplers.conjugate_coefficients"),
    "grid": (lambda: call(coefficients=conjugate_coefficients(sdes.psld(), grid(3))), "another grid or scheme"),
    "other times": (lambda: call(times=np.linspace(1, 0.2, 5), coefficients=HERE), "another grid, of as many steps"),
    "other scheme": (lambda: call(scheme="heun", coefficients=HERE), "another grid or scheme"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str):
    run, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        run()
