"""Symmetric splitting (SSCS) for any linear process: the reverse of a recipe is a recipe.

Adding and subtracting g g^T P z, P = Sigma_inf^-1, splits the reverse SDE into

    A:  dz = [-(f + g g^T P) z] dt + g dw     linear, the recipe with Q negated: exact (`SDE.reverse_linear`)
    S:  dz = g g^T (score + P z) dt           one Euler step

composed as A/2, S, A/2 (Strang). CLD and PSLD each derive A by hand; here it is the same code as the forward kernel.

**Without the prior.** A forgets what the state knows of the data as fast as the process does, and S has to give it back
in one Euler step: right only where g g^T P h << 1. Where data are decided at noise levels above their own size, as in
many dimensions, that is where the process forgets most in a step. With P = 0, A is -f and noise: the forward kernel
z_t = M z_s + L xi turned around, M^-1 (z_t + L xi). A step from t by way of r to s is then, with C = L L^T of t given r
(1) and of r given s (2), and one score,

    y = z_t + L_1 xi_1,    v = score(y, t),    z_r = M_1^-1 (y + C_1 v) + C_2 M_1^T v,    z_s = M_2^-1 (z_r + L_2 xi_2),

in which S gives back exactly what A has taken. For k = 1 it is the same in the scaled variable z / m for every process:
that of VE, whose P is 0; and for any k the mean of z_s is Tweedie's, E[z_s | z_t], once the scores of the variables
without noise are filled in (`sdes.estimate`). On `mixture64` (`docs/samplers.md`) at ten evaluations VP is at the floor
by it, and at four floors with P.

Reference: Dockhorn et al. 2022, sec. 3.4 and app. D; Pandey & Mandt 2023, app. D.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Float

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Key, Samples, Scalar, ScoreFn, Shape, State, States, TimeGrid
from sgmjax.samplers.common import Denoise, SampleInfo, batch_time, check_end, check_known, check_times, scan_grid
from sgmjax.samplers.declaration import on_grid
from sgmjax.sdes import SDE, estimate, linalg, noise_level, time_at_noise_level


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


def free_step(
    score_fn: ScoreFn, sde: SDE, z: State, t: Scalar, s: Scalar, noises: Float[AnyArray, "draws batch k *event"]
) -> States:
    """One step from t down to s without the prior, by way of the noise level between; arguments as `sscs_step`."""
    start, end = (jnp.reshape(v, (1,)).astype(z.dtype) for v in (t, s))
    half = time_at_noise_level(sde, jnp.sqrt(noise_level(sde, start) * noise_level(sde, end)))
    half = jnp.clip(half.astype(z.dtype), end, start)
    first, second = sde.transition_between(half, start), sde.transition_between(end, half)
    M, C = first.mean.astype(z.dtype), (first.covariance.astype(z.dtype), second.covariance.astype(z.dtype))

    y = z + linalg.apply(first.factor.astype(z.dtype), noises[0])
    score = score_fn(y, batch_time(t, y))
    if sde.num_noised < sde.k:  # the others' follow from them
        look = estimate(sde, start)
        score = look.score(y, look.noise(y, look.kernel.restrict(look.kernel.eps(score)))).astype(z.dtype)
    z = linalg.apply(jnp.linalg.inv(M), y + linalg.apply(C[0], score))
    z = z + linalg.apply(C[1] @ jnp.swapaxes(M, -1, -2), score)
    z = z + linalg.apply(second.factor.astype(z.dtype), noises[1])
    return linalg.apply(jnp.linalg.inv(second.mean.astype(z.dtype)), z)


@on_grid()
def sscs(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    denoise: Denoise = True,
    precision: Literal["prior", "none"] = "prior",
    official: bool = False,
    numerical_eps: float = 0.0,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by the symmetric splitting on a fixed grid.

    The score is evaluated at the time the step starts from, on the half-stepped state, as published. (Its middle is the
    other natural choice; on a mixture with the exact score it was measured two times worse at 10 evaluations.)

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`.
        precision: P of the splitting: "prior", as published, or "none", which is better in many dimensions (VP, CLD and
            PSLD; third order is unstable with few steps); times must then end above 0. VE has none.
        official: as in the CLD and PSLD codes, use the first half step's coefficients for the second and beta at the
            start for the whole step. Differs only for a beta that changes, where the second half step then integrates
            the wrong interval. For published numbers.
        numerical_eps: added to the covariance of the half steps, as PSLD does (1e-9) and CLD can (`sscs_num_stab`).
        options: as `em`; `noise` has two draws a step.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Raises:
        ValueError: another precision, or the official program's without the prior.

    Examples:
        >>> sde = sdes.psld()
        >>> times = samplers.time_grid("quadratic", 5)
        >>> samples, info = samplers.sscs(jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times)
        >>> samples.shape, info.nfe
        ((3, 2), 5)
    """
    check_known(numerical_eps=numerical_eps)
    if precision not in ("prior", "none"):
        raise InputError(f"precision must be 'prior' or 'none', not {precision!r}.")
    if precision == "none" and (official or numerical_eps):
        raise InputError("precision 'none' is not in the official programs: leave official and numerical_eps out.")
    if precision == "none":
        check_end(check_times(times)[-1], sde, in_log_t=True)

    def step(z, memory, node):
        if precision == "none":
            return free_step(score_fn, sde, z, node.t, node.s, node.noises), memory
        z = sscs_step(
            score_fn, sde, z, node.t, node.s, node.noises, official=official, numerical_eps=numerical_eps
        )  # fmt: skip
        return z, memory

    return scan_grid(step, key, score_fn, sde, shape, times=times, draws=2, denoise=denoise, **options)
