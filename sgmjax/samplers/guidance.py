"""Guidance: scores of a class, from a classifier or from a network that knows classes, for every sampler and process.

Both make a `score_fn` out of others, so whatever takes a `score_fn` can be guided. Strength 0 is without guidance, 1
samples p(x | class) where everything is exact, and more than 1 sharpens at the price of variety.

A `Guidance` in place of the strength has an interval of noise levels, outside of which the strength is 1: guidance at
high levels costs variety, at low ones it does nothing (Kynkaanniemi et al. 2024).

What it costs: `info.nfe` counts calls of the score function. Behind each call stand one evaluation of the network and
one of the classifier with its gradient (`guided_score`), or two evaluations of the network (`cfg_score`; one outside of
the interval).

Reference: Song et al. 2021, sec. 5, eq. (14); Dhariwal & Nichol 2021, alg. 1 (the strength, their s); Ho & Salimans
2022, eq. (6) (classifier-free; their w is strength - 1); Kynkaanniemi et al. 2024, eq. (5) (the interval).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int

from sgmjax._inputs import InputError, check_labels
from sgmjax._kinds import hearing, says
from sgmjax._ranges import FINITE, check_range
from sgmjax._types import AnyArray, Labels, LogitsFn, Numbers, ScoreFn, Times
from sgmjax.sdes import SDE, linalg, noise_level


class Guidance(NamedTuple):
    """A strength, and the noise levels sigma (`sdes.noise_level`) at which it is taken; at all others it is 1."""

    strength: Numbers = 1.0
    low: float = 0.0
    high: float = math.inf

    @classmethod
    def of(cls, given: Numbers | Guidance) -> Guidance:
        """From a number, or itself.

        Raises:
            InputError: a strength that is not finite, an interval that is none.
        """
        found = given if isinstance(given, Guidance) else cls(given)
        check_range(found.strength, FINITE, "strength")
        if not linalg.is_concrete(found.low, found.high):
            raise InputError("guidance: its interval is traced (an argument of jit); the strength alone may be")
        if not 0 <= found.low < found.high:
            raise InputError(f"guidance from {found.low:g} to {found.high:g}: it goes from 0 or more to a higher level")
        return found

    @property
    def is_one(self) -> bool:
        """Whether the strength is 1 everywhere."""
        return isinstance(self.strength, int | float) and self.strength == 1

    @property
    def everywhere(self) -> bool:
        return self.low == 0 and self.high == math.inf

    def at(self, sde: SDE, t: Times) -> Numbers:
        """The strength at times (batch,)."""
        if self.everywhere:
            return self.strength
        sigma = noise_level(sde, t)
        return jnp.where((sigma >= self.low) & (sigma <= self.high), jnp.asarray(self.strength, sigma.dtype), 1.0)


def guided_score(
    score_fn: ScoreFn,
    log_prob_fn: LogitsFn,
    labels: Labels | int | Int[AnyArray, ""],
    strength: Numbers | Guidance = 1.0,
    *,
    sde: SDE,
    reverse_time: bool = False,
) -> ScoreFn:
    """score(z, t) + strength grad_z log p(label | z, t), the gradient for the variables that receive noise.

    Bayes' rule gives the score of p(z_t | label) for strength 1. A sampler uses the score of noised variables only, so
    the classifier's gradient in the others is left out, as it is in every `score_fn` here.

    Args:
        score_fn: score_fn(z, t) -> (batch, k, *event).
        log_prob_fn: log_prob_fn(z, t) -> (batch, classes) log probabilities of the noised state at forward time t;
            logits do as well, they are normalised here.
        labels: (batch,) integers 0 ... classes - 1, or one label for all.
        strength: a number or (batch,), or a `Guidance`.
        sde: the process.
        reverse_time: hand the classifier 1 - t, as PSLD's sampler does to a classifier trained on t. For published
            numbers.

    Returns:
        score_fn(z, t) -> (batch, k, *event).

    Raises:
        InputError: a strength that is not finite; labels that are no integers from 0; when it is called, those that
            are no classes.

    Examples:
        >>> sde, data = sdes.vp(), exact.mixture([[-1.0, 0.0], [1.0, 0.0]], 0.02)  # two classes
        >>> score_fn = samplers.guided_score(data.score_fn(sde), lambda z, t: data.classify(sde, z, t), 1, sde=sde)
        >>> times = samplers.time_grid("quadratic", 5)
        >>> samples, _ = samplers.ddim(jax.random.key(0), score_fn, sde, (3, 2), times=times)
        >>> samples[:, 0].round().tolist()  # all of the second
        [1.0, 1.0, 1.0]
    """
    check_labels(labels, None)
    guidance = Guidance.of(strength)

    @says(kind="score", hears=hearing(score_fn))
    def guided(z, t):
        chosen = jnp.broadcast_to(jnp.asarray(labels), (z.shape[0],))
        time = 1 - t if reverse_time else t

        def selected(z):
            log_probs = jax.nn.log_softmax(log_prob_fn(z, time), axis=-1)
            check_labels(labels, log_probs.shape[-1])
            return jnp.sum(jnp.take_along_axis(log_probs, chosen[:, None], axis=-1))

        gradient = sde.expand(sde.restrict(jax.grad(selected)(z)))
        return score_fn(z, t) + _per_example(guidance.at(sde, t), z) * gradient

    return guided


def cfg_score(cond: ScoreFn, uncond: ScoreFn, strength: Numbers | Guidance = 1.0, *, sde: SDE | None = None) -> ScoreFn:
    """uncond + strength (cond - uncond): classifier-free guidance.

    The same rule as `guided_score` with the classifier that the two scores imply, p(label | z) ~ p(z | label) / p(z).

    Args:
        cond: score_fn(z, t) given the label.
        uncond: score_fn(z, t) of all classes together, of a network trained with label dropout.
        strength: a number or (batch,), or a `Guidance`.
        sde: the process, for a `Guidance` with an interval.

    Returns:
        score_fn(z, t) -> (batch, k, *event), which evaluates both; outside of an interval, for a batch that is outside
        as a whole, only cond.

    Raises:
        InputError: a strength that is not finite; an interval without the process.

    Examples:
        >>> score_fn = samplers.cfg_score(lambda z, t: 1 - z, lambda z, t: -z, 2.0)  # of N(1, 1) and of N(0, 1)
        >>> score_fn(jnp.zeros((1, 1, 1)), jnp.ones(1)).tolist()  # 0 + 2 (1 - 0), of N(2, 1)
        [[[2.0]]]
    """
    guidance = Guidance.of(strength)
    if sde is None and not guidance.everywhere:
        raise InputError("cfg_score: an interval of noise levels is of a process; give sde.")

    def both(z, t, strength):
        without = uncond(z, t)
        return without + _per_example(strength, z) * (cond(z, t) - without)

    @says(kind="score", hears=hearing(cond))
    def guided(z, t):
        if sde is None or guidance.everywhere:
            return both(z, t, guidance.strength)
        strength = guidance.at(sde, t)
        inside = jnp.any(strength != 1)
        return jax.lax.cond(inside, lambda: both(z, t, strength), lambda: cond(z, t))

    return guided


def _per_example(strength, z):
    """A number or (batch,) as an array that multiplies z."""
    strength = jnp.asarray(strength, z.dtype)
    return strength.reshape((-1,) + (1,) * (z.ndim - 1))
