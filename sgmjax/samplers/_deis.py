"""DEIS: multistep exponential integrators of the probability flow, orders 1 to 4, for any linear process.

eps_K is replaced by the polynomial through its values at the last `order` grid points (Adams-Bashforth in the
exponential frame), which the linear part then carries exactly:

    z_s = Psi(s, t) z_t + sum_j C_j eps_K(t_j),   C_j = int_t^s Psi(s, tau) 1/2 g g^T K^-T l_j(tau) dtau.

With `corrector` every step is made again through one point more, eps where it ended, at no cost of its own
(`exponential.multistep`): gDDIM's predictor-corrector. What that adds is carried on by Psi, which in phase space grows
exponentially over long steps backwards; the data estimate's (`unipc`) does not.

The first steps have fewer points and take a lower order: an error of h^2 once, small since eps hardly changes near the
prior.

**Which K and which polynomial.** Measured on a ring of eight Gaussians with the exact score, quadratic grid, sliced W2
at 5 / 10 / 20 evaluations with the grid's end at 0.01 / 0.003 / 0.001 (two sets of true draws: 0.036): CLD with R and
polynomials in the log-SNR 0.216 / 0.039 / 0.035, with R and polynomials in t 0.248 / 0.071 / 0.038, with L more than
10 at each of them. With the grid's end at 0.03 the first is 0.089 at 5: end it early when there are few steps.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Key, Numbers, Samples, ScoreFn, Shape, TimeGrid
from sgmjax.samplers import exponential
from sgmjax.samplers._ddim import Parameterization, check_parameterization
from sgmjax.samplers.common import Denoise, SampleInfo
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.exponential import ExponentialCoefficients, assemble, host_flow
from sgmjax.samplers.linear_flow import Flow, HostProcess, eps_matrices, log_snr, log_snr_rate
from sgmjax.sdes import SDE

Variable = Literal["log_snr", "t", "rho"]


def deis_coefficients(
    sde: SDE,
    times: TimeGrid,
    *,
    order: int = 3,
    corrector: bool = False,
    parameterization: Parameterization = "R",
    variable: Variable = "log_snr",
) -> ExponentialCoefficients:
    """See `deis`."""
    exponential.check_order(order)
    if variable not in ("log_snr", "t", "rho"):
        raise InputError(f"variable must be 'log_snr', 't' or 'rho', not {variable!r}.")
    check_parameterization(parameterization)
    path = host_flow(sde, times)
    points, _ = variable_of(variable, path.times, path.at)
    weights = exponential.multistep(
        len(path.times) - 1,
        path.psi,
        lambda i, p: _step_weights(path, i, points[i::-1][:p], parameterization, variable),
        lambda i, p: _step_weights(path, i, np.append(points[i + 1], points[i::-1][:p]), parameterization, variable),
        order=order,
        corrector_order=corrector * order,
    )
    from_state, from_score = eps_matrices(path.sde, path.at)
    if parameterization == "R":
        from_state, from_score = (np.swapaxes(path.rotation, 1, 2) @ m for m in (from_state, from_score))
    return assemble(path, path.psi, from_state, from_score, weights)


def _step_weights(
    path: Flow, i: int, points: np.ndarray, parameterization: Parameterization, variable: Variable
) -> np.ndarray:
    """C_j of the step from t_i for eps at the points, in the variable, (points, k, k)."""
    panels = path.step == i
    tau, weight, inside = path.tau[panels], path.weight[panels], HostProcess(*(v[panels] for v in path.inside))
    inner, rate = variable_of(variable, tau, inside)
    value, slope = lagrange(points, inner)
    psi = path.to_end_of_step[panels]
    if parameterization == "L":
        integrand = 0.5 * psi @ inside.ggT @ np.swapaxes(inside.inverse, -1, -2)
        return -np.einsum("pn,pnj,pnab->jab", weight, value, integrand)
    # linear_flow eq. (4)
    carried = psi @ inside.factor @ path.inner_rotation[panels]
    ends, _ = variable_of(variable, path.times[i : i + 2], HostProcess(*(v[i : i + 2] for v in path.at)))
    at_start, at_end = lagrange(points, ends)[0][:, :, None, None]
    out = at_end * path.R[i + 1] - at_start * (path.psi[i] @ path.R[i])
    return out + np.einsum("pn,pnj,pnab->jab", weight * rate, slope, carried)


def variable_of(kind: Variable, t: np.ndarray, at: HostProcess) -> tuple[np.ndarray, np.ndarray]:
    """The variable of the polynomials at t, and its rate of change."""
    if kind == "t":
        return t, np.ones_like(t)
    level, rate = log_snr(at), log_snr_rate(at)
    return (level, rate) if kind == "log_snr" else (np.exp(-level), -rate * np.exp(-level))


def lagrange(points: np.ndarray, x: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """The Lagrange polynomials of the points at x, and their derivatives: (...,) -> (..., len(points)) each."""
    x = np.asarray(x)
    value, slope = np.zeros((*x.shape, len(points))), np.zeros((*x.shape, len(points)))
    for j, point in enumerate(points):
        others = [p for i, p in enumerate(points) if i != j]
        scale = np.prod([point - p for p in others])
        value[..., j] = np.prod([x - p for p in others] + [np.ones_like(x)], axis=0) / scale
        for dropped in range(len(others)):
            kept = [x - p for i, p in enumerate(others) if i != dropped]
            slope[..., j] += np.prod([*kept, np.ones_like(x)], axis=0) / scale
    return value, slope


@on_grid()
def deis(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    order: int = 3,
    corrector: bool = False,
    parameterization: Parameterization = "R",
    variable: Variable = "log_snr",
    coefficients: ExponentialCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by a multistep exponential integrator: one evaluation a step, deterministic.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times must end above 0.
        order: 1 (gDDIM, DDIM for k = 1) to 4.
        corrector: correct every step through one point more; the order rises by one.
        parameterization: see `gddim`.
        variable: in which the polynomials are: "log_snr", half the log of the information z_t has on x_0
            (log alpha / sigma for k = 1); "t", the paper's tAB; "rho" = e^-log_snr (sigma / alpha), its rhoAB.
        coefficients: from `exponential_coefficients(sde, times, method="deis", ...)`, of this process and grid; the
            method's settings here are then not read. Needed where sde is traced.
        options: as `em`; it draws no noise.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Reference: Zhang & Chen 2023, eqs. (14) and (15); Zhang, Tao & Chen 2023, sec. 4 (phase space).

    Examples:
        >>> sde, times = sdes.psld(), samplers.time_grid("quadratic", 5, t_min=0.01)
        >>> samples, info = samplers.deis(
        ...     jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times, order=2)
        >>> samples.shape, info.nfe
        ((3, 2), 5)
    """
    if coefficients is None:
        coefficients = deis_coefficients(
            sde, times, order=order, corrector=corrector, parameterization=parameterization, variable=variable
        )
    return exponential.sample(
        key, score_fn, sde, shape, times=times, coefficients=coefficients, denoise=denoise, options=options
    )
