"""DPM-Solver++ (2M, 3M) for any linear process: a multistep exponential integrator that extrapolates the data estimate.

2M holds the estimate over a step (`_data_prediction` eq. (2)) at what the line through the last two, as a function of
lambda, is in its middle. 3M takes the parabola through the last three, integrated exactly. lam = 1 for k = 1 is
SDE-DPM-Solver++.

The official code's 3M gives the second difference half of the weight that the integral of its parabola has (its
phi_3 = phi_2 / h - 1/2 stands for half of h^-2 int_0^h e^-(h - u) u^2 du), which leaves it of order 2.
"""

from __future__ import annotations

from typing import Any

from sgmjax._inputs import InputError
from sgmjax._types import Key, Samples, ScoreFn, Shape, TimeGrid
from sgmjax.samplers import exponential
from sgmjax.samplers._data_prediction import DataPrediction
from sgmjax.samplers._ddim import check_lam
from sgmjax.samplers.common import Denoise, SampleInfo
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.exponential import ExponentialCoefficients, host_flow
from sgmjax.sdes import SDE


def dpm_solver_pp_coefficients(
    sde: SDE, times: TimeGrid, *, order: int = 2, lam: float = 0.0, lower_order_final: bool = False
) -> ExponentialCoefficients:
    """See `dpm_solver_pp`."""
    if order not in (1, 2, 3):
        raise InputError(f"order = {order}: must be 1, 2 or 3.")
    check_lam(lam)
    data = DataPrediction(host_flow(sde, times), lam, "bh2")
    return data.steps(
        exponential.multistep(
            len(data.pull), data.transition, data.predictor, order=order, lower_order_final=lower_order_final
        )
    )


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
    """Sample by DPM-Solver++ (2M or 3M): one evaluation a step.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times must end above 0.
        order: 1 (gDDIM), 2 or 3.
        lam: strength of the noise, as `gddim`'s: 0 is the probability flow, 1 the reverse SDE.
        lower_order_final: fall to order 1 towards the last step, as the official code does for fewer than 15 steps.
        coefficients: from `exponential_coefficients(sde, times, method="dpm_solver_pp", ...)`, of this process and
            grid; the method's settings here are then not read. Needed where sde is traced.
        options: as `em`; `noise` has one draw a step, none for lam = 0.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Reference: Lu et al. 2022 (DPM-Solver++), algorithm 2, and its SDE-DPM-Solver++ (2M) (lam = 1).

    Examples:
        >>> sde = sdes.vp()
        >>> times = samplers.time_grid("logsnr", 5, t_min=0.01, sde=sde)
        >>> samples, info = samplers.dpm_solver_pp(
        ...     jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times)
        >>> samples.shape, info.nfe
        ((3, 2), 5)
    """
    if coefficients is None:
        coefficients = dpm_solver_pp_coefficients(sde, times, order=order, lam=lam, lower_order_final=lower_order_final)
    return exponential.sample(
        key, score_fn, sde, shape, times=times, coefficients=coefficients, denoise=denoise, options=options
    )
