"""DDIM and gDDIM for any linear process: steps that are exact while the estimate of the data does not change.

Let the data be a point x_0. Then z_t ~ N(E_0 x_0, R_t R_t^T), E_0 the first column of the mean matrix, R the factor of
`linear_flow` eq. (2), and y = R_t^-1 (z_t - E_0(t) x_0), which the network's eps_R estimates, is standard normal at all
times. The probability flow leaves y where it is, so its exact step is

    z_s = E_0(s) x_0 + R_s y = Psi(s, t) (z_t - R_t eps_R) + R_s eps_R,                                            (1)

DDIM for k = 1 (R = sigma), gDDIM for more. The reverse processes with noise and the same marginals let y forget itself:

    z_s = E_0(s) x_0 + R_s (C y + (1 - C C^T)^1/2 xi),                                                             (2)

with a contraction C, and differ in it. For the reverse SDE with lam times the noise, in reversed time
dz = [-f z + (1 + lam^2)/2 g g^T score] dt + lam g dw, C solves the Ornstein-Uhlenbeck equation

    dC/dt = lam^2 / 2 H C,  H = R^-1 g g^T R^-T,  from t down to s,                                                (3)

which is gDDIM's stochastic step; C C^T - 1 and (1) give its mean and covariance without their two further ODEs.
lam = 1 is the exact reverse SDE: ancestral sampling from the posterior of z_s given z_t and the estimate of x_0.
DDIM's eta instead scales that posterior's covariance 1 - C_1 C_1^T by eta^2.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.linalg

from sgmjax._inputs import InputError
from sgmjax._types import Key, Samples, ScoreFn, Shape, TimeGrid
from sgmjax.samplers import exponential
from sgmjax.samplers.common import Denoise, SampleInfo, check_known
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.exponential import ExponentialCoefficients, assemble, host_flow
from sgmjax.samplers.linear_flow import Flow, damped, eps_matrices
from sgmjax.sdes import SDE

Parameterization = Literal["R", "L"]


def ddim_coefficients(sde: SDE, times: TimeGrid, *, eta: float = 0.0) -> ExponentialCoefficients:
    """See `ddim`."""
    check_known(eta=eta)
    if not 0 <= eta <= 1:
        raise InputError(f"eta = {eta:g}: must lie in [0, 1].")
    path = host_flow(sde, times)
    return _contracted(path, _share_of_posterior(contraction(path, 1.0), eta) if eta else None)


def gddim_coefficients(
    sde: SDE, times: TimeGrid, *, lam: float = 0.0, parameterization: Parameterization = "R"
) -> ExponentialCoefficients:
    """See `gddim`."""
    check_lam(lam)
    check_parameterization(parameterization)
    path = host_flow(sde, times)
    if parameterization == "R":
        return _contracted(path, contraction(path, lam) if lam else None)
    integrand = path.to_end_of_step @ path.inside.ggT
    weights = 0.5 * (1 + lam**2) * path.integrate(integrand @ np.swapaxes(path.inside.inverse, -1, -2))
    noise = lam * _noise_factor(path) if lam else None
    return assemble(path, path.psi, *eps_matrices(path.sde, path.at), weights[:, None], noise)


def check_lam(lam: float) -> None:
    """Raise ValueError unless it is finite and not negative."""
    check_known(lam=lam)
    if not 0 <= lam < np.inf:
        raise InputError(f"lam = {lam:g}: must be finite and >= 0.")


def check_parameterization(parameterization: str) -> None:
    """Raise ValueError unless it is one of gDDIM's two."""
    if parameterization not in ("R", "L"):
        raise InputError(f"parameterization must be 'R' or 'L', not {parameterization!r}.")


def contraction(path: Flow, lam: float) -> np.ndarray:
    """C of eq. (3) for every step, (steps, k, k)."""
    whole, _ = damped(path, lam)
    return np.swapaxes(path.rotation[1:], 1, 2) @ whole @ path.rotation[:-1]


def complement(C: np.ndarray) -> np.ndarray:
    """A factor of 1 - C C^T, (steps, k, k)."""
    left, scale, _ = np.linalg.svd(C)
    return left * np.sqrt(np.clip((1 - scale) * (1 + scale), 0.0, None))[:, None, :]


def _contracted(path: Flow, C: np.ndarray | None) -> ExponentialCoefficients:
    """The step of eq. (2); None is C = 1."""
    from_state, from_score, weights = frozen_eps(path)
    noise = None
    if C is not None:
        end = path.R[1:]
        weights, noise = weights + end @ (C - np.eye(path.sde.k)), end @ complement(C)
    return assemble(path, path.psi, from_state, from_score, weights[:, None], noise)


def frozen_eps(path: Flow) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """eps_R = Mz z + Ms score, (steps + 1, k, k) each, and its weight in the step of eq. (1), (steps, k, k)."""
    from_state, from_score = (np.swapaxes(path.rotation, 1, 2) @ m for m in eps_matrices(path.sde, path.at))
    return from_state, from_score, path.R[1:] - path.psi @ path.R[:-1]


def _share_of_posterior(C: np.ndarray, eta: float) -> np.ndarray:
    """The contraction that leaves eta^2 of the covariance 1 - C C^T that C leaves, and is C for eta = 1.

    C = S V with S symmetric and V a rotation; it is (1 - eta^2 (1 - S^2))^1/2 V^(eta^2).
    """
    left, scale, right = np.linalg.svd(C)
    share = np.sqrt(1 - eta**2 * (1 - scale) * (1 + scale))
    turns = [scipy.linalg.expm(eta**2 * np.real(scipy.linalg.logm(v))) for v in left @ right]
    return (left * share[:, None, :]) @ np.swapaxes(left, 1, 2) @ np.stack(turns)


def _noise_factor(path: Flow) -> np.ndarray:
    """A factor of int Psi(s, tau) g g^T Psi(s, tau)^T dtau over every step, (steps, k, k), as columns, not as a sum."""
    k, r = path.sde.k, path.sde.num_noised
    ggT = path.inside.ggT[..., k - r :, k - r :]
    try:
        root = np.linalg.cholesky(ggT)
    except np.linalg.LinAlgError:  # noise of fewer directions than variables, as where they turn
        value, vector = np.linalg.eigh(ggT)
        root = vector * np.sqrt(np.maximum(value, 0.0))[..., None, :]
    columns = np.sqrt(path.weight)[..., None, None] * (path.to_end_of_step[..., k - r :] @ root)
    steps = (np.moveaxis(columns[path.step == i], 2, 0).reshape(k, -1) for i in range(len(path.times) - 1))
    return np.stack([np.transpose(np.linalg.qr(stacked.T, mode="r")) for stacked in steps])


@on_grid()
def ddim(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    eta: float = 0.0,
    coefficients: ExponentialCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by DDIM.

    For k = 1, with x_t = a_t x_0 + sigma_t eps:  x_s = a_s x0_hat + sqrt(sigma_s^2 - v) eps + sqrt(v) xi, where
    v = eta^2 sigma_s^2 (1 - a^2 sigma_s^2 / sigma_t^2), a = a_t / a_s. In phase space see the module's docstring:
    eta = 0 is `gddim`, eta = 1 the exact posterior, and between them eta^2 is the share of its covariance.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times must end above 0.
        eta: stochasticity in [0, 1]: 0 deterministic, 1 ancestral (DDPM's posterior variance).
        coefficients: from `exponential_coefficients(sde, times, method="ddim", eta=...)`, of this process and grid; the
            method's settings here are then not read. Needed where sde is traced.
        options: as `em`; `noise` has one draw a step, none for eta = 0.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Reference: Song, Meng & Ermon 2021, eqs. (12) and (16).

    Examples:
        >>> sde, data = sdes.vp(), exact.mixture([[1.0, -2.0]], 0.01)  # nearly a point: steps of any size are exact
        >>> times = samplers.time_grid("quadratic", 3)
        >>> samples, info = samplers.ddim(jax.random.key(0), data.score_fn(sde), sde, (2, 2), times=times)
        >>> samples.round().tolist(), info.nfe
        ([[1.0, -2.0], [1.0, -2.0]], 3)
    """
    coefficients = ddim_coefficients(sde, times, eta=eta) if coefficients is None else coefficients
    return exponential.sample(
        key, score_fn, sde, shape, times=times, coefficients=coefficients, denoise=denoise, options=options
    )


@on_grid()
def gddim(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    lam: float = 0.0,
    parameterization: Parameterization = "R",
    coefficients: ExponentialCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by gDDIM, of order 1. `deis` is its multistep extension.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times must end above 0.
        lam: strength of the noise, >= 0: 0 is the probability flow, 1 the reverse SDE. The paper's lambda.
        parameterization: what is held fixed over a step. "R": the estimate of the data, so that steps of any size are
            exact where the data are a point. "L": eps of the triangular factor, for comparison: in phase space it
            turns along the flow, and the steps must be small.
        coefficients: from `exponential_coefficients(sde, times, method="gddim", ...)`, of this process and grid; the
            method's settings here are then not read. Needed where sde is traced.
        options: as `em`; `noise` has one draw a step, none for lam = 0.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Reference: Zhang, Tao & Chen 2023, sec. 4 (the paper's covariance ODE is solved here by eq. (3)).

    Examples:
        >>> sde, data = sdes.psld(), exact.mixture([[1.0, -2.0]], 0.01)  # nearly a point: any steps are exact
        >>> times = samplers.time_grid("quadratic", 3)
        >>> samples, info = samplers.gddim(
        ...     jax.random.key(0), data.score_fn(sde), sde, (2, 2), times=times, denoise="tweedie")
        >>> samples.round().tolist(), info.nfe
        ([[1.0, -2.0], [1.0, -2.0]], 3)
    """
    if coefficients is None:
        coefficients = gddim_coefficients(sde, times, lam=lam, parameterization=parameterization)
    return exponential.sample(
        key, score_fn, sde, shape, times=times, coefficients=coefficients, denoise=denoise, options=options
    )
