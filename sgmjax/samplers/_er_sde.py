"""ER-SDE-Solver for any linear process: the extended reverse SDE, whose noise depends on the noise level.

Cui et al. 2023 write the reverse SDE with noise of any strength lam(t) and choose it by a noise scale phi: for k = 1,
with sigma the noise level, x = z / m moves from t to s by

    x_s = phi_s / phi_t x_t + (1 - phi_s / phi_t) x0_hat + sqrt(sigma_s^2 - sigma_t^2 (phi_s / phi_t)^2) xi,

while the estimate x0_hat of the data stays, which is `_data_prediction` eq. (2) with 1 + lam^2 = d log phi / d log
sigma. With that strength, at the noise level of the process, it is written for any k. The estimate is a polynomial in
sigma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Key, Samples, ScoreFn, Shape, TimeGrid
from sgmjax.samplers import exponential
from sgmjax.samplers._data_prediction import DataPrediction
from sgmjax.samplers.common import Denoise, SampleInfo
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.exponential import ExponentialCoefficients, host_flow
from sgmjax.samplers.linear_flow import log_snr
from sgmjax.sdes import SDE

NoiseScale = Literal["ode", "sde", "er_sde_1", "er_sde_2", "er_sde_3", "er_sde_4", "er_sde_5"]

# d log phi / d log sigma - 1 = lam^2, for the official program's phi
STRENGTHS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ode": lambda s: np.zeros_like(s),  # sigma
    "sde": lambda s: np.ones_like(s),  # sigma^2
    "er_sde_1": lambda s: np.exp(-1 / s) / s / (np.exp(-1 / s) + 10),  # sigma (e^(-1 / sigma) + 10)
    "er_sde_2": lambda s: np.full_like(s, 0.5),  # sigma^1.5
    "er_sde_3": lambda s: np.full_like(s, 1.5),  # sigma^2.5
    # sigma^0.9 log10(1 + 100 sigma^1.5), whose strength falls below zero beyond sigma = 1000
    "er_sde_4": lambda s: np.maximum(150 * s**1.5 / (1 + 100 * s**1.5) / np.log1p(100 * s**1.5) - 0.1, 0.0),
    "er_sde_5": lambda s: 0.3 * s**0.3 / (1 + 10 * np.exp(-(s**0.3))),  # sigma (e^(sigma^0.3) + 10)
}


def er_sde_coefficients(
    sde: SDE,
    times: TimeGrid,
    *,
    order: int = 3,
    noise_scale: NoiseScale = "er_sde_5",
    variant: Literal["exact", "taylor"] = "exact",
) -> ExponentialCoefficients:
    """See `er_sde`."""
    if order not in (1, 2, 3):
        raise InputError(f"order = {order}: must be 1, 2 or 3.")
    if noise_scale not in STRENGTHS:
        raise InputError(
            f"noise_scale must be one of {', '.join(map(repr, get_args(NoiseScale)))}, not {noise_scale!r}."
        )
    if variant not in ("exact", "taylor"):
        raise InputError(f"variant must be 'exact' or 'taylor', not {variant!r}.")
    path = host_flow(sde, times)
    strength = np.sqrt(STRENGTHS[noise_scale](np.exp(-log_snr(path.inside))))
    data = DataPrediction(path, strength, variant, "rho")
    return data.steps(exponential.multistep(len(data.pull), data.transition, data.predictor, order=order))


@on_grid()
def er_sde(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    order: int = 3,
    noise_scale: NoiseScale = "er_sde_5",
    variant: Literal["exact", "taylor"] = "exact",
    coefficients: ExponentialCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by ER-SDE-Solver: one evaluation a step, stochastic.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times must end above 0.
        order: 1 to 3: how many estimates a step takes.
        noise_scale: phi, by the names of the official program; "ode" and "sde" are the probability flow and the reverse
            SDE.
        variant: "exact", the polynomial through the estimates; "taylor", what the paper takes for it at order 3.
        coefficients: from `exponential_coefficients(sde, times, method="er_sde", ...)`, of this process and grid; the
            method's settings here are then not read. Needed where sde is traced.
        options: as `em`; `noise` has one draw a step, none for "ode".

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Reference: Cui et al. 2023, "Elucidating the solution space of extended reverse-time SDE", alg. 1 to 3.

    Examples:
        >>> sde, data = sdes.vp(), exact.mixture([[1.0, -2.0]], 0.01)  # nearly a point
        >>> times = samplers.time_grid("quadratic", 5)
        >>> samples, info = samplers.er_sde(
        ...     jax.random.key(0), data.score_fn(sde), sde, (1, 2), times=times, denoise="tweedie")
        >>> samples.round().tolist(), info.nfe
        ([[1.0, -2.0]], 5)
    """
    if coefficients is None:
        coefficients = er_sde_coefficients(sde, times, order=order, noise_scale=noise_scale, variant=variant)
    return exponential.sample(
        key, score_fn, sde, shape, times=times, coefficients=coefficients, denoise=denoise, options=options
    )
