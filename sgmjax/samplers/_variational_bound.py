"""The variational bound of a score model: the likelihood-weighted loss, completed to nats of the data.

For the generative SDE (not its probability flow: the two have different likelihoods when the score is not exact)

    -log p(x_0) <= KL(q(z_1 | x_0) || prior) + int_t_min^1 E 1/2 |g^T (score - score of q(z_t | x_0))|^2 dt + R,

with q the kernel of hybrid score matching, which has integrated the auxiliaries out. The integral is the expected
likelihood-weighted loss, estimated with importance-sampled times; the first term has a closed form. R is what t_min > 0
leaves:

    truncation="ignore"   H(q(z_t_min | x_0)) - H(m_0): x_0 is taken for a draw at t_min, as by `samplers.likelihood`.
                          Then the bound is one of E log p_t_min(z_t_min) + H(m_0), z_t_min ~ q(. | x_0).
    truncation="bound"    -E log p(x_0 | z_t_min), the decoder a Gaussian about the unbiased linear estimate of x_0 of
                          smallest variance v: D/2 log(2 pi e v). A bound of a density at t = 0.

Both are the same as t_min -> 0. With the exact score and prior the bound is an equality for every x_0, since then the
generative SDE is the time reversal of the process.

Reference: Song et al. 2021b, theorem 3 and eq. (11), whose divergence and score terms are the kernel's entropy here;
Huang et al. 2021; Dockhorn et al. 2022, app. B.3 (the momentum's entropy).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Real

from sgmjax._inputs import InputError, check_network_range
from sgmjax._kinds import checked_score
from sgmjax._types import AnyArray, Data, Key, PerExample, Scalar, ScoreFn, State
from sgmjax.objectives._score_matching import score_matching_loss
from sgmjax.objectives.time_law import TimeLaw, at_least_float32, check_time_law, importance
from sgmjax.samplers._likelihood import Truncation, auxiliary_entropy, decoder_precision, kernel_entropy
from sgmjax.samplers.common import check_t_min
from sgmjax.sdes import SDE, linalg


class BoundInfo(NamedTuple):
    """Parts of the bound, (batch,) nats each: log p >= -(prior + diffusion + reconstruction).

    Attributes:
        prior: KL(q(z_1 | x_0) || prior).
        diffusion: estimate of the integral.
        reconstruction: R of the module's docstring.
    """

    prior: Any
    diffusion: Any
    reconstruction: Any


def variational_bound(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    x0: Data,
    *,
    draws: int = 16,
    t_min: Scalar = 1e-5,
    truncation: Truncation = "ignore",
    time_law: TimeLaw | None = None,
    noise: tuple[Real[AnyArray, "draws batch"], Real[AnyArray, "draws batch k *event"]] | None = None,
) -> tuple[PerExample, BoundInfo]:
    """An unbiased estimate of a lower bound of log p(x_0), in nats.

    Args:
        key: typed PRNG key.
        score_fn: score_fn(z, t) -> (batch, k, *event).
        sde: the process.
        x0: (batch, *event).
        draws: times and noises for each example, which are the evaluations of the score. The times are stratified: one
            uniform number, shifted by 1 / draws (Kingma et al. 2021, app. I.1).
        t_min: where the model ends, in (0, 1).
        truncation: see the module's docstring.
        time_law: how times are drawn, on [t_min, 1]; None: `importance` for the likelihood weighting, which needs an
            sde that is not traced.
        noise: (u, eps) to use in place of draws, (draws, batch) in [0, 1) and (draws, batch, k, *event).

    Returns:
        (batch,) lower bounds and a `BoundInfo`.

    Raises:
        ValueError: an unknown truncation, a t_min outside (0, 1), no draws, shapes that do not fit, auxiliaries that
            start from a point.

    Examples:
        >>> x0 = jnp.zeros((3, 2))
        >>> bound, info = samplers.variational_bound(jax.random.key(0), lambda z, t: -z, sdes.vp(), x0)
        >>> bound.shape, bool(jnp.allclose(-bound, info.prior + info.diffusion + info.reconstruction, atol=1e-4))
        ((3,), True)
    """
    score_fn = checked_score(score_fn)
    if truncation not in ("ignore", "bound"):
        raise InputError(f"truncation must be 'ignore' or 'bound', not {truncation!r}.")
    check_t_min(t_min, sde)
    check_network_range(x0)
    if draws < 1:
        raise InputError(f"draws = {draws}: at least 1.")
    x0, size = x0.astype(at_least_float32(x0.dtype)), math.prod(x0.shape[1:])
    auxiliary_entropy(sde, size)  # raises where there is none
    if time_law is None:
        if not linalg.is_concrete(sde, t_min):
            raise InputError("inside jit with a traced process give time_law=objectives.importance(sde, t_min=t_min).")
        with jax.ensure_compile_time_eval():
            time_law = importance(sde, t_min=float(t_min))
    check_time_law(time_law)
    batch, z0 = x0.shape[0], sde.augment(x0)
    if noise is None:
        time_key, noise_key = jax.random.split(key)
        first = jax.random.uniform(time_key, (batch,), x0.dtype)
        strata = jnp.arange(draws, dtype=x0.dtype) / draws
        u = (first[None] + strata[:, None]) % 1.0
        source = jnp.arange(draws)
    else:
        u, source = (jnp.asarray(v, x0.dtype) for v in noise)
        if u.shape[1:] != (batch,) or source.shape != (*u.shape, *z0.shape[1:]):
            raise InputError(f"noise has shapes {u.shape} and {source.shape}, expected (draws, batch[, k, *event]).")

    def eps_fn(z, t):
        kernel = sde.transition(t)
        return kernel.restrict(kernel.eps(score_fn(z, t)))

    def one(inputs):
        u, source = inputs
        t, weight = time_law.sample(u)
        eps = source
        if noise is None:
            eps = jax.random.normal(jax.random.fold_in(noise_key, source), z0.shape, z0.dtype)
        loss = score_matching_loss(eps_fn, sde, z0, t, eps, weighting="likelihood", reduce="half_sum")
        return weight * loss

    span = jnp.asarray(1.0 if time_law.integral else time_law.span, x0.dtype)  # from the mean over t to the integral
    diffusion = span * jnp.mean(jax.lax.map(one, (u, source)), axis=0)
    prior = prior_divergence(sde, z0)
    reconstruction = jnp.full((batch,), _remainder(sde, size, t_min, truncation, x0.dtype))
    return -(prior + diffusion + reconstruction), BoundInfo(prior, diffusion, reconstruction)


def prior_divergence(sde: SDE, z0: State) -> PerExample:
    """KL(q(z_1 | x_0) || prior) in nats, (batch,). z0: (batch, k, *event), the auxiliaries at their mean."""
    kernel = sde.transition(jnp.ones((1,), z0.dtype))
    prior = jnp.asarray(sde.prior_factor(), z0.dtype)[None]
    whiten = jnp.swapaxes(linalg.inverse_transpose(prior), 1, 2)
    size = z0[0, 0].size
    mean = linalg.apply(linalg.matmul(whiten, kernel.mean), z0)
    spread = jnp.sum(linalg.matmul(whiten, kernel.factor) ** 2)
    log_det = jnp.sum(jnp.log(jnp.diagonal(prior[0]))) - kernel.log_det_factor()[0]
    square = jnp.sum(mean**2, axis=tuple(range(1, z0.ndim)))
    return 0.5 * square + size * (0.5 * (spread - sde.k) + log_det)


def _remainder(sde: SDE, size: int, t_min, truncation: Truncation, dtype):
    """R of the module's docstring, a scalar."""
    if truncation == "ignore":
        return kernel_entropy(sde, size, t_min, dtype) - auxiliary_entropy(sde, size)
    precision = jnp.sum(decoder_precision(sde, t_min, dtype) ** 2)
    return 0.5 * size * (math.log(2 * math.pi * math.e) - jnp.log(precision))
