"""What a denoising error is worth at time t: the weightings of all papers, defined here and nowhere else.

With z_t = E z_0 + L eps and the error e = eps_hat - eps of the noised variables, every published loss is

    |A(t) e|^2 / d(t),                                                                                            (1)

a sum of squares over phase variables and event, which an objective may halve or divide by their number (`Reduce`). Each
function below is one A and d, with the names under which papers and codes know it.

**A new weighting** is a function here and its line in `WEIGHTINGS`: every objective, every config and every
importance-sampled law of times then knows it by name.

Reference: Song et al. 2021, eq. (7); Dockhorn et al. 2022, eqs. (8)-(9); Pandey & Mandt 2023, eq. (13); Vahdat et al.
2021, sec. 3.3 and app. B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import jax.numpy as jnp

from sgmjax._inputs import InputError
from sgmjax._types import Noise, PerExample, Samples, Times
from sgmjax.sdes import SDE, VE, linalg
from sgmjax.sdes.base import Matching

Reduce = Literal["mean", "sum", "half_sum"]


def check_reduce(reduce: str) -> None:
    """Raises InputError: an unknown one."""
    if reduce not in get_args(Reduce):
        raise InputError(f"reduce must be 'mean', 'sum' or 'half_sum', not {reduce!r}.")


def reduced(total: PerExample, size: int, reduce: Reduce) -> PerExample:
    """The sums of `size` numbers, (batch,), as they are, halved, or as means.

    Raises:
        InputError: an unknown reduce.
    """
    check_reduce(reduce)
    if reduce == "mean":
        return total / size
    return total if reduce == "sum" else 0.5 * total


class Options(NamedTuple):
    """What some weightings depend on.

    Attributes:
        matching: the kernel, see `SDE.transition`.
        anneal_power: p of `annealed`.
        official: as published, see `rescale`.
    """

    matching: Matching = "hsm"
    anneal_power: float = 2.0
    official: bool = False


class Weighted(NamedTuple):
    """A e of eq. (1), (batch, m, *event), and d, (batch,) or a number."""

    error: Any
    divisor: Any = 1.0


def simple(sde: SDE, t: Times, error: Noise, options: Options) -> Weighted:
    """|e|^2. score_sde's default; CLD's "reweightedv2"; PSLD's "fid"; LSGM's "drop_all", unweighted."""
    return Weighted(error)


def reweightedv1(sde: SDE, t: Times, error: Noise, options: Options) -> Weighted:
    """sum_i g_ii^2 e_i^2. CLD's "reweightedv1"."""
    if sde.frame is not None:
        raise InputError("reweightedv1 needs the noised variables to come last: use 'simple' or 'likelihood'.")
    rate = jnp.diagonal(sde.diffusion_squared(t), axis1=1, axis2=2)
    return Weighted(error * linalg.expand_to(jnp.sqrt(rate[:, sde.k - sde.num_noised :]), error.ndim))


def likelihood(sde: SDE, t: Times, error: Noise, options: Options) -> Weighted:
    """|g^T L^-T e|^2 = |g^T (score_hat - score)|^2. Maximum likelihood (Song et al. 2021b); PSLD's "nll".

    Its half is the integrand, in nats, of the variational bound.
    """
    score = sde.transition(t, options.matching).score(error)
    return Weighted(linalg.apply(jnp.swapaxes(sde.diffusion(t), 1, 2), score))


def annealed(sde: SDE, t: Times, error: Noise, options: Options) -> Weighted:
    """sigma^(p - 2) e^2 = sigma^p (score_hat - score)^2, p = anneal_power, k = 1. NCSN, NCSNv2; p = 2 is `simple`."""
    if sde.k > 1:
        raise InputError("weighting 'annealed' needs one noise level sigma(t): use 'simple' for more variables.")
    sigma = sde.transition(t, options.matching).factor[:, 0, 0]
    return Weighted(error * linalg.expand_to(sigma ** (0.5 * options.anneal_power - 1), error.ndim))


def ll(sde: SDE, t: Times, error: Noise, options: Options) -> Weighted:
    """|g^T L^-T e|^2 / 2 [k = 1: g^2 / (2 sigma^2) e^2]. LSGM's: the integrand of the cross entropy in nats."""
    return Weighted(likelihood(sde, t, error, options).error, 2.0)


def drop_sigma2t(sde: SDE, t: Times, error: Noise, options: Options) -> Weighted:
    """|g^T e|^2 / 2 [k = 1: g^2 / 2 e^2]. LSGM's "reweighted"."""
    return Weighted(linalg.apply(jnp.swapaxes(sde.diffusion(t), 1, 2), sde.expand(error)), 2.0)


def rescale(sde: SDE, t: Times, error: Noise, options: Options) -> Weighted:
    """|e|^2 / (2 D) [VP: e^2 / (2 (1 - sigma^2))], D(t) = `SDE.distance_to_prior`. LSGM's.

    That is ll per unit of log sigma^2 instead of t. `official` takes 1 - sigma^2 for VE too, as published, though that
    is negative for sigma > 1.
    """
    distance = sde.distance_to_prior(t)
    if options.official and isinstance(sde, VE):
        distance = 1 - sde.transition(t).factor[:, 0, 0] ** 2
    return Weighted(error, 2 * distance)


WEIGHTINGS: dict[str, Callable[[SDE, Any, Any, Options], Weighted]] = {
    "simple": simple,
    "reweightedv2": simple,
    "reweightedv1": reweightedv1,
    "likelihood": likelihood,
    "annealed": annealed,
    "ll": ll,
    "drop_all": simple,
    "drop_sigma2t": drop_sigma2t,
    "rescale": rescale,
}
BY_DRIFT = ("reweightedv1", "likelihood", "ll", "drop_sigma2t")


def _check_weighting(weighting: str) -> None:
    if weighting not in WEIGHTINGS:
        raise InputError(f"weighting must be one of {', '.join(WEIGHTINGS)}, not {weighting!r}.")


def hears(weighting: str) -> Literal["eps", "drift"]:
    """Whether a network trained with a weighting hears all variables alike, or as the process drives them.

    See `score.consistent`.

    Raises:
        InputError: an unknown weighting.

    Examples:
        >>> objectives.hears("simple"), objectives.hears("likelihood")
        ('eps', 'drift')
    """
    _check_weighting(weighting)
    return "drift" if weighting in BY_DRIFT else "eps"


if TYPE_CHECKING:
    Weighting = str
else:
    Weighting = Literal[tuple(WEIGHTINGS)]


def weigh(weighting: str, sde: SDE, t: Times, error: Noise, options: Options = Options()) -> Weighted:
    """A e and d of eq. (1), by name.

    Args:
        weighting: a name in `WEIGHTINGS`.
        sde: the process.
        t: (batch,) in (0, 1].
        error: e, (batch, r, *event).
        options: see `Options`.

    Raises:
        ValueError: an unknown weighting, or one that does not fit the process.
    """
    _check_weighting(weighting)
    return WEIGHTINGS[weighting](sde, t, error, options)


def weighted_square(sde: SDE, t: Times, error: Noise, weighting: str, options: Options = Options()) -> Samples:
    """Eq. (1) summed over the phase variables, not over the event. Arguments as of `weigh`. -> (batch, *event)."""
    weighted = weigh(weighting, sde, t, error, options)
    square = jnp.sum(weighted.error**2, axis=1)
    return square / linalg.expand_to(jnp.asarray(weighted.divisor, square.dtype), square.ndim)
