"""SA-Solver for any linear process: the stochastic Adams method of the data estimate, with a corrector.

The reverse process with noise of strength tau (`_data_prediction` eq. (2), lam = tau) in the place of the probability
flow of `unipc`: the predictor takes the polynomial through the last estimates, the corrector makes the step again, with
the same noise, through the estimate where it ended as well. tau = 0 is `unipc`, tau = 1 the reverse SDE.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Key, Samples, ScoreFn, Shape, TimeGrid
from sgmjax.samplers import exponential
from sgmjax.samplers._data_prediction import DataPrediction, Variant
from sgmjax.samplers.common import Denoise, SampleInfo, check_known
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.exponential import HIGHEST, ExponentialCoefficients, host_flow
from sgmjax.samplers.grids import host_noise_level
from sgmjax.sdes import SDE


def sa_solver_coefficients(
    sde: SDE,
    times: TimeGrid,
    *,
    tau: float = 1.0,
    S_min: float = 0.0,
    S_max: float = float("inf"),
    order: int = 3,
    corrector: int = 3,
    variant: Variant = "exact",
    lower_order_final: bool = False,
) -> ExponentialCoefficients:
    """See `sa_solver`."""
    exponential.check_order(order)
    if corrector not in range(HIGHEST + 1):
        raise InputError(f"corrector = {corrector}: must be its order, 1 to {HIGHEST}, or 0 for none.")
    check_known(tau=tau, S_min=S_min, S_max=S_max)
    if not 0 <= tau < np.inf:
        raise InputError(f"tau = {tau:g}: must be finite and >= 0.")
    if not 0 <= S_min <= S_max:
        raise InputError(f"S_min = {S_min:g}, S_max = {S_max:g}: must be noise levels, 0 <= S_min <= S_max.")
    path = host_flow(sde, times)
    level = host_noise_level(sde, path.times[:-1])
    data = DataPrediction(path, tau * ((level >= S_min) & (level <= S_max)), variant)
    return data.steps(
        exponential.multistep(
            len(level), data.transition, data.predictor, data.corrector, order=order, corrector_order=corrector,
            lower_order_final=lower_order_final,
        )
    )  # fmt: skip


@on_grid()
def sa_solver(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    tau: float = 1.0,
    S_min: float = 0.0,
    S_max: float = float("inf"),
    order: int = 3,
    corrector: int = 3,
    variant: Variant = "exact",
    lower_order_final: bool = False,
    coefficients: ExponentialCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by SA-Solver: one evaluation a step, stochastic.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times must end above 0.
        tau: strength of the noise, >= 0: 0 is the probability flow, 1 the reverse SDE.
        S_min, S_max: noise is added in steps that start at a noise level (`sdes.noise_level`) between them.
        order: of the predictor, 1 to 4: how many estimates it takes.
        corrector: of the corrector, 1 to 4, which takes one more (the official code counts that too); 0 for none.
        variant: "exact", or what the official code takes for few steps where there is one difference: "bh1".
        lower_order_final: fall to order 1 towards the last step.
        coefficients: from `exponential_coefficients(sde, times, method="sa_solver", ...)`, of this process and grid;
            the method's settings here are then not read. Needed where sde is traced.
        options: as `em`; `noise` has one draw a step, none for tau = 0.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Reference: Xue et al. 2023, "SA-Solver", algorithm 1 (its tau(t) is piecewise constant as here).

    Examples:
        >>> sde, data = sdes.vp(), exact.mixture([[1.0, -2.0]], 0.01)  # nearly a point
        >>> times = samplers.time_grid("logsnr", 5, sde=sde)
        >>> samples, info = samplers.sa_solver(jax.random.key(0), data.score_fn(sde), sde, (1, 2), times=times, tau=0.5)
        >>> samples.round().tolist(), info.nfe
        ([[1.0, -2.0]], 5)
    """
    if coefficients is None:
        coefficients = sa_solver_coefficients(
            sde, times, tau=tau, S_min=S_min, S_max=S_max, order=order, corrector=corrector,
            variant=variant, lower_order_final=lower_order_final,
        )  # fmt: skip
    return exponential.sample(
        key, score_fn, sde, shape, times=times, coefficients=coefficients, denoise=denoise, options=options
    )
