"""Denoising and hybrid score matching, for every linear process, with the weightings of the papers.

With z_t = E z_0 + L eps and a prediction eps_hat of the noised variables' eps, every published loss is a weighted
square of eps_hat - eps (all weightings: `objectives.weighting`), reduced over variables and event by mean, sum or half
the sum, at times of a `time_law`. Half the sum of `likelihood` is the integrand, in nats, of the variational bound.

The official codes: score_sde reduces by "mean" (`reduce_mean`) or "half_sum"; CLD's v2 by "sum", its v1 and likelihood
by "half_sum"; PSLD by "mean".

NCSN and NCSNv2 by "half_sum", at discrete noise levels: see `annealed_dsm`.

Reference: Song et al. 2021, eq. (7); Dockhorn et al. 2022, eqs. (8)-(9) (HSM); Pandey & Mandt 2023, eq. (13).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from sgmjax._inputs import InputError, check_network_range
from sgmjax._kinds import check_eps, check_kind, check_matching
from sgmjax._types import Data, EpsFn, Key, PerExample, State, Times
from sgmjax.objectives.time_law import TimeLaw, at_least_float32, check_time_law
from sgmjax.objectives.weighting import Options, Reduce, reduced, weigh
from sgmjax.sdes import SDE
from sgmjax.sdes.base import Matching


def score_matching_loss(
    eps_fn: EpsFn,
    sde: SDE,
    z0: State,
    t: Times,
    eps: State,
    *,
    matching: Matching = "hsm",
    weighting: str = "simple",
    reduce: Reduce = "mean",
    norm: Literal["l2", "l1"] = "l2",
    anneal_power: float = 2.0,
) -> PerExample:
    """Per-example loss for given times and noise: the deterministic part of `score_matching`.

    Args:
        eps_fn: eps_fn(z, t) -> (batch, r, *event), see `sgmjax.score`.
        sde: the process.
        z0: (batch, k, *event); `sde.augment(x0)` for HSM, `sde.augment(x0, key)` for DSM.
        t: (batch,) in (0, 1].
        eps: (batch, k, *event) standard normal.
        matching: the kernel, see `SDE.transition`.
        weighting: a name in `weighting.WEIGHTINGS`.
        reduce: see the module's docstring; the mean is over the noised variables and the event.
        norm: "l1" takes absolute values in place of squares.
        anneal_power: p of the weighting "annealed".

    Returns:
        (batch,) losses.

    Raises:
        InputError: an unknown weighting, reduce or norm, a weighting that does not fit the process; an eps_fn that says
            it is a score, or of another matching, or that returns another shape.

    Examples:
        >>> sde, t = sdes.psld(), jnp.full(1, 0.5)
        >>> z0, eps = sde.augment(jnp.zeros((1, 3))), jnp.full((1, 2, 3), 2.0)
        >>> eps_fn = lambda z, t: jnp.zeros_like(z)
        >>> objectives.score_matching_loss(eps_fn, sde, z0, t, eps).tolist()  # the mean of eps^2
        [4.0]
    """
    if norm not in ("l2", "l1"):
        raise InputError(f"norm must be 'l2' or 'l1', not {norm!r}.")
    check_kind(eps_fn, "eps")
    check_matching(eps_fn, matching)
    z_t = sde.transition(t, matching).perturb(z0, eps)
    eps_hat = eps_fn(z_t, t)
    check_eps(eps_hat, z_t, sde.num_noised)
    error = eps_hat - sde.restrict(eps)
    size = error.size // error.shape[0]
    weighted = weigh(weighting, sde, t, error, Options(matching=matching, anneal_power=anneal_power))
    loss = jnp.abs(weighted.error) if norm == "l1" else weighted.error**2
    loss = jnp.sum(loss.reshape(loss.shape[0], -1), axis=1) / weighted.divisor
    return reduced(loss, size, reduce)


def score_matching(
    key: Key, eps_fn: EpsFn, sde: SDE, x0: Data, *, time_law: TimeLaw, matching: Matching = "hsm", **kwargs: Any
) -> PerExample:
    """Draw times and noise and return the (batch,) losses, the weights of the times included.

    Args:
        key: typed PRNG key.
        eps_fn, sde, matching and the keyword arguments: see `score_matching_loss`.
        x0: (batch, *event) data.
        time_law: how times are drawn: `uniform()`, `levels(...)`, `importance(...)`.

    Raises:
        InputError: x0 of whole numbers, as images are stored; a time_law that is none.

    Examples:
        >>> sde, x0 = sdes.psld(), jnp.zeros((8, 2))
        >>> eps_fn = lambda z, t: jnp.zeros_like(z)  # of a network: score.eps_from_network
        >>> losses = objectives.score_matching(jax.random.key(0), eps_fn, sde, x0, time_law=objectives.uniform())
        >>> losses.shape
        (8,)
    """
    check_network_range(x0)
    check_time_law(time_law)
    x0 = x0.astype(at_least_float32(x0.dtype))
    time_key, momentum_key, noise_key = jax.random.split(key, 3)
    t, weight = time_law.draw(time_key, x0.shape[0], x0.dtype)
    z0 = sde.augment(x0, momentum_key if matching == "dsm" else None)
    eps = jax.random.normal(noise_key, z0.shape, z0.dtype)
    return weight * score_matching_loss(eps_fn, sde, z0, t, eps, matching=matching, **kwargs)
