"""Denoising and hybrid score matching, for every linear process, with the weightings of the papers.

With z_t = E z_0 + L eps and a prediction eps_hat of the noised variables' eps, every published loss is a weighted
square of eps_hat - eps:

    simple        |eps_hat - eps|^2                                  score_sde default; PSLD "fid"; CLD "reweightedv2"
    reweightedv1  sum_i g_ii^2 (eps_hat - eps)_i^2                    CLD "reweightedv1"
    likelihood    |g(t)^T (score_hat - score)|^2, score = -L^-T eps   maximum likelihood (Song et al. 2021b); PSLD "nll"
    annealed      sigma(t)^p |score_hat - score|^2, p = anneal_power  NCSN, NCSNv2; k = 1, p = 2 is `simple`

reduced over variables and event by mean, sum or half the sum. Half the sum of `likelihood` is the integrand, in nats,
of the variational bound.

The official codes: score_sde reduces by "mean" (`reduce_mean`) or "half_sum"; CLD's v2 by "sum", its v1 and likelihood
by "half_sum"; PSLD by "mean".

NCSN and NCSNv2 by "half_sum", at discrete noise levels: see `annealed_dsm`.

Reference: Song et al. 2021, eq. (7); Dockhorn et al. 2022, eqs. (8)-(9) (HSM); Pandey & Mandt 2023, eq. (13).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from sgmjax.sdes import SDE, linalg
from sgmjax.sdes.base import Matching

Weighting = Literal["simple", "reweightedv2", "reweightedv1", "likelihood", "annealed"]
Reduce = Literal["mean", "sum", "half_sum"]


def _weight_error(sde: SDE, t, error, weighting: Weighting, matching: Matching, anneal_power: float):
    """Residual whose square is the loss. error, out: (batch, r or k, *event)."""
    if weighting in ("simple", "reweightedv2"):  # one loss, two names
        return error
    if weighting == "reweightedv1":
        rate = jnp.diagonal(sde.diffusion_squared(t), axis1=1, axis2=2)
        return error * linalg.expand_to(jnp.sqrt(rate[:, sde.k - sde.num_noised :]), error.ndim)
    if weighting == "likelihood":
        score = sde.transition(t, matching).score(error)
        return linalg.apply(jnp.swapaxes(sde.diffusion(t), 1, 2), score)
    if weighting == "annealed":
        if sde.k > 1:
            raise ValueError("weighting 'annealed' needs one noise level sigma(t): use 'simple' for more variables.")
        sigma = sde.transition(t, matching).factor[:, 0, 0]
        return error * linalg.expand_to(sigma ** (0.5 * anneal_power - 1), error.ndim)
    raise ValueError(f"weighting must be 'simple', 'reweightedv1', 'likelihood' or 'annealed', not {weighting!r}.")


def expected_loss(sde: SDE, t, weighting: Weighting, matching: Matching, anneal_power: float = 2.0):
    """Loss at t, per event dimension, of a prediction that is off by unit white noise. (batch,) -> (batch,)."""
    total = 0.0
    for i in range(sde.num_noised):
        error = jnp.zeros((t.shape[0], sde.num_noised, 1), t.dtype).at[:, i].set(1.0)
        total = total + jnp.sum(_weight_error(sde, t, error, weighting, matching, anneal_power) ** 2, axis=(1, 2))
    return total


def score_matching_loss(
    eps_fn: Callable,
    sde: SDE,
    z0,
    t,
    eps,
    *,
    matching: Matching = "hsm",
    weighting: Weighting = "simple",
    reduce: Reduce = "mean",
    norm: Literal["l2", "l1"] = "l2",
    anneal_power: float = 2.0,
):
    """Per-example loss for given times and noise: the deterministic part of `score_matching`.

    Args:
        eps_fn: eps_fn(z, t) -> (batch, r, *event), see `sgmjax.score`.
        sde: the process.
        z0: (batch, k, *event); `sde.augment(x0)` for HSM, `sde.augment(x0, key)` for DSM.
        t: (batch,) in (0, 1].
        eps: (batch, k, *event) standard normal.
        matching: the kernel, see `SDE.transition`.
        weighting, reduce: see the module's docstring; the mean is over the noised variables and the event.
        norm: "l1" takes absolute values in place of squares.
        anneal_power: p of the weighting "annealed".

    Returns:
        (batch,) losses.
    """
    if sde.frame is not None and weighting == "reweightedv1":
        raise ValueError("reweightedv1 needs the noised variables to come last: use 'simple' or 'likelihood'.")
    z_t = sde.transition(t, matching).perturb(z0, eps)
    error = eps_fn(z_t, t) - sde.restrict(eps)
    size = error.size // error.shape[0]
    residual = _weight_error(sde, t, error, weighting, matching, anneal_power)
    loss = jnp.abs(residual) if norm == "l1" else residual**2
    loss = jnp.sum(loss.reshape(loss.shape[0], -1), axis=1)
    if reduce == "mean":
        return loss / size
    if reduce in ("sum", "half_sum"):
        return loss if reduce == "sum" else 0.5 * loss
    raise ValueError(f"reduce must be 'mean', 'sum' or 'half_sum', not {reduce!r}.")


def score_matching(key, eps_fn: Callable, sde: SDE, x0, *, times, matching: Matching = "hsm", **kwargs):
    """Draw times and noise and return the (batch,) losses, importance weights included.

    Args:
        key: typed PRNG key.
        eps_fn, sde, matching and the keyword arguments: see `score_matching_loss`.
        x0: (batch, *event) data.
        times: a `TimeSampler` or `DiscreteTimes`.
    """
    time_key, momentum_key, noise_key = jax.random.split(key, 3)
    t, weight = times.draw(time_key, x0.shape[0], x0.dtype)
    z0 = sde.augment(x0, momentum_key if matching == "dsm" else None)
    eps = jax.random.normal(noise_key, z0.shape, z0.dtype)
    return weight * score_matching_loss(eps_fn, sde, z0, t, eps, matching=matching, **kwargs)
