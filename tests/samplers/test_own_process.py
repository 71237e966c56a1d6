"""Exponential integrators of processes that a user writes as classes of his own, which the library knows nothing of.

Neither is a recipe, nor VP, sub-VP or VE: the drift of the second does not even commute with itself at other times. The
expected coefficients come from drift and noise alone, by quadrature in 30 digits (k = 1) and by ODEs (k = 2).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate

from sgmjax import samplers, sdes
from sgmjax.sdes.base import Kernel

TIMES = np.array([0.9, 0.6, 0.35, 0.05])


class Own(sdes.SDE):
    """What samplers that step along a grid with a score do not ask for."""

    frame = None

    def diffusion_between(self, s, t):
        raise NotImplementedError

    def reverse_linear(self, t, s):
        raise NotImplementedError

    def split_precision(self):
        raise NotImplementedError

    def distance_to_prior(self, t):
        raise NotImplementedError

    def initial_variance(self):
        raise NotImplementedError

    def prior_factor(self):
        return np.eye(self.k)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bent(Own):
    """dx = -c t x dt + g dw, g^2 = 1 + 3 t^2 + 2 c t (t + t^3), whose kernel is N(e^(-c t^2 / 2) x_0, t + t^3)."""

    c: Any
    k = num_noised = 1

    def drift_matrix(self, t):
        return -(self.c * t)[:, None, None]

    def diffusion(self, t):
        return jnp.sqrt(1 + 3 * t**2 + 2 * self.c * t * (t + t**3))[:, None, None]

    def transition(self, t, matching="hsm"):
        mean, std = jnp.exp(-0.5 * self.c * t**2), jnp.sqrt(t + t**3)
        return Kernel(mean=mean[:, None, None], inner=std[:, None, None], num_noised=1)

    def transition_between(self, s, t):
        mean = jnp.exp(-0.5 * self.c * (t**2 - s**2))
        variance = t + t**3 - mean**2 * (s + s**3)
        return Kernel(mean=mean[:, None, None], inner=jnp.sqrt(variance)[:, None, None], num_noised=1)

    def initial_factor(self):
        return np.zeros((1, 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cooling(Own):
    """dx = v dt, dv = -v / (1 + t) dt + dw, Var[v_0] = kappa: a friction that fades."""

    kappa: Any
    k, num_noised = 2, 1

    def drift_matrix(self, t):
        zero, one = jnp.zeros_like(t), jnp.ones_like(t)
        return jnp.stack([jnp.stack([zero, one], -1), jnp.stack([zero, -1 / (1 + t)], -1)], -2)

    def diffusion(self, t):
        return jnp.broadcast_to(jnp.asarray([[0.0, 0.0], [0.0, 1.0]], t.dtype), (len(t), 2, 2))

    def transition(self, t, matching="hsm"):
        return self._kernel(jnp.zeros_like(t), t, self.kappa)

    def transition_between(self, s, t):
        return self._kernel(s, t, 0.0)

    def _kernel(self, s, t, kappa):
        r, u = 1 + s, 1 + t
        log = jnp.log(u / r)
        zero, one = jnp.zeros_like(t), jnp.ones_like(t)
        mean = jnp.stack([jnp.stack([one, r * log], -1), jnp.stack([zero, r / u], -1)], -2)
        # (u^2 Var v)' = u^2, (u Cov)' = u Var v, (Var x)' = 2 Cov; kappa (1 + s)^2 is the constant of the first
        rest = kappa * r**2 - r**3 / 3
        v = (rest + u**3 / 3) / u**2
        xv = (rest * log + (u**3 - r**3) / 9) / u
        x = rest * log**2 + 2 * (u**3 - r**3) / 27 - 2 * r**3 * log / 9
        first = jnp.sqrt(x)
        inner = jnp.stack([jnp.stack([first, zero], -1), jnp.stack([xv / first, jnp.sqrt(v - xv**2 / x)], -1)], -2)
        return Kernel(mean=mean, inner=inner, num_noised=1)

    def initial_factor(self):
        return np.diag([0.0, np.sqrt(self.kappa)])


BENT, COOLING = Bent(c=1.5), Cooling(kappa=0.3)


@pytest.mark.parametrize("parameterization", ["R", "L"])
def test_one_variable_by_quadrature_in_30_digits(parameterization: str):
    """A, Ms and the weights of three steps of order 3 with polynomials in t."""
    c = samplers.exponential_coefficients(BENT, TIMES, variable="t", parameterization=parameterization)
    with mpmath.workdps(30):
        times = [mpmath.mpf(float(t)) for t in TIMES]

        def a(t):
            return mpmath.exp(-mpmath.mpf("0.75") * t**2)

        for i in range(3):
            points, (t, s) = times[i::-1], times[i : i + 2]
            weights = []
            for p in points:
                basis = [q for q in points if q != p]

                def integrand(tau, p=p, basis=basis):
                    noise = 1 + 3 * tau**2 + 3 * tau * (tau + tau**3)
                    value = a(s) / a(tau) * noise / (2 * mpmath.sqrt(tau + tau**3))  # noqa: B023
                    return value * mpmath.fprod((tau - q) / (p - q) for q in basis)

                weights.append(mpmath.quad(integrand, [t, s]))
            np.testing.assert_allclose(c.weights[i, :i, 0, 0], [float(w) for w in weights[1:]], rtol=1e-11)
            np.testing.assert_allclose(c.from_score[i], -float(mpmath.sqrt(t + t**3)), rtol=1e-14)
            push = -mpmath.sqrt(t + t**3) * mpmath.fsum(weights)
            np.testing.assert_allclose(c.push[i], float(push), rtol=1e-11)
            np.testing.assert_allclose(c.transition[i], float(a(s) / a(t)), rtol=1e-13)
            assert not c.from_state[i].any()


def coefficients_of(sde, t):
    """f and g g^T in numpy."""
    if sde.k == 1:
        return np.array([[-1.5 * t]]), np.array([[1 + 3 * t**2 + 3 * t * (t + t**3)]])
    return np.array([[0.0, 1.0], [0.0, -1 / (1 + t)]]), np.diag([0.0, 1.0])


class Path:
    """E, Sigma, R of dE = f E, dSigma = f Sigma + Sigma f^T + g g^T, dR = (f + g g^T Sigma^-1 / 2) R, at times."""

    def __init__(self, sde, low: float, high: float):
        k = sde.k

        def moments(t, y):
            (E, Sigma), (f, ggT) = y.reshape(2, k, k), coefficients_of(sde, t)
            return np.stack([f @ E, f @ Sigma + Sigma @ f.T + ggT]).ravel()

        def field(t, y):
            (f, ggT), Sigma = coefficients_of(sde, t), y.reshape(3, k, k)[1]
            rotated = (f + 0.5 * ggT @ np.linalg.inv(Sigma)) @ y.reshape(3, k, k)[2]
            return np.concatenate([moments(t, y[: 2 * k * k]), rotated.ravel()])

        solve = functools.partial(scipy.integrate.solve_ivp, method="DOP853", rtol=1e-12, atol=1e-15)
        start = np.stack([np.eye(k), np.diag([0.0, 0.3][:k])]).ravel()
        start = solve(moments, (0.0, low), start).y[:, -1]
        start = np.append(start, np.linalg.cholesky(start.reshape(2, k, k)[1]))
        path = solve(field, (low, high), start, dense_output=True)
        self.at = lambda t: path.sol(t).reshape(3, k, k)


@functools.cache
def path(sde) -> Path:
    return Path(sde, TIMES[-1], TIMES[0])


@pytest.mark.parametrize("parameterization", ["R", "L"])
def test_two_variables_by_their_odes(parameterization: str):
    """int Psi 1/2 g g^T K^-T, with the missing score by what is known of x_0 (`linear_flow`, eq. (5))."""
    sde, at = COOLING, path(COOLING).at
    times = TIMES[[0, 2]]
    c = samplers.exponential_coefficients(sde, times, method="gddim", parameterization=parameterization)

    def factor(t):
        _, Sigma, R = at(t)
        return R if parameterization == "R" else np.linalg.cholesky(Sigma)

    def integrand(tau):
        Psi = at(times[1])[0] @ np.linalg.inv(at(tau)[0])
        return 0.5 * Psi @ coefficients_of(sde, tau)[1] @ np.linalg.inv(factor(tau)).T

    weight = scipy.integrate.quad_vec(integrand, times[0], times[1], epsrel=1e-11)[0]
    # R is known up to one rotation from the right, so only its products are compared
    E, Sigma, _ = at(times[0])
    L = np.linalg.cholesky(Sigma)
    v = np.linalg.solve(L, E[:, 0])
    Mz, Ms = np.zeros((2, 2)), np.zeros((2, 2))  # eps_L = w - v x0_hat, w = L^-1 z; row 1 (v's) has its score
    w, Ms[1, 1] = np.linalg.inv(L), -L[1, 1]
    Mz[0], Ms[0] = w[0] - v[0] / v[1] * w[1], v[0] / v[1] * Ms[1]
    turn = np.linalg.solve(L, factor(times[0])).T  # eps_K = -K^T score = (L^-1 K)^T eps_L
    Psi = at(times[1])[0] @ np.linalg.inv(E)
    np.testing.assert_allclose(c.transition[0], Psi + weight @ turn @ Mz, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(c.push[0], weight @ turn @ Ms, rtol=1e-8, atol=1e-9)


X0 = 0.7


@pytest.mark.parametrize("name", ["ddim", "gddim", "deis", "dpm_solver_pp", "conjugate"])
@pytest.mark.parametrize("sde", [BENT, COOLING], ids=["k=1", "k=2"])
def test_samplers_are_exact_for_point_data(x64, sde, name: str):
    """z_s = E_0(s) x_0 + R_s R_t^-1 (z_t - E_0(t) x_0), inside jit, from the score of the noised variables alone."""
    (E, _, R), (E_end, _, R_end) = (path(sde).at(t) for t in TIMES[[0, -1]])
    z = np.random.default_rng(0).normal(size=(4, sde.k))
    expected = E_end[:, 0] * X0 + (z - E[:, 0] * X0) @ (R_end @ np.linalg.inv(R)).T

    def score_fn(z, t):
        kernel = sde.transition(t)
        precision = jnp.linalg.inv(kernel.covariance)
        score = -jnp.einsum("bij,bjd->bid", precision, z - kernel.mean[:, :, :1] * X0)
        return sde.expand(sde.restrict(score))

    def run(initial):
        options = {"times": TIMES, "denoise": False, "initial": initial, "dtype": jnp.float64}
        return samplers.SAMPLERS[name](jax.random.key(0), score_fn, sde, (4, 1), **options)[1].state

    out = np.asarray(jax.jit(run)(jnp.asarray(z[..., None])))[..., 0]
    np.testing.assert_allclose(out, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("sde", [BENT, COOLING], ids=["k=1", "k=2"])
def test_midpoint_regression(sde):
    """Psi_2 = S_s E^T S_m^-1 and the covariance S_s - Psi_2 E S_s, S = Sigma + c e e^T, from the moments' ODE."""
    c = samplers.midpoint_coefficients(sde, TIMES, data_std=0.4)
    m, s = (path(sde).at(t) for t in (0.5 * (TIMES[1] + TIMES[2]), TIMES[2]))
    np.testing.assert_allclose(c.middle[1], 0.475)
    S_m, S_s = (Sigma + 0.16 * np.outer(E[:, 0], E[:, 0]) for E, Sigma, _ in (m, s))
    E = m[0] @ np.linalg.inv(s[0])
    regression = S_s @ E.T @ np.linalg.inv(S_m)
    np.testing.assert_allclose(c.mean_2[1], regression, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(c.factor_2[1] @ c.factor_2[1].T, S_s - regression @ E @ S_s, rtol=1e-7, atol=1e-10)


def test_a_process_already_used_in_single_precision():
    """Its float32 form, which a compiled program has closed over, is not what the host computes with."""
    sde = Cooling(kappa=np.asarray(0.3))
    jax.jit(lambda t: sde.transition(t).factor)(jnp.ones(1)).block_until_ready()
    got, expected = (samplers.exponential_coefficients(p, TIMES) for p in (sde, COOLING))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Unregistered(Bent):
    pass


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Single(Bent):
    def drift_matrix(self, t):
        return super().drift_matrix(t).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Flat(Bent):
    def diffusion_squared(self, t):
        return jnp.ones_like(t)


BAD = {
    "no pytree": (Unregistered, "Unregistered is no pytree: decorate the class with @jax.tree_util.register_dataclass"),
    "float32": (Single, "Single.drift_matrix is float32 at float64 times: compute in t.dtype"),
    "shape": (Flat, r"Flat.diffusion has shape \(256,\) at 256 times: it must be \(batch, k, k\), k = 1"),
}


@pytest.mark.parametrize("label", BAD)
def test_a_process_that_does_not_fit_is_refused_in_one_line(label: str):
    make, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        samplers.exponential_coefficients(make(c=1.5), TIMES)
    assert "\n" not in str(caught.value)
