"""UniPC for any linear process: a multistep exponential integrator of the data estimate, and its corrector for free.

The predictor of order p takes for the estimate of the data the polynomial through the last p of them
(`_data_prediction` eq. (2), lam = 0); the corrector makes the same step again through p + 1 points, once the estimate
is known where it ended (`exponential.multistep`).

For k = 1 these are the paper's UniP-p and UniC-p, but for the cases in which it takes one difference of estimates:
there `variant` chooses between the exact weight and those of its two B(h).
"""

from __future__ import annotations

from typing import Any

from sgmjax._types import Key, Samples, ScoreFn, Shape, TimeGrid
from sgmjax.samplers import exponential
from sgmjax.samplers._data_prediction import DataPrediction, Variant
from sgmjax.samplers.common import Denoise, SampleInfo
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.exponential import ExponentialCoefficients, host_flow
from sgmjax.sdes import SDE


def unipc_coefficients(
    sde: SDE,
    times: TimeGrid,
    *,
    order: int = 2,
    corrector: bool = True,
    variant: Variant = "exact",
    lower_order_final: bool = False,
) -> ExponentialCoefficients:
    """See `unipc`."""
    exponential.check_order(order)
    data = DataPrediction(host_flow(sde, times), variant=variant)
    return data.steps(
        exponential.multistep(
            len(data.pull), data.transition, data.predictor, data.corrector, order=order,
            corrector_order=corrector * order, lower_order_final=lower_order_final,
        )
    )  # fmt: skip


@on_grid()
def unipc(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    order: int = 2,
    corrector: bool = True,
    variant: Variant = "exact",
    lower_order_final: bool = False,
    coefficients: ExponentialCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by UniPC: one evaluation a step, deterministic, of order `order`, and one more with the corrector.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times must end above 0.
        order: 1 to 4, of the predictor. Without the corrector 3 is `dpm_solver_pp` of that order.
        corrector: UniC, of the same order.
        variant: "exact", or the paper's B(h) where it takes one difference of estimates: "bh1", "bh2".
        lower_order_final: fall to order 1 towards the last step, as the official code does.
        coefficients: from `exponential_coefficients(sde, times, method="unipc", ...)`, of this process and grid; the
            method's settings here are then not read. Needed where sde is traced.
        options: as `em`; it draws no noise.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Reference: Zhao et al. 2023, "UniPC", algorithms 5 to 8 (multistep, data prediction).

    Examples:
        >>> sde = sdes.psld()
        >>> times = samplers.time_grid("auto", 8, sde=sde)
        >>> samples, info = samplers.unipc(
        ...     jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times, denoise="tweedie")
        >>> samples.shape, info.nfe
        ((3, 2), 8)
    """
    if coefficients is None:
        coefficients = unipc_coefficients(
            sde, times, order=order, corrector=corrector, variant=variant, lower_order_final=lower_order_final
        )
    return exponential.sample(
        key, score_fn, sde, shape, times=times, coefficients=coefficients, denoise=denoise, options=options
    )
