"""DPM-Solver++ (2M) for any linear process: a multistep exponential integrator that extrapolates the data estimate.

With x0_hat = E[x_0 | z_t], which `linear_flow` eq. (5) reads off the noised scores for any k, the score of the whole
state is Sigma^-1 (E_0 x0_hat - z). In the probability flow the part linear in z is then f + 1/2 g g^T Sigma^-1, whose
transition matrix is R_s R_t^-1, and while x0_hat is a constant D

    z_s = R_s R_t^-1 z_t + (E_0(s) - R_s R_t^-1 E_0(t)) D.

For k = 1: x_s = sigma_s / sigma_t x_t - a_s (e^-h - 1) D, h = lambda_s - lambda_t, lambda = log a / sigma. 2M takes for
D the line through the last two estimates, as a function of lambda, at the middle of the step. In phase space lambda is
half the log of the information that z_t has on x_0.

With noise of strength lam (`ddim`, eqs. (2), (3)) R_s R_t^-1 becomes R_s C R_t^-1, and R_s (1 - C C^T)^1/2 xi is added;
lam = 1 for k = 1 is SDE-DPM-Solver++ (2M).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Key, Samples, ScoreFn, Shape, TimeGrid
from sgmjax.samplers import exponential
from sgmjax.samplers._ddim import check_lam, complement, contraction
from sgmjax.samplers.common import Denoise, SampleInfo
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.exponential import ExponentialCoefficients, assemble, host_flow
from sgmjax.samplers.linear_flow import data_matrices, log_snr
from sgmjax.sdes import SDE


def dpm_solver_pp_coefficients(
    sde: SDE, times: TimeGrid, *, order: int = 2, lam: float = 0.0, lower_order_final: bool = False
) -> ExponentialCoefficients:
    """See `dpm_solver_pp`."""
    if order not in (1, 2):
        raise InputError(f"order = {order}: must be 1 or 2.")
    check_lam(lam)
    path = host_flow(sde, times)
    steps = len(path.times) - 1
    end, noise = path.R[1:], None
    if lam:
        C = contraction(path, lam)
        end, noise = path.R[1:] @ C, path.R[1:] @ complement(C)
    transition = end @ np.swapaxes(path.rotation[:-1], 1, 2) @ path.at.inverse[:-1]
    column = path.at.data_mean[:, :, None]
    pull = column[1:] - transition @ column[:-1]
    weights = np.zeros((steps, order, sde.k, 1))
    weights[:, 0] = pull
    if order == 2 and steps > 1:
        h = np.diff(log_snr(path.at))
        half = (0.5 * h[1:] / h[:-1])[:, None, None]  # 1 / (2 r), r = h_{i-1} / h_i
        if lower_order_final:
            half[-1] = 0.0
        weights[1:, 0] += half * pull[1:]
        weights[1:, 1] -= half * pull[1:]
    return assemble(path, transition, *data_matrices(path.sde, path.at), weights, noise)


@on_grid()
def dpm_solver_pp(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    order: int = 2,
    lam: float = 0.0,
    lower_order_final: bool = False,
    coefficients: ExponentialCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by DPM-Solver++ (2M): one evaluation a step.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times must end above 0.
        order: 1 (gDDIM) or 2.
        lam: strength of the noise, as `gddim`'s: 0 is the probability flow, 1 the reverse SDE.
        lower_order_final: take the last step with order 1, as the official code does for fewer than 15 steps.
        coefficients: from `exponential_coefficients(sde, times, method="dpm_solver_pp", ...)`; needed where sde is
            traced.
        options: as `em`; `noise` has one draw a step, none for lam = 0.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Reference: Lu et al. 2022 (DPM-Solver++), algorithm 2, and its SDE-DPM-Solver++ (2M) (lam = 1).
    """
    if coefficients is None:
        coefficients = dpm_solver_pp_coefficients(sde, times, order=order, lam=lam, lower_order_final=lower_order_final)
    return exponential.sample(
        key, score_fn, sde, shape, times=times, coefficients=coefficients, denoise=denoise, options=options
    )
