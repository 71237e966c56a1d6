"""Symmetric splitting (SSCS) for any linear process: the reverse of a recipe is a recipe.

Adding and subtracting g g^T P z, P = Sigma_inf^-1, splits the reverse SDE into

    A:  dz = [-(f + g g^T P) z] dt + g dw     linear, the recipe with Q negated: exact (`SDE.reverse_linear`)
    S:  dz = g g^T (score + P z) dt           one Euler step

composed as A/2, S, A/2 (Strang). CLD and PSLD each derive A by hand; here it is the same code as the forward kernel.

Reference: Dockhorn et al. 2022, sec. 3.4 and app. D; Pandey & Mandt 2023, app. D.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from sgmjax._types import AnyArray, Key, Samples, Scalar, ScoreFn, Shape, State, States, TimeGrid
from sgmjax.samplers.common import Denoise, SampleInfo, batch_time, scan_grid
from sgmjax.samplers.declaration import on_grid
from sgmjax.sdes import SDE, linalg


def sscs_step(
    score_fn: ScoreFn,
    sde: SDE,
    z: State,
    t: Scalar,
    s: Scalar,
    noises: Float[AnyArray, "draws batch k *event"],
    *,
    official: bool = False,
    numerical_eps: float = 0.0,
) -> States:
    """One step from t down to s. z: (batch, k, *event), t, s scalars, noises: (2, batch, k, *event)."""
    # one matrix for the whole batch
    start, half, end = (jnp.reshape(v, (1,)).astype(z.dtype) for v in (t, 0.5 * (t + s), s))
    first = sde.reverse_linear(start, half)
    second = first if official else sde.reverse_linear(half, end)
    if numerical_eps:
        first, second = first.with_ridge(numerical_eps), second.with_ridge(numerical_eps)
    strength = (t - s) * sde.diffusion_squared(start) if official else sde.diffusion_between(end, start)

    z = first.perturb(z, noises[0])
    push = score_fn(z, batch_time(t, z)) + linalg.apply(jnp.asarray(sde.split_precision(), z.dtype), z)
    z = z + linalg.apply(strength, push)
    return second.perturb(z, noises[1])


@on_grid()
def sscs(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    denoise: Denoise = True,
    official: bool = False,
    numerical_eps: float = 0.0,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by the symmetric splitting on a fixed grid.

    The score is evaluated at the time the step starts from, on the half-stepped state, as published. (Its middle is the
    other natural choice; on a mixture with the exact score it was measured two times worse at 10 evaluations.)

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`.
        official: as in the CLD and PSLD codes, use the first half step's coefficients for the second and beta at the
            start for the whole step. Differs only for a beta that changes, where the second half step then integrates
            the wrong interval. For published numbers.
        numerical_eps: added to the covariance of the half steps, as PSLD does (1e-9) and CLD can (`sscs_num_stab`).
        options: as `em`; `noise` has two draws a step.

    Returns:
        samples (batch, *event) and a `SampleInfo`.
    """

    def step(z, memory, node):
        z = sscs_step(
            score_fn, sde, z, node.t, node.s, node.noises, official=official, numerical_eps=numerical_eps
        )  # fmt: skip
        return z, memory

    return scan_grid(step, key, score_fn, sde, shape, times=times, draws=2, denoise=denoise, **options)
