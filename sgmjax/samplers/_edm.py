"""EDM: Heun's method in the noise level, with churn, for processes of one variable.

Karras et al. 2022 write every k = 1 process in the scaled variable x = z / m(t) and the noise level sigma(t) = std / m,
where m and std are the kernel's mean and standard deviation. There all processes are one: x is x_0 plus noise of size
sigma, the probability flow is dx/dsigma = (x - D(x; sigma)) / sigma with the denoiser D (eqs. (1), (3), (4)), and what
is left of the process is the map from sigma to the time the network is told.

Reference: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", alg. 1 and 2.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from sgmjax._inputs import InputError
from sgmjax._types import DType, Key, Samples, Scalar, ScoreFn, Shape, State, States, TimeGrid
from sgmjax.samplers.common import Denoise, SampleInfo, batch_time, check_known, check_times, scan_grid
from sgmjax.samplers.declaration import on_grid
from sgmjax.sdes import SDE, noise_level, time_at_noise_level


class Levels(NamedTuple):
    """What the algorithm knows of its steps, an array (steps,) each.

    Attributes:
        sigma, sigma_hat, sigma_next: noise level where the step starts, after the churn, and where it ends.
        t_hat: the time at which the process has level sigma_hat.
        m, m_hat, m_next: the kernel's mean at the three levels.
    """

    sigma: Any
    sigma_hat: Any
    sigma_next: Any
    t_hat: Any
    m: Any
    m_hat: Any
    m_next: Any


def levels(
    sde: SDE, times: TimeGrid, *, S_churn: float, S_min: float, S_max: float, num_steps: int, dtype: DType = jnp.float32
) -> Levels:
    """Alg. 2, line 5, for all steps of a grid. The parameters of the process may be traced."""
    t = jnp.asarray(times, dtype)
    sigma, m = noise_level(sde, t), sde.transition(t).mean[:, 0, 0]
    t_hat, sigma_hat, m_hat = t[:-1], sigma[:-1], m[:-1]
    if S_churn > 0:
        gamma = min(S_churn / num_steps, math.sqrt(2) - 1)
        churned = (sigma_hat >= S_min) & (sigma_hat <= S_max)
        higher = time_at_noise_level(sde, (1 + gamma) * sigma_hat)  # at most 1, where the process ends
        t_hat = jnp.where(churned, jnp.maximum(higher, t_hat), t_hat)
        sigma_hat = jnp.maximum(noise_level(sde, t_hat), sigma_hat)  # of the rounded time
        m_hat = sde.transition(t_hat).mean[:, 0, 0]
    return Levels(sigma[:-1], sigma_hat, sigma[1:], t_hat, m[:-1], m_hat, m[1:])


def edm_step(
    score_fn: ScoreFn, z: State, s: Scalar, level: Levels, noise: State | None, *, S_noise: float, second_order: bool
) -> States:
    """Alg. 2, lines 4 to 11: one step to the time s. z: (batch, 1, *event), noise: the same or None, level: scalars."""

    def slope(x, t, sigma, m):
        """d = (x - D(x; sigma)) / sigma with D(x; sigma) = x + sigma^2 m score, which is eq. (3)."""
        return -sigma * m * score_fn(m * x, batch_time(t, z))

    x_hat = z / level.m
    if noise is not None:
        x_hat = x_hat + jnp.sqrt((level.sigma_hat + level.sigma) * (level.sigma_hat - level.sigma)) * S_noise * noise
    step = level.sigma_next - level.sigma_hat
    d = slope(x_hat, level.t_hat, level.sigma_hat, level.m_hat)
    x = x_hat + step * d
    if second_order:
        d_prime = slope(x, s, level.sigma_next, level.m_next)
        x = x_hat + step * (0.5 * d + 0.5 * d_prime)
    return level.m_next * x


@on_grid(
    lambda settings: 2 if settings["second_order"] else 1,
    divisible=lambda settings: settings["S_churn"] == 0,  # which is of all steps together
)
def edm(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    second_order: bool = True,
    denoise: Denoise = "tweedie",
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by algorithm 2 of Karras et al. 2022 (algorithm 1 without churn).

    The paper's N steps are the N - 1 of a grid of N times and the last one to sigma = 0: an Euler step, and so the
    denoiser D itself, which is the "tweedie" denoising step. Their grid is `time_grid("rho", N, t_min=..., sde=sde)`,
    for 2 N - 1 evaluations, or `time_grid("rho", nfe, t_min=..., sde=sde, evaluations=2)` for a budget of them.

    Two things differ from the paper. A process ends at t = 1, so churn never raises the level beyond that of t = 1 (no
    churn in a first step that starts there). And the last step is never churned, as with every published S_min.

    Args:
        key, score_fn, shape, times: as `em`.
        sde: a process of one variable: VP, sub-VP, VE.
        S_churn: noise put in, over all steps; 0: deterministic.
        S_min, S_max: the noise levels, in units of the data, between which it is put in.
        S_noise: standard deviation of what is put in, slightly above 1 to make up for what networks take away.
        second_order: Heun's correction; False: Euler, which without churn is DDIM.
        denoise: True and "tweedie" are the paper's last step; see `common.denoise_step` for the others.
        options: as `em`; `noise` has one draw a step, none without churn.

    Returns:
        samples (batch, *event) and a `SampleInfo`: two evaluations a step (one to first order), and the last.

    Raises:
        ValueError: for a process of several variables, and values that cannot be.

    Examples:
        >>> sde = sdes.ve(sigma_min=0.002, sigma_max=80.0)
        >>> times = samplers.time_grid("rho", 4, sde=sde)  # four times: three steps, and the one to sigma = 0
        >>> samples, info = samplers.edm(jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times)
        >>> samples.shape, info.nfe
        ((3, 2), 7)
    """
    if sde.k != 1:
        raise InputError(
            f"edm is written for processes of one variable (vp, subvp, ve), this one has {sde.k}: use sscs, gddim or "
            "ode with solver='Heun', on a 'rho' grid if you like."
        )
    check_known(S_churn=S_churn, S_min=S_min, S_max=S_max, S_noise=S_noise)
    if not (S_churn >= 0 and S_noise > 0 and 0 <= S_min <= S_max):
        raise InputError(
            f"S_churn = {S_churn:g}, S_min = {S_min:g}, S_max = {S_max:g}, S_noise = {S_noise:g}: "
            "edm needs S_churn >= 0, 0 <= S_min <= S_max and S_noise > 0."
        )
    times = check_times(times)
    denoise = "tweedie" if denoise is True else denoise
    num_steps = len(times) - 1 + bool(denoise)
    dtype = options.get("dtype", jnp.float32)
    schedule = levels(sde, times, S_churn=S_churn, S_min=S_min, S_max=S_max, num_steps=num_steps, dtype=dtype)

    def step(z, memory, node):
        noise = node.noises[0] if S_churn > 0 else None
        z = edm_step(score_fn, z, node.s, node.extra, noise, S_noise=S_noise, second_order=second_order)
        return z, memory

    return scan_grid(
        step, key, score_fn, sde, shape, times=times, draws=int(S_churn > 0), denoise=denoise,
        evaluations=2 if second_order else 1, score_at_end=second_order, per_step=schedule, **options,
    )  # fmt: skip
