"""Exponential midpoint for the reverse SDE: weak order 2 at one score evaluation a step, for any linear process.

If the data were N(m, c), independent elements of known mean and variance, the reverse SDE would be linear, and its
transition from t down to s the Gaussian regression of z_s on z_t:

    z_s = Psi z_t + phi m + Lambda xi,                                                                            (1)
    Psi = S_s E^T S_t^-1,   phi = e_s - Psi e_t,   Lambda Lambda^T = S_s - Psi E S_s,   S = Sigma + c e e^T,

with e the first column of the kernel's mean matrix, Sigma its covariance (hybrid score matching) and E the forward mean
from s to t. For other data the m with the right score,

    score(z, t) = -S_t^-1 (z - e_t m(z, t)),                                                                      (2)

depends on z and t, but varies slowly: it is all that has to be discretised. (It is Tweedie's estimate of x_0 for c = 0.
For c = 1 and a process that starts in its stationary law, A of `samplers.sscs` is (1) with m = 0, and its S the rest.)
One step takes (1) to the middle of the step with the last step's m, evaluates the score there, and redoes the whole
step with the m found:

    z' = Psi_1 z_t + Lambda_1 xi_1,    m = m(z' + phi_1 m_last, middle),
    z_s = Psi_2 (z' + phi_1 m) + phi_2 m + Lambda_2 xi_2.

**Order.** Weak order 2, as measured on Gaussian data for every process. The reason: over a step h the noise W has
Cov[W(h), W(h/2)] = h / 2, and so m at the middle moves z_s as m along the whole step would, for which the integral of
W has the same covariance h^2 / 2 with W(h). The guess m_last is off by O(h^1/2), a random amount correlated with the
past that enters z_s with a factor h^2: O(h^3) in the covariance of one step. The first guess is zero, once. On Gaussian
data of standard deviation data_std m is constant, and any grid is exact whatever the mean.

**Which score is needed.** (2) has one unknown, m, and an equation for each variable. Those of the variables that
receive noise, in the whitened coordinates of S, where they are closed, are solved by least squares: any r >= 1 will do.

All coefficients come from the host in float64, from a QR decomposition of the joint factor of (z_t, z_s), which is
Kalman smoothing in square-root form: nothing is subtracted.

Reference: not a published scheme. Its parts are: exponential integrators for SDEs (Lu et al. 2022, SDE-DPM-Solver++;
Gonzalez et al. 2023, SEEDS), the Gaussian preconditioning of the score (Karras et al. 2022; Dockhorn et al. 2022), the
symmetric splitting with noise on both sides (Dockhorn et al. 2022).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Key, Samples, ScoreFn, Shape, State, States, TimeGrid
from sgmjax.samplers import linear_flow
from sgmjax.samplers.common import (
    Denoise,
    SampleInfo,
    batch_time,
    check_end,
    check_grid_of,
    check_times,
    scan_grid,
    steps_of,
)
from sgmjax.samplers.declaration import on_grid
from sgmjax.score import agreed
from sgmjax.sdes import SDE, linalg


class MidpointCoefficients(NamedTuple):
    """What a step needs, for all steps (n, ...), float64 numpy, in the state's own coordinates.

    Attributes:
        middle: the time of the evaluation, (n,).
        mean_1, factor_1: Psi_1 and Lambda_1, (n, k, k). guess: phi_1, (n, k, 1).
        from_state, from_score: m = from_state z + from_score score at the middle, (n, 1, k).
        mean_2, factor_2: Psi_2 and Lambda_2, (n, k, k). forcing: Psi_2 phi_1 + phi_2, (n, k, 1).
        times: where each step starts and ends, (n, 2).
    """

    middle: Any
    mean_1: Any
    factor_1: Any
    guess: Any
    from_state: Any
    from_score: Any
    mean_2: Any
    factor_2: Any
    forcing: Any
    times: Any


def midpoint_coefficients(sde: SDE, times: TimeGrid, *, data_std: float = 0.3) -> MidpointCoefficients:
    """What `exponential_midpoint` computes on the host before it samples.

    Args:
        sde: the process, not traced.
        times: the grid of the sampler, ending above 0.
        data_std: as `exponential_midpoint`.

    Raises:
        ValueError: see `exponential_midpoint`.

    Examples:
        >>> coefficients = samplers.midpoint_coefficients(sdes.psld(), samplers.time_grid("quadratic", 5))
        >>> coefficients.middle.shape, coefficients.mean_1.shape  # (steps,) and (steps, k, k)
        ((4,), (4, 2, 2))
    """
    if not (linalg.is_concrete(data_std) and np.isfinite(data_std) and data_std >= 0):
        raise InputError(f"data_std = {data_std}: must be a finite number >= 0, known before compilation.")
    times = check_times(times)
    check_end(times[-1], sde, in_log_t=True)
    if not linalg.is_concrete(sde):
        raise InputError(
            "the process is traced (an argument of jit): compute samplers.midpoint_coefficients(sde, times, ...) "
            "outside and pass it as coefficients=."
        )
    process = linear_flow.float64_process(sde)
    T = np.eye(sde.k) if sde.frame is None else np.asarray(process.frame)
    middle = 0.5 * (times[:-1] + times[1:])
    ends, halves = linear_flow.evaluate(process, times), linear_flow.evaluate(process, middle)
    e, e_middle = ends.data_mean, halves.data_mean
    K, K_middle = (_joint(at.factor, data_std * at.data_mean[..., None]) for at in (ends, halves))

    mean_1, guess, factor_1 = _regression(process, middle, times[:-1], K_middle, e_middle, e[:-1])
    mean_2, phi_2, factor_2 = _regression(process, times[1:], middle, K[1:], e[1:], e_middle)
    whitened = halves._replace(factor=K_middle, inverse=linear_flow.inverse_lower(K_middle))
    from_state, from_score = linear_flow.data_matrices(process, whitened)
    return MidpointCoefficients(
        middle=middle,
        mean_1=T.T @ mean_1 @ T,
        factor_1=T.T @ factor_1,
        guess=T.T @ guess,
        from_state=from_state @ T,
        from_score=from_score @ T,
        mean_2=T.T @ mean_2 @ T,
        factor_2=T.T @ factor_2,
        forcing=T.T @ (mean_2 @ guess + phi_2),
        times=steps_of(times),
    )


def _joint(*columns: np.ndarray) -> np.ndarray:
    """Triangular factor of the sum of the covariances of factors (n, k, m)."""
    return linalg.triangular_on_host(np.concatenate(columns, axis=-1))


def _regression(sde: SDE, s, t, K_s, e_s, e_t) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Psi (n, k, k), phi (n, k, 1) and Lambda (n, k, k) of (1), in the frame, with S_s = K_s K_s^T."""
    E, noise = linear_flow.forward(sde, s, t)
    k = sde.k
    # (z_t, z_s) = [E K_s, noise; K_s, 0] (independent normals)
    rows = np.concatenate([E @ K_s, noise], axis=-1), np.concatenate([K_s, np.zeros_like(K_s)], axis=-1)
    factor = linalg.triangular_on_host(np.concatenate(rows, axis=-2))
    mean = factor[:, k:, :k] @ linear_flow.inverse_lower(factor[:, :k, :k])
    return mean, e_s[..., None] - mean @ e_t[..., None], factor[:, k:, k:]


@on_grid()
def exponential_midpoint(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    data_std: float = 0.3,
    coefficients: MidpointCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by the exponential midpoint rule on a fixed grid; one evaluation a step.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times ends above 0. The score is asked for at the middles of
            the steps, never at times[-1] (unless to denoise): denoise=False and one step more is often the better use
            of an evaluation.
        data_std: sqrt(c). Between the spread of all the data, right where t is large, and that of the data near one
            point, right where it is small; well above the latter a few long steps overshoot. The order is two with any.
            0.3 was a good choice for few steps on a ring of eight Gaussians of standard deviation 0.17 (1.07 together);
            0 holds Tweedie's estimate of x_0 fixed.
        coefficients: from `midpoint_coefficients` with this process, grid and data_std; None computes them. They must
            be given where the process is an argument of jit; data_std is then not read.
        options: as `em`; `noise` has two draws a step.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Raises:
        ValueError: for a data_std that is negative; a grid that reaches 0; a traced process without `coefficients`, or
            `coefficients` of another grid.

    Examples:
        >>> sde = sdes.psld()
        >>> times = samplers.time_grid("quadratic", 5, denoise=False)
        >>> samples, info = samplers.exponential_midpoint(
        ...     jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times, denoise=False)
        >>> samples.shape, info.nfe
        ((3, 2), 5)
    """
    if coefficients is None:
        coefficients = midpoint_coefficients(sde, times, data_std=data_std)
    times = check_times(times)
    check_end(times[-1], sde, in_log_t=True)
    steps = len(times) - 1
    if np.shape(coefficients.mean_1) != (steps, sde.k, sde.k):
        raise InputError(f"coefficients belong to another grid: expected {steps} steps, {sde.k} variables.")
    check_grid_of(coefficients.times, times)

    score_fn = agreed(score_fn, sde)

    def step(z, memory, node):
        return midpoint_step(score_fn, z, memory, node.noises, node.extra)

    return scan_grid(
        step, key, score_fn, sde, shape, times=times, draws=2, denoise=denoise,
        memory=lambda z: jnp.zeros_like(z[:, :1]), per_step=jax.tree.map(jnp.asarray, coefficients), **options,
    )  # fmt: skip


def midpoint_step(
    score_fn: ScoreFn,
    z: State,
    last: Float[AnyArray, "batch 1 *event"],
    noises: Float[AnyArray, "draws batch k *event"],
    step: MidpointCoefficients,
) -> tuple[States, Float[jax.Array, "batch 1 *event"]]:
    """One step. z: (batch, k, *event), last: m of the last step (batch, 1, *event), noises: (2, batch, k, *event).

    Returns:
        z_s and its m.
    """
    step = jax.tree.map(lambda v: jnp.asarray(v, z.dtype), step)
    half = linalg.apply(step.mean_1, z) + linalg.apply(step.factor_1, noises[0])
    guessed = half + linalg.apply(step.guess, last)
    score = score_fn(guessed, batch_time(step.middle, z))
    m = linalg.apply(step.from_state, guessed) + linalg.apply(step.from_score, score)
    moved = linalg.apply(step.mean_2, half) + linalg.apply(step.forcing, m)
    return moved + linalg.apply(step.factor_2, noises[1]), m
