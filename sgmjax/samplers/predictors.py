"""Predictors of predictor-corrector sampling: steps of the reverse process from t down to s, for any linear process.

Every one knows the forward process between two grid times by a Gaussian kernel z_t = E z_s + L eps:

    reverse diffusion   z_s = (2 - E) z_t + L^2 score + L eps, k = 1        (eq. 46)
    Euler-Maruyama      z_s = (2 I - E) z_t + L L^T score + L eps, E = I + f dt, L = g sqrt(dt)
    ancestral           z_s = E^-1 (z_t + L L^T score) + R eps              (eqs. 4 and 47)

Reverse diffusion discretises the reverse process as the forward one is discretised: as published, the increment of an
exact transition is taken back with the opposite sign. In phase space that fails (noise reaches x through the momentum,
backwards in time with the opposite sign; measured for third order at 20 steps: variances 10^6 times too large). There
the reverse of a recipe is a recipe, and its own exact transition is taken, with the rest of the score's push held:

    reverse diffusion   z_s = E' z_t + W (score + P z_t) + L' eps, k > 1,   W = int_s^t E'(u -> s) g g^T du

with E', L' and P of `SDE.reverse_linear`. The ancestral mean is Tweedie's formula for z_s, exact for every z_t, and
R R^T = Cov[z_s | z_t, z_0]. That formula wants the score of every variable, so the predictor exists where all are
noised: VP, sub-VP, VE, PSLD with two frictions; not CLD, third order.

Each step gives z_s and its mean given z_t. `predictor_corrector.pc` takes them in turn with a corrector.

Reference: Song et al. 2021, sec. 4.2 and app. E, G.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sgmjax._types import AnyArray, Matrices, Scalar, ScoreFn, State, Times
from sgmjax.samplers.common import batch_time
from sgmjax.sdes import SDE, VE, Kernel, Recipe, SubVP, linalg

Predictor = Literal["reverse_diffusion", "ancestral", "em", "none"]
Variance = Literal["lower", "upper"]


def reverse_diffusion_step(
    score_fn: ScoreFn,
    sde: SDE,
    z: State,
    t: Scalar,
    s: Scalar,
    noise: State | None,
    *,
    kernel: Kernel | None = None,
    probability_flow: bool = False,
) -> tuple[State, State]:
    """The reverse process discretised as the forward one; see the module's docstring. Weak order 1.

    Reference: Song et al. 2021, eq. (46); for k > 1 our own.

    Args:
        z, noise: (batch, k, *event). t, s: scalars, from t down to s.
        kernel: z_t given z_s, of a batch of one, whose increment is to be taken back: `euler_kernel` makes this
            Euler-Maruyama, `discrete_step` score_sde's update. None: the exact transition.
        probability_flow: half the score and no noise.

    Returns:
        z_s and its mean given z_t.
    """
    score = (0.5 if probability_flow else 1.0) * score_fn(z, batch_time(t, z))
    if kernel is None and sde.k > 1:
        kernel, strength = sde.reverse_linear(one_time(t, z), one_time(s, z)), _push(sde, z, t, s)
        precision = jnp.asarray(sde.split_precision(), z.dtype)
        mean = linalg.apply(kernel.mean, z) + linalg.apply(strength, score + linalg.apply(precision, z))
    else:
        kernel = kernel_between(sde, z, t, s) if kernel is None else kernel
        mean = 2 * z - linalg.apply(kernel.mean, z) + linalg.apply(kernel.covariance, score)
    if probability_flow:
        return mean, mean
    assert noise is not None
    return mean + linalg.apply(kernel.factor, noise), mean


def _push(sde: SDE, z, t, s):
    """W, the integral from s to t of E'(u -> s) g(u) g(u)^T du, (1, k, k), by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    u = s + (t - s) * jnp.asarray((nodes + 1) / 2, z.dtype)
    each = linalg.matmul(sde.reverse_linear(u, jnp.full_like(u, s)).mean, sde.diffusion_squared(u))
    return (t - s) * jnp.sum(linalg.expand_to(jnp.asarray(weights / 2, z.dtype), 3) * each, axis=0, keepdims=True)


def ancestral_step(
    score_fn: ScoreFn,
    sde: SDE,
    z: State,
    t: Scalar,
    s: Scalar,
    noise: State,
    *,
    variance: Variance = "lower",
    kernel: Kernel | None = None,
    factor: Float[AnyArray, "1 k k"] | None = None,
) -> tuple[State, State]:
    """A draw from the Gaussian posterior of z_s given z_t and the z_0 that Tweedie's formula makes of z_t.

    The mean, E^-1 (z_t + L L^T score), is E[z_s | z_t] itself. Weak order 1.

    Reference: Song et al. 2021, eqs. (4) (VP) and (47) (VE); Ho et al. 2020, sec. 3.2.

    Args:
        z, t, s, noise, kernel: as `reverse_diffusion_step`.
        variance: DDPM's two choices. "lower": Cov[z_s | z_t, z_0], right for data that are a point. "upper": that of
            data distributed as the prior.
        factor: R, (1, k, k), in place of the one that `variance` asks for.

    Returns:
        z_s and its mean given z_t.
    """
    kernel = kernel_between(sde, z, t, s) if kernel is None else kernel
    mean = z + linalg.apply(kernel.covariance, score_fn(z, batch_time(t, z)))
    mean = linalg.apply(1 / kernel.mean if sde.k == 1 else jnp.linalg.inv(kernel.mean), mean)
    if factor is None and variance == "lower":
        factor = posterior_factor(kernel, sde.transition(one_time(s, z), "hsm").factor)
    elif factor is None:
        factor = sde.reverse_linear(one_time(t, z), one_time(s, z)).factor
    return mean + linalg.apply(factor, noise), mean


def euler_kernel(sde: SDE, t: Times, dt: Times) -> Kernel:
    """One Euler-Maruyama step of the forward process: E = I + f(t) dt, L = g(t) sqrt(dt). t, dt (batch,)."""
    identity = jnp.asarray(np.eye(sde.k)[None], t.dtype)
    mean = identity + linalg.expand_to(dt, 3) * sde.drift_matrix(t)
    # the factor is not triangular in the frame; only `factor` and `covariance` are asked of this kernel
    return Kernel(mean=mean, inner=linalg.expand_to(jnp.sqrt(dt), 3) * sde.diffusion(t), num_noised=sde.num_noised)


def discrete_step(sde: SDE, t: Times, level: Int[AnyArray, " batch"], num_scales: int) -> tuple[Kernel, Any, Any]:
    """The step of the discrete forward process of score_sde with `num_scales` levels, k = 1.

    VP is DDPM's x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z, beta_i = beta(i / (N - 1)) / N; VE is SMLD's x_i =
    x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z, sigma_{-1} = 0; any other takes an Euler step of 1 / N at t.

    Args:
        t: (batch,) time. level: (batch,) integers i in [0, N).

    Returns:
        The kernel; the factor R of the ancestral predictor, sqrt(beta_i) for VP, the posterior's for VE, None for
        others, which have no such predictor there; and alpha of the correctors, 1 - beta_i, 1 for VE.
    """
    tau = level.astype(t.dtype) / (num_scales - 1)
    if isinstance(sde, VE):
        sigma, below = sde.sigma(tau), jnp.where(level == 0, 0.0, sde.sigma(tau - 1 / (num_scales - 1)))
        kernel = _scalar(jnp.ones_like(sigma), jnp.sqrt((sigma - below) * (sigma + below)))
        return kernel, posterior_factor(kernel, below[:, None, None]), 1.0
    assert isinstance(sde, (Recipe, SubVP))
    beta = sde.schedule.beta(tau) / num_scales
    if is_vp(sde):
        kernel = _scalar(jnp.sqrt(1 - beta), jnp.sqrt(beta))
        return kernel, kernel.factor, 1 - beta
    return euler_kernel(sde, t, jnp.full_like(t, 1 / num_scales)), None, 1 - beta


def is_vp(sde: SDE) -> bool:
    return isinstance(sde, Recipe) and sde.name == "vp"


def _scalar(mean, std) -> Kernel:
    return Kernel(mean=mean[:, None, None], inner=std[:, None, None], num_noised=1)


def one_time(t: Scalar, z: AnyArray) -> Float[jax.Array, " 1"]:
    """A scalar time as a batch of one: one matrix serves the whole batch."""
    return jnp.reshape(jnp.asarray(t, z.dtype), (1,))


def kernel_between(sde: SDE, z: AnyArray, t: Scalar, s: Scalar) -> Kernel:
    return sde.transition_between(one_time(s, z), one_time(t, z))


def posterior_factor(kernel: Kernel, start: Matrices) -> Matrices:
    """R with R R^T = Cov[z_s | z_t] when z_s has covariance start start^T and z_t = E z_s + L eps. (1, k, k) each.

    The lower right block of the triangular factor of [z_t; z_s], which subtracts no covariances.
    """
    k = start.shape[-1]
    above = jnp.concatenate([linalg.matmul(kernel.mean, start), kernel.factor], axis=-1)
    below = jnp.concatenate([start, jnp.zeros_like(start)], axis=-1)
    return linalg.triangular_factor(jnp.concatenate([above, below], axis=-2))[:, k:, k:]
