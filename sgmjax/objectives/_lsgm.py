"""LSGM's objectives: a VAE and a score-based prior in its latent space, trained together; any linear process.

The VAE's bound needs the cross entropy of its posterior q(z_0 | x) with the prior p(z_0). With u_0 = (z_0, m_0) the
latent and the process's auxiliaries (none for k = 1), the kernel q(u_t | z_0) of hybrid score matching and the prior's
score s,

    CE(q(z_0 | x) || p) <= E_{t, u_t} 1/2 |g^T (s(u_t, t) - grad log q(u_t | z_0))|^2     the diffusion, t in [t_min, 1]
                           + KL(q(u_1 | z_0) || N(0, Sigma_prior))                        left out by LSGM, nearly zero
                           + H(q(u_t_min | z_0)) - H(m_0),                                a constant

in nats, an equality for k = 1 and the exact score (docs/latent_prior.md derives it). It is taken for each latent
variable by itself, since KL balancing and the VAE's group-wise report need that. The prior is trained with that
integrand or with another weighting of `objectives.weighting`.

The three algorithms of the paper differ in the times:

    Algorithm 1   p in an "ll" mode, q="reweight_p_samples": one objective for both
    Algorithm 2   q a `WeightedLaw` of its own: separate times, two evaluations of the network
    Algorithm 3   p in another mode, q="reweight_p_samples": the times of p, reweighted to the cross entropy for q

Reference: Vahdat et al. 2021, theorem 1, eqs. (7)-(10), algorithms 1 to 3 (app. D).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sgmjax._inputs import InputError
from sgmjax._kinds import check_eps
from sgmjax._types import Data, DType, Key, PyTree, Samples, Scalar, State
from sgmjax.objectives.time_law import TimeDraw, WeightedLaw, at_least_float32
from sgmjax.objectives.weighting import Options, weighted_square
from sgmjax.sdes import SDE, linalg

PriorFn = Callable[..., Any]  # (params, z, t) -> eps (batch, r, *event)


class LSGMLosses(NamedTuple):
    """What `lsgm` returns.

    Attributes:
        p_objective: (batch,), minimised by the prior; no gradient reaches the latents through it.
        cross_entropy: (batch, *event) nats, minimised (with the VAE's own terms) by the VAE; no gradient reaches the
            prior's parameters through it. None if q is None.
        t_p, t_q: (batch,) times drawn.
    """

    p_objective: Any
    cross_entropy: Any
    t_p: Any
    t_q: Any


def lsgm(
    key: Key,
    eps_fn: PriorFn,
    params: PyTree,
    sde: SDE,
    z0: Data,
    *,
    p: WeightedLaw,
    q: WeightedLaw | Literal["reweight_p_samples"] | None = "reweight_p_samples",
    q_params: PyTree = None,
    shared_noise: bool = False,
    terminal: bool = True,
) -> LSGMLosses:
    """Algorithms 1, 2 and 3: the prior's objective and the cross entropy for the VAE, at drawn times and noises.

    One gradient of mean(p_objective) + (the VAE's loss, made of cross_entropy) with respect to both sets of parameters
    gives each its own: see `LSGMLosses`. Algorithms 1 and 3 evaluate the network once.

    Args:
        key: typed PRNG key.
        eps_fn: eps_fn(params, z, t) -> (batch, r, *event), the prior's prediction (with its learned mixed score).
        params: the prior's parameters.
        sde: the process.
        z0: (batch, *event) latents, a function of the VAE's parameters.
        p: weighting and times of the prior's objective.
        q: times of the VAE's cross entropy (their weighting is ll, whatever they say), "reweight_p_samples", or None
            for a VAE that is frozen.
        q_params: parameters under which the VAE sees the prior, such as their moving average; None: `params`. Given,
            the network is evaluated twice.
        shared_noise: p and q, at times of their own, see the same noise, as in the official joint training.
        terminal: include KL(q(u_1 | z_0) || prior), which the official code leaves out.

    Raises:
        ValueError: an unknown q, auxiliaries that start from a point, or an eps_fn that returns another shape.

    Examples:
        >>> sde, z0 = sdes.vp(), jnp.zeros((2, 4, 4, 3))  # latents of a VAE
        >>> eps_fn = lambda params, z, t: params["scale"] * score.normal_eps(sde)(z, t)
        >>> p = objectives.lsgm_mode(sde, "ll_iw")
        >>> losses = objectives.lsgm(jax.random.key(0), eps_fn, {"scale": 1.0}, sde, z0, p=p)
        >>> losses.p_objective.shape, losses.cross_entropy.shape
        ((2,), (2, 4, 4, 3))
    """
    p_key, q_key, noise_key, q_noise_key = jax.random.split(key, 4)
    batch, z0 = z0.shape[0], z0.astype(at_least_float32(z0.dtype))
    shape = (batch, sde.k, *z0.shape[1:])
    p_draw = p.sample(jax.random.uniform(p_key, (batch,), z0.dtype))
    p_noise = jax.random.normal(noise_key, shape, z0.dtype)
    q_draw, q_noise = None, p_noise
    if isinstance(q, WeightedLaw):
        q_draw = q.sample(jax.random.uniform(q_key, (batch,), z0.dtype))
        if not shared_noise:
            q_noise = jax.random.normal(q_noise_key, shape, z0.dtype)
    elif q is not None and q != "reweight_p_samples":
        raise InputError(f"q must be a weighted law of times (lsgm_mode), 'reweight_p_samples' or None, not {q!r}.")
    losses = lsgm_losses(
        eps_fn, params, sde, z0, p_draw, p_noise, q_draw, q_noise, weighting=p.weighting, q_params=q_params,
        official=p.official, cross_entropy=q is not None,
    )  # fmt: skip
    if losses.cross_entropy is None:
        return losses
    t_min = q.t_min if isinstance(q, WeightedLaw) else p.t_min
    rest = cross_entropy_constant(sde, t_min, z0.dtype)
    if terminal:
        rest = rest + terminal_divergence(sde, z0)
    return losses._replace(cross_entropy=losses.cross_entropy + rest)


def lsgm_losses(
    eps_fn: PriorFn,
    params: PyTree,
    sde: SDE,
    z0: Data,
    p_draw: TimeDraw,
    p_noise: State,
    q_draw: TimeDraw | None = None,
    q_noise: State | None = None,
    *,
    weighting: str,
    q_params: PyTree = None,
    official: bool = False,
    cross_entropy: bool = True,
) -> LSGMLosses:
    """The deterministic part of `lsgm`: objectives for given times and noises, the cross entropy without its constants.

    Args:
        eps_fn, params, sde, z0, q_params: see `lsgm`.
        p_draw: times of p with one over their density, and noise p_noise (batch, k, *event).
        q_draw, q_noise: the same of q; None: those of p.
        weighting, official: of p, see `weighted_square`.
        cross_entropy: False leaves q out.

    Examples:
        >>> sde, z0, noise = sdes.vp(), jnp.zeros((1, 3)), jnp.ones((1, 1, 3))
        >>> draw = objectives.TimeDraw(t=jnp.full(1, 0.5), weight=jnp.ones(1))
        >>> eps_fn = lambda params, z, t: jnp.zeros_like(z)
        >>> losses = objectives.lsgm_losses(eps_fn, {}, sde, z0, draw, noise, weighting="drop_all")
        >>> losses.p_objective.tolist()  # |noise|^2
        [3.0]
    """

    def residual(z0, noise, t, predict):
        z_t = sde.transition(t).perturb(sde.augment(z0), noise)
        predicted = predict(z_t)
        for eps in predicted:
            check_eps(eps, z_t, sde.num_noised)
        return tuple(eps - sde.restrict(noise) for eps in predicted)

    t, weight = p_draw
    if cross_entropy and q_draw is None and q_params is None:  # algorithms 1 and 3
        p_error, q_error = residual(z0, p_noise, t, lambda z: _once_for_both(eps_fn, params, z, t))
        q_t, q_weight = t, weight
    else:
        fixed = jax.lax.stop_gradient(z0)
        (p_error,) = residual(fixed, p_noise, t, lambda z: (eps_fn(params, z, t),))
        q_error, (q_t, q_weight) = None, p_draw if q_draw is None else q_draw
        if cross_entropy:
            seen = jax.lax.stop_gradient(params if q_params is None else q_params)
            noise = p_noise if q_draw is None else q_noise
            (q_error,) = residual(z0, noise, q_t, lambda z: (eps_fn(seen, z, q_t),))

    objective = weighted_square(sde, t, p_error, weighting, Options(official=official))
    p_objective = weight * jnp.sum(objective.reshape(objective.shape[0], -1), axis=1)
    if q_error is None:
        return LSGMLosses(p_objective, None, t, None)
    diffusion = weighted_square(sde, q_t, q_error, "ll")
    return LSGMLosses(p_objective, linalg.expand_to(q_weight, diffusion.ndim) * diffusion, t, q_t)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _once_for_both(eps_fn: PriorFn, params, z, t):
    """eps_fn(params, stop(z), t) and eps_fn(stop(params), z, t) by one evaluation.

    Two calls would leave it to the compiler to find that they are the same; rematerialised blocks, for one, hide it.
    """
    eps = eps_fn(params, z, t)
    return eps, eps


def _once_forward(eps_fn, params, z, t):
    eps, pull = jax.vjp(lambda params, z: eps_fn(params, z, t), params, z)
    return (eps, eps), (pull, t)


def _once_backward(eps_fn, kept, cotangents):
    pull, t = kept
    for_params, for_latents = cotangents
    return pull(for_params)[0], pull(for_latents)[1], jnp.zeros_like(t)


_once_for_both.defvjp(_once_forward, _once_backward)


def cross_entropy_constant(sde: SDE, t_min: Scalar, dtype: DType = jnp.float32) -> Float[jax.Array, ""]:
    """H(q(u_t_min | z_0)) - H(m_0) for one latent variable, in nats, a scalar. k = 1: log(2 pi e sigma_t_min^2) / 2.

    Raises:
        ValueError: auxiliaries that start from a point: they have no entropy.

    Examples:
        >>> sde = sdes.ve(sigma_min=0.01, sigma_max=100.0)
        >>> round(float(objectives.cross_entropy_constant(sde, 0.5)), 3)  # sigma = 1: log(2 pi e) / 2
        1.419
    """
    kernel = sde.transition(jnp.full((1,), t_min, dtype))
    constant = 0.5 * math.log(2 * math.pi * math.e) + kernel.log_det_factor()[0]
    if sde.k == 1:
        return constant
    auxiliary: Any = sde.initial_factor()
    auxiliary = auxiliary[1:, 1:]
    if linalg.is_concrete(auxiliary) and not (np.diagonal(np.asarray(auxiliary)) > 0).all():
        raise InputError("the auxiliary variables start from a point (Sigma_0 is singular): they have no entropy.")
    return constant - jnp.sum(jnp.log(jnp.diagonal(jnp.asarray(auxiliary, dtype))))


def terminal_divergence(sde: SDE, z0: Data) -> Samples:
    """KL(q(u_1 | z_0) || prior) for each latent variable, in nats. (batch, *event) -> (batch, *event).

    Examples:
        >>> sde = sdes.ve(sigma_min=0.01, sigma_max=100.0)
        >>> kl = objectives.terminal_divergence(sde, jnp.array([[0.0, 100.0]]))  # z_0^2 / (2 sigma_max^2)
        >>> [round(float(x), 3) for x in kl[0]]
        [0.0, 0.5]
    """
    z0 = z0.astype(at_least_float32(z0.dtype))
    kernel = sde.transition(jnp.ones((1,), z0.dtype))
    prior = jnp.asarray(sde.prior_factor(), z0.dtype)[None]
    whiten = jnp.swapaxes(linalg.inverse_transpose(prior), 1, 2)
    mean = linalg.matmul(whiten, kernel.mean)[:, :, :1]  # of the data variable: the auxiliaries' mean is zero
    spread = jnp.sum(linalg.matmul(whiten, kernel.factor) ** 2)
    log_det = jnp.sum(jnp.log(jnp.diagonal(prior[0]))) - kernel.log_det_factor()[0]
    return 0.5 * jnp.sum(mean**2) * z0**2 + 0.5 * (spread - sde.k) + log_det
