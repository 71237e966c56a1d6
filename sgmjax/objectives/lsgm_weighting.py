"""LSGM's weightings of the denoising error, and the times at which it is measured, for every linear process.

With an error e = eps_hat - eps of the noised variables, every weighting is a quadratic form in e, summed over the phase
variables and not over the latent ones (k = 1 in brackets):

    ll            1/2 |g^T L^-T e|^2        [g^2 / (2 sigma^2) e^2]   the cross entropy in nats
    drop_all      |e|^2                     [e^2]                     "un", unweighted
    drop_sigma2t  1/2 |g^T e|^2             [g^2 / 2 e^2]             "re", reweighted
    rescale       1/2 |e|^2 / d             [e^2 / (2 (1 - sigma^2))] ll per unit of log sigma^2 instead of t

d(t) being `SDE.distance_to_prior`.

**Importance sampling.** For normal data (z_0 ~ N(0, I), the case from which LSGM's mixed score starts) and the exact
score the errors are known: eps given z_t has covariance w w^T / (1 + |w|^2) with w = sqrt(1 - sigma2_0) L^-1 E e_0 [1 -
sigma^2 for VP]. Times are drawn from the density proportional to the weighting of that error, so that the objective is
then the same at every t. It has a closed inverse CDF for VP with a linear or a geometric rate and for VE; for all
others the inverse is tabulated as bins of equal probability, in which t is uniform. Weights are one over the density
that is sampled, so the integral over t stays unbiased whatever the bins.

Reference: Vahdat et al. 2021, sec. 3.3 and app. B.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, erfinv

from sgmjax.sdes import SDE, VE, LinearSchedule, Recipe, SubVP, linalg, recipe

Weighting = Literal["ll", "drop_all", "drop_sigma2t", "rescale"]
Mode = Literal[
    "ll_uniform", "ll_iw", "drop_all_uniform", "drop_all_iw", "drop_sigma2t_uniform", "drop_sigma2t_iw",
    "rescale_uniform", "rescale_iw",
]  # fmt: skip

BINS = 1000
DEFENSIVE = 0.05  # share of uniform times in a tabulated density: no weight is above 1 / 0.05 of the uniform one
_FINEST = 1e-7  # smallest t at which a tabulated density is looked at


def weighted_square(sde: SDE, t, error, weighting: Weighting, *, official: bool = False):
    """The weighting's quadratic form. error (batch, r, *event), t (batch,) -> (batch, *event).

    Args:
        sde, t, error, weighting: see the module's docstring.
        official: "rescale" divides by 1 - sigma_t^2 for VE too, as published, though that is negative for sigma_t > 1.
    """
    if weighting == "ll":
        error = linalg.apply(jnp.swapaxes(sde.diffusion(t), 1, 2), sde.transition(t).score(error))
    elif weighting == "drop_sigma2t":
        error = linalg.apply(jnp.swapaxes(sde.diffusion(t), 1, 2), sde.expand(error))
    elif weighting not in ("drop_all", "rescale"):
        raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, not {weighting!r}.")
    square = jnp.sum(error**2, axis=1)
    if weighting == "drop_all":
        return square
    if weighting == "rescale":
        distance = sde.distance_to_prior(t)
        if official and isinstance(sde, VE):
            distance = 1 - sde.transition(t).factor[:, 0, 0] ** 2
        square = square / linalg.expand_to(distance, square.ndim)
    return 0.5 * square


class Draw(NamedTuple):
    t: Any  # (batch,)
    weight: Any  # (batch,), one over the density at t: the mean of weight * f(t) is the integral of f


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Uniform:
    """t uniform on [t_min, t_max]."""

    t_min: Any
    t_max: Any

    def sample(self, u) -> Draw:
        span = jnp.asarray(self.t_max - self.t_min, u.dtype)
        return Draw(self.t_min + u * span, jnp.broadcast_to(span, u.shape))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """n bins of equal probability, t uniform in each. edges (n + 1,); widths (n,), apart since differences cancel."""

    edges: Any
    widths: Any

    def sample(self, u) -> Draw:
        edges, widths = jnp.asarray(self.edges, u.dtype), jnp.asarray(self.widths, u.dtype)
        n = widths.shape[0]
        i = jnp.clip(jnp.floor(u * n), 0, n - 1).astype(jnp.int32)
        return Draw(edges[i] + jnp.clip(u * n - i.astype(u.dtype), 0.0, 1.0) * widths[i], n * widths[i])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Closed:
    """Density proportional to the slope of a clock c(t) with a known inverse, on [t_min, t_max].

    Attributes:
        sde: VP (a recipe of one variable) or VE.
        weighting: chooses the clock.
        t_min, t_max: the range; low, high: the clock there.
        share: factor of the weight, 1; see `_official_norm`.
    """

    sde: Any
    weighting: Weighting
    t_min: Any
    t_max: Any
    low: Any
    high: Any
    share: Any = 1.0

    def sample(self, u) -> Draw:
        low, high = jnp.asarray(self.low, u.dtype), jnp.asarray(self.high, u.dtype)
        t = _invert(self.sde, self.weighting, low + u * (high - low))
        t = jnp.clip(t, jnp.asarray(self.t_min, u.dtype), jnp.asarray(self.t_max, u.dtype))
        return Draw(t, jnp.asarray(self.share, u.dtype) * (high - low) / _slope(self.sde, self.weighting, t))


jax.tree_util.register_dataclass(Uniform, ["t_min", "t_max"], [])
jax.tree_util.register_dataclass(Table, ["edges", "widths"], [])
jax.tree_util.register_dataclass(Closed, ["sde", "t_min", "t_max", "low", "high", "share"], ["weighting"])


# ---- clocks: c(t), its slope and its inverse


def _gaussian_bell(sde):
    """VP's e^{-B} is exp(beta_min b / 2) exp(-(a (t + b))^2); returns a, b and the first factor."""
    slope = sde.schedule.beta_max - sde.schedule.beta_min
    a, b = jnp.sqrt(0.5 * slope), sde.schedule.beta_min / slope
    return a, b, jnp.exp(0.5 * sde.schedule.beta_min * b)


def _clock(sde, weighting, t):
    variance = sde.transition(t).factor[:, 0, 0] ** 2
    if isinstance(sde, VE):
        if weighting == "drop_sigma2t":
            return jnp.log(1 - sde.initial_variance() + variance)
        first = sde.initial_variance() if weighting == "ll" else sde.sigma_min**2
        level = variance if weighting == "ll" else sde.sigma(t) ** 2
        return -jnp.log1p((1 - first) / level)
    if weighting == "drop_all":
        a, b, top = _gaussian_bell(sde)
        return (1 - sde.initial_variance()) * top * 0.5 * math.sqrt(math.pi) / a * erf(a * (t + b))
    return jnp.log(variance) if weighting == "ll" else variance


def _slope(sde, weighting, t):
    variance, rate = sde.transition(t).factor[:, 0, 0] ** 2, sde.diffusion_squared(t)[:, 0, 0]
    if isinstance(sde, VE):
        normal = 1 - sde.initial_variance() + variance
        if weighting == "drop_sigma2t":
            return rate / normal
        if weighting == "ll":
            return rate * (1 - sde.initial_variance()) / (variance * normal)
        level = sde.sigma(t) ** 2
        return rate * (1 - sde.sigma_min**2) / (level * (1 - sde.sigma_min**2 + level))
    distance = sde.distance_to_prior(t)
    return {"ll": rate * distance / variance, "drop_sigma2t": rate * distance, "drop_all": distance}[weighting]


def _invert(sde, weighting, c):
    if isinstance(sde, VE):
        if weighting == "drop_sigma2t":
            return sde.inverse_variance(jnp.exp(c) - 1 + sde.initial_variance())
        if weighting == "ll":
            return sde.inverse_variance((1 - sde.initial_variance()) / jnp.expm1(-c))
        level = (1 - sde.sigma_min**2) / jnp.expm1(-c)
        return sde.inverse_variance(level - sde.sigma_min**2 + sde.initial_variance())
    if weighting == "drop_all":
        a, b, top = _gaussian_bell(sde)
        return erfinv(c * a / ((1 - sde.initial_variance()) * top * 0.5 * math.sqrt(math.pi))) / a - b
    return sde.inverse_variance(jnp.exp(c) if weighting == "ll" else c)


def _has_clock(sde: SDE, weighting: Weighting) -> bool:
    if isinstance(sde, VE):
        return weighting != "rescale" and float(sde.initial_variance()) < 1 and float(sde.sigma_min) < 1
    if not isinstance(sde, Recipe) or sde.k > 1 or sde.numerical_eps or float(sde.Sigma_inf[0, 0]) != 1:
        return False
    if weighting == "drop_all":
        return isinstance(sde.schedule, LinearSchedule) and float(sde.schedule.beta_max) > float(sde.schedule.beta_min)
    return weighting in ("ll", "drop_sigma2t")


@functools.partial(jax.jit, static_argnames="weighting")
def normal_data_loss(sde: SDE, t, weighting: Weighting):
    """The weighted squared error of the exact score of normal data, per latent variable. (batch,) -> (batch,)."""
    kernel = sde.transition(t)
    first = sde.initial_variance()
    if linalg.is_concrete(first) and not first < 1:
        first = 0.0
    inverse = jnp.swapaxes(kernel.inverse_transpose, 1, 2)
    w = jnp.sqrt(1 - first) * linalg.matmul(inverse, kernel.mean[:, :, :1])
    return weighted_square(sde, t, sde.restrict(w), weighting)[:, 0] / (1 + jnp.sum(w**2, axis=(1, 2)))


def _tabulate(sde: SDE, weighting: Weighting, t_min: float, t_max: float) -> Table:
    low = max(t_min, _FINEST)
    grid = np.unique(np.concatenate([np.geomspace(low, t_max, 2048), np.linspace(low, t_max, 2048), [t_min, t_max]]))
    grid = grid[(grid >= t_min) & (grid <= t_max)]
    values = normal_data_loss(sde, jnp.asarray(np.maximum(grid, low), jnp.float32), weighting)
    values = np.nan_to_num(np.maximum(np.asarray(values, np.float64), 0.0), posinf=0.0)
    cdf = np.concatenate([[0.0], np.cumsum(0.5 * (values[1:] + values[:-1]) * np.diff(grid))])
    cdf = (1 - DEFENSIVE) * cdf / cdf[-1] + DEFENSIVE * (grid - t_min) / (t_max - t_min)
    edges = np.interp(np.linspace(0, 1, BINS + 1), cdf, grid)
    edges[0], edges[-1] = t_min, t_max
    return Table(edges=edges, widths=np.diff(edges))


# ---- what the objective is given


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatentTimes:
    """A weighting and the times at which it is estimated: build it with `latent_times`. A pytree.

    Attributes:
        proposal: draws times; `proposal.sample(u)` of uniform u (batch,) is a `Draw`.
        weighting: of the prior's objective.
        t_min: smallest time.
        official: see `latent_times`.
    """

    proposal: Any
    weighting: Weighting
    t_min: Any
    official: bool = False

    def sample(self, u) -> Draw:
        """Times of uniform numbers u (batch,) in [0, 1), and one over their density."""
        t, weight = self.proposal.sample(u)
        if self.official and isinstance(self.proposal, Uniform):
            weight = jnp.ones_like(weight)
        return Draw(t, weight)


jax.tree_util.register_dataclass(LatentTimes, ["proposal", "t_min"], ["weighting", "official"])


def latent_times(
    sde: SDE, mode: Mode = "ll_iw", *, t_min: float = 1e-2, t_max: float = 1.0, official: bool = False
) -> LatentTimes:
    """The weighting and the times of one of LSGM's modes, for any process; on the host, before anything is compiled.

    Args:
        sde: the process, not traced.
        mode: "<weighting>_uniform" or "<weighting>_iw", the official names.
        t_min: cut-off, `time_eps`: LSGM takes 0.01 for VP and 0 where sigma2_0 > 0.
        t_max: end of the range.
        official: as published, which differs in that uniform times estimate the mean over [t_min, 1] rather than the
            integral (1% less at t_min = 0.01); sub-VP takes VP's times (`iw_subvp_like_vp_sde`); "rescale_iw" draws
            uniform times, and for VE has the weight 1 / (1 - sigma_t^2); the norm of "drop_all_iw" has
            exp(beta_min / (2 slope)) for exp(beta_min^2 / (2 slope)), slope = beta_max - beta_min (0.2% more).

    Raises:
        ValueError: an unknown mode, a range that is none, or t_min = 0 for a process without sigma2_0.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}.")
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(f"t_min = {t_min:g}, t_max = {t_max:g}: need 0 <= t_min < t_max <= 1.")
    if not linalg.is_concrete(sde):
        raise ValueError("the process is traced: build the times outside of jit and pass them in.")
    if t_min == 0 and (sde.k > 1 or not float(sde.initial_variance()) > 0):
        raise ValueError(
            "t_min = 0 needs a process of one variable with sigma2_0 > 0: the weight is infinite at t = 0."
        )
    name, _, how = mode.rpartition("_")
    weighting = cast(Weighting, name)
    with jax.ensure_compile_time_eval():
        if how == "uniform" or (official and weighting == "rescale"):
            proposal: Any = Uniform(t_min=t_min, t_max=t_max)
        else:
            proposal = _proposal(sde, weighting, t_min, t_max, official)
    return LatentTimes(proposal=proposal, weighting=weighting, t_min=t_min, official=official)


def _proposal(sde: SDE, weighting, t_min: float, t_max: float, official: bool):
    if official and isinstance(sde, SubVP):
        sde = recipe(D=[[0.5]], Q=[[0.0]], schedule=sde.schedule, sigma2_0=sde.sigma2_0, name="vp")
    if not _has_clock(sde, weighting):
        return _tabulate(sde, weighting, t_min, t_max)
    with jax.enable_x64(True):  # the ends once, in float64
        wide = jax.tree.map(lambda leaf: np.array(leaf, np.float64), sde)
        low, high = np.asarray(_clock(wide, weighting, jnp.asarray([t_min, t_max])), np.float64)
        share = _official_norm(wide) if official and weighting == "drop_all" and not isinstance(sde, VE) else 1.0
    return Closed(sde=sde, weighting=weighting, t_min=t_min, t_max=t_max, low=low, high=high, share=share)


def _official_norm(sde) -> float:
    """The published norm of drop_all_iw over the right one."""
    low, high = float(sde.schedule.beta_min), float(sde.schedule.beta_max)
    return math.exp(0.5 * low * (1 - low) / (high - low))
