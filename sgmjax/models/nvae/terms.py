"""Terms of NVAE's training objective: KL per group and per channel, their balancing, the annealing of the KL.

Pure functions, in nats; means over the batch are over the global batch under `jit`.

Reference: Vahdat & Kautz 2020 (NVAE), appendix A ("KL balancing"); Vahdat, Kreis & Kautz 2021 (LSGM), appendix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax.models.distributions import HALF_LOG_2PI, standard_normal_log_prob

ACTIVE_NATS = 0.1  # a latent channel with less KL than this, summed over its pixels, is inactive


def sum_event(x: jax.Array) -> jax.Array:
    """Sum over all axes but the first."""
    return jnp.sum(x, axis=range(1, x.ndim))


class KLTerms(NamedTuple):
    """KL from the prior to the posterior, one sample of it.

    Attributes:
      per_group: (batch, groups).
      per_channel: for each group (channels,), summed over pixels and averaged over the batch.
    """

    per_group: jax.Array
    per_channel: tuple[jax.Array, ...]

    @property
    def total(self) -> jax.Array:
        """(batch,)."""
        return jnp.sum(self.per_group, axis=1)

    @property
    def active_units(self) -> jax.Array:
        """Number of latent channels, over all groups, with more than 0.1 nats."""
        return jnp.sum(jnp.concatenate(self.per_channel) > ACTIVE_NATS)


def kl_terms(log_q: Sequence[jax.Array], neg_log_p: Sequence[jax.Array]) -> KLTerms:
    """KL terms from log-densities of each latent variable.

    Args:
      log_q: for each group log q(eps | x), (batch, h, w, channels).
      neg_log_p: the same of -log p(eps), or of whatever stands for it, such as the prior's cross entropy.

    Raises:
      ValueError: if the two have different numbers of groups.
    """
    if len(log_q) != len(neg_log_p):
        raise InputError(f"log_q has {len(log_q)} groups and neg_log_p {len(neg_log_p)}")
    kl = [q + p for q, p in zip(log_q, neg_log_p, strict=True)]
    per_group = jnp.stack([sum_event(k) for k in kl], axis=1)
    return KLTerms(per_group, tuple(jnp.mean(jnp.sum(k, axis=(1, 2)), axis=0) for k in kl))


def normal_prior_terms(
    log_q: Sequence[jax.Array], eps: Sequence[jax.Array], *, half_log_2pi: float = HALF_LOG_2PI
) -> KLTerms:
    """KL terms under the prior N(0, I) for all groups. For `half_log_2pi` see `standard_normal_log_prob`."""
    return kl_terms(log_q, [-standard_normal_log_prob(e, half_log_2pi=half_log_2pi) for e in eps])


def log_prob_of_groups(log_prob: Sequence[jax.Array]) -> jax.Array:
    """Sum of the groups' log-densities, (batch,)."""
    return jnp.sum(jnp.stack([sum_event(p) for p in log_prob]), axis=0)


def active_channels(per_channel: jax.Array) -> jax.Array:
    """Which latent channels are active, from their mean KL over much data, (channels,) bool."""
    return per_channel > ACTIVE_NATS


def group_weights(groups_per_scale: Sequence[int], kind: str = "square") -> np.ndarray:
    """Weights alpha of KL balancing, one for each group, the smallest being 1; (groups,) float64.

    Args:
      groups_per_scale: groups of each scale, the coarsest (whose latents are drawn first) first.
      kind: with s = 0 for the coarsest scale, `equal` 1, `linear` 2^s, `sqrt` 2^(s/2), `square` 4^s / groups.

    Raises:
      ValueError: for another kind.
    """
    rules = {
        "equal": lambda s, n: 1.0,
        "linear": lambda s, n: 2.0**s,
        "sqrt": lambda s, n: 2.0 ** (s / 2),
        "square": lambda s, n: 4.0**s / n,
    }
    if kind not in rules:
        raise InputError(f"kl_balance: '{kind}' is unknown; choose one of {', '.join(rules)}")
    alpha = np.concatenate([np.full(n, rules[kind](s, n)) for s, n in enumerate(groups_per_scale)])
    return alpha / alpha.min()


def balance_kl(
    kl_per_group: jax.Array, coefficient: Any = 1.0, alpha: np.ndarray | None = None
) -> tuple[jax.Array, jax.Array]:
    """The annealed KL, its groups weighted so that early in training none of them collapses.

    While the annealing coefficient is below 1, group i weighs in proportion to `E|KL_i| / alpha_i`, the weights having
    mean 1 and no gradient. From 1 on all weigh 1, so that the objective is the variational bound.

    Args:
      kl_per_group: (batch, groups).
      coefficient: of the annealing, a number or a scalar array.
      alpha: from `group_weights`; None: no balancing.

    Returns:
      `coefficient` times the balanced KL, (batch,), and the weights, (groups,).
    """
    weights = jnp.ones(kl_per_group.shape[1], kl_per_group.dtype)
    if alpha is not None:
        size = jnp.mean(jnp.abs(kl_per_group), axis=0) + 0.01
        balanced = size / jnp.asarray(alpha, size.dtype)
        balanced = balanced / jnp.mean(balanced)
        weights = jax.lax.stop_gradient(jnp.where(coefficient < 1.0, balanced, weights))
    return coefficient * jnp.sum(kl_per_group * weights[None, :], axis=1), weights


def kl_coefficient(step: Any, *, anneal_steps: float, constant_steps: float, minimum: float, maximum: float) -> Any:
    """Coefficient of the KL at a step: `minimum` for `constant_steps`, then linear to `maximum` in `anneal_steps`.

    Works on numbers, numpy and jax arrays alike.
    """
    xp = jnp if isinstance(step, jax.Array) else np
    elapsed = step - constant_steps
    if anneal_steps > 0:
        rising = minimum + (maximum - minimum) * elapsed / anneal_steps
    else:  # nothing to anneal: a step
        rising = xp.where(elapsed < 0, minimum, maximum)
    return xp.clip(rising, minimum, maximum)
