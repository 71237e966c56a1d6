"""iPNDM for any linear process: gDDIM's step with the weights of Adams and Bashforth for equal steps.

In DDIM's step (`ddim` eq. (1)) eps is replaced by

    order 1   e_0,                                   order 3   (23 e_0 - 16 e_1 + 5 e_2) / 12,
    order 2   (3 e_0 - e_1) / 2,                     order 4   (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24,

e_j the predictions of this and the last points, whatever the steps' lengths are. `deis` has in the place of these the
weights that belong to the grid.

What that misses is carried on by Psi, which in phase space grows exponentially backwards: there order 2 is the highest
to take with few steps. Third-order Langevin on a ring of Gaussians, quadratic grid of 50 steps, sliced W2 (two sets of
true draws: 0.03): order 2 0.03, order 3 0.11, order 4 diverges; with four variables order 4 diverges at 200 steps too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sgmjax._types import Key, Samples, ScoreFn, Shape, TimeGrid
from sgmjax.samplers import exponential
from sgmjax.samplers._ddim import frozen_eps
from sgmjax.samplers.common import Denoise, SampleInfo
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.exponential import ExponentialCoefficients, assemble, host_flow
from sgmjax.sdes import SDE

ADAMS_BASHFORTH = (
    np.array([1.0]),
    np.array([3.0, -1.0]) / 2,
    np.array([23.0, -16.0, 5.0]) / 12,
    np.array([55.0, -59.0, 37.0, -9.0]) / 24,
)


def ipndm_coefficients(sde: SDE, times: TimeGrid, *, order: int = 4) -> ExponentialCoefficients:
    """See `ipndm`."""
    exponential.check_order(order)
    path = host_flow(sde, times)
    from_state, from_score, step = frozen_eps(path)

    def predict(i: int, p: int) -> np.ndarray:
        return ADAMS_BASHFORTH[p - 1][:, None, None] * step[i]

    return assemble(
        path, path.psi, from_state, from_score, exponential.multistep(len(step), path.psi, predict, order=order)
    )  # fmt: skip


@on_grid()
def ipndm(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    order: int = 4,
    coefficients: ExponentialCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by iPNDM: one evaluation a step, deterministic.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times must end above 0.
        order: 1 (gDDIM) to 4; the first steps have less.
        coefficients: from `exponential_coefficients(sde, times, method="ipndm", ...)`, of this process and grid; the
            method's settings here are then not read. Needed where sde is traced.
        options: as `em`; it draws no noise.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Reference: Liu et al. 2022 (PNDM), eq. (12); as "iPNDM" Zhang & Chen 2023, app. H.

    Examples:
        >>> sde = sdes.psld()
        >>> times = samplers.time_grid("quadratic", 5, t_min=0.01)
        >>> samples, info = samplers.ipndm(jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times)
        >>> samples.shape, info.nfe
        ((3, 2), 5)
    """
    coefficients = ipndm_coefficients(sde, times, order=order) if coefficients is None else coefficients
    return exponential.sample(
        key, score_fn, sde, shape, times=times, coefficients=coefficients, denoise=denoise, options=options
    )
