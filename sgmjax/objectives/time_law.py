"""How training times are drawn, and the weight that makes up for it. `time_law` is a distribution; `times`, a grid.

A `TimeLaw` turns uniform numbers u (batch,) into times t in [t_min, t_max] and weights. There is one convention:

    E[weight f(t)] = the mean of f over [t_min, t_max], or, if `law.integral`, its integral,                      (1)

whatever the density p from which t is drawn: weight = 1 / (p (t_max - t_min)), or 1 / p. The weight multiplies the loss
of an example, `weighting` included. So a density alters the variance of the loss and never what it estimates, and what
is minimised is chosen by the weighting (`weighting.py`) alone. Half of `likelihood`, and `ll`, are nats under the
integral; score matching takes the mean.

    uniform       p constant: all weights 1
    levels        VE's discrete noise levels, equally likely: all weights 1
    importance    p proportional to a weighting, for a network whose eps is off by unit noise
    lsgm_mode     a weighting with its law, under LSGM's name: "<weighting>_uniform", or "<weighting>_iw", with p
                  proportional to the weighted error of the exact score of normal data; integrals

**Importance sampling** by `importance` is, for VP and the likelihood weighting, g^2 / sigma^2, the proposal of Song et
al. 2021b (app. B) and Vahdat et al. 2021 (sec. 3.3). `lsgm_mode` takes the errors for normal data (z_0 ~ N(0, I), the
case from which LSGM's mixed score starts): eps given z_t has covariance w w^T / (1 + |w|^2) with
w = sqrt(1 - sigma2_0) L^-1 E e_0 [1 - sigma^2 for VP], so that the objective is then the same at every t. That has a
closed inverse CDF for VP with a linear or a geometric rate and for VE (`Clock`). All else is tabulated as bins in which
t is uniform (`Bins`, `EqualBins`); by (1) the estimate stays unbiased whatever the bins.

Reference: Vahdat et al. 2021, sec. 3.3 and app. B; Song et al. 2021b, app. B.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError, shown
from sgmjax._ranges import COUNT, check_range
from sgmjax._types import DType, Key, PerExample, Times
from sgmjax.objectives import _clock
from sgmjax.objectives.weighting import WEIGHTINGS, Options, weigh, weighted_square
from sgmjax.sdes import SDE, VE, SubVP, level_times, linalg, recipe
from sgmjax.sdes.base import Matching

BINS = 1000
DEFENSIVE = 0.05  # share of uniform times in a tabulated density: no weight is above 1 / 0.05 of the uniform one
_FINEST = 1e-7  # smallest t at which a tabulated density is looked at


def at_least_float32(dtype: DType) -> DType:
    """The type in which times, weights, kernels and noise are drawn for data of `dtype`.

    Eight bits of mantissa hold no times near 0, nor their weights: estimates would be off by half.
    """
    return jnp.promote_types(dtype, jnp.float32)


class TimeDraw(NamedTuple):
    t: Any  # (batch,)
    weight: Any  # (batch,), see eq. (1)


class TimeLaw(abc.ABC):
    """A distribution of training times; a pytree.

    Attributes:
        integral: whether eq. (1) is the integral of f, not its mean.
        span: t_max - t_min.
    """

    integral: bool
    span: Any

    @abc.abstractmethod
    def sample(self, u: Times) -> TimeDraw:
        """The times of uniform numbers u (batch,) in [0, 1), by the inverse CDF."""

    def draw(self, key: Key, batch: int, dtype: DType = jnp.float32) -> TimeDraw:
        """`sample` of fresh uniform numbers, of `dtype` or float32 if that is narrower."""
        return self.sample(jax.random.uniform(key, (batch,), at_least_float32(dtype)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bins(TimeLaw):
    """Piecewise uniform: bins between `edges`, of cumulative probability `cdf` (both (n + 1,))."""

    edges: Any
    cdf: Any
    integral: bool = False

    @property
    def span(self) -> Any:
        return self.edges[-1] - self.edges[0]

    def sample(self, u: Times) -> TimeDraw:
        edges, cdf = jnp.asarray(self.edges, u.dtype), jnp.asarray(self.cdf, u.dtype)
        i = jnp.clip(jnp.searchsorted(cdf, u, side="right") - 1, 0, cdf.shape[0] - 2)
        low, width, mass = edges[i], edges[i + 1] - edges[i], cdf[i + 1] - cdf[i]
        t = low + jnp.clip((u - cdf[i]) / mass, 0.0, 1.0) * width
        return TimeDraw(t, width / (mass if self.integral else mass * (edges[-1] - edges[0])))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EqualBins(TimeLaw):
    """Piecewise uniform: n bins of equal probability. edges (n + 1,); widths (n,), apart since differences cancel."""

    edges: Any
    widths: Any
    integral: bool = False

    @property
    def span(self) -> Any:
        return self.edges[-1] - self.edges[0]

    def sample(self, u: Times) -> TimeDraw:
        edges, widths = jnp.asarray(self.edges, u.dtype), jnp.asarray(self.widths, u.dtype)
        n = widths.shape[0]
        i = jnp.clip(jnp.floor(u * n), 0, n - 1).astype(jnp.int32)
        t = edges[i] + jnp.clip(u * n - i.astype(u.dtype), 0.0, 1.0) * widths[i]
        weight = n * widths[i]
        return TimeDraw(t, weight if self.integral else weight / jnp.sum(widths))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Levels(TimeLaw):
    """One of `times` (n,), all equally likely: the mean over them."""

    times: Any
    integral = False

    @property
    def span(self) -> Any:
        raise InputError("discrete levels do not cover an interval of times: use objectives.importance or uniform.")

    def sample(self, u: Times) -> TimeDraw:
        times = jnp.asarray(self.times, u.dtype)
        index = jnp.minimum((u * len(times)).astype(jnp.int32), len(times) - 1)
        return TimeDraw(times[index], jnp.ones_like(u))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clock(TimeLaw):
    """Density proportional to the slope of a clock c(t) with a known inverse (`objectives._clock`); the integral.

    Attributes:
        sde: VP (a recipe of one variable) or VE.
        weighting: chooses the clock.
        t_min, t_max: the range; low, high: the clock there.
        share: factor of the weight, 1; see `_clock.official_norm`.
    """

    sde: Any
    weighting: str
    t_min: Any
    t_max: Any
    low: Any
    high: Any
    share: Any = 1.0
    integral = True

    @property
    def span(self) -> Any:
        return self.t_max - self.t_min

    def sample(self, u: Times) -> TimeDraw:
        low, high = jnp.asarray(self.low, u.dtype), jnp.asarray(self.high, u.dtype)
        t = _clock.invert(self.sde, self.weighting, low + u * (high - low))
        t = jnp.clip(t, jnp.asarray(self.t_min, u.dtype), jnp.asarray(self.t_max, u.dtype))
        slope = _clock.slope(self.sde, self.weighting, t)
        weight = jnp.asarray(self.share, u.dtype) * (high - low) / slope
        return TimeDraw(t.astype(u.dtype), weight.astype(u.dtype))  # the process may have settings of a wider type


jax.tree_util.register_dataclass(Bins, ["edges", "cdf"], ["integral"])
jax.tree_util.register_dataclass(EqualBins, ["edges", "widths"], ["integral"])
jax.tree_util.register_dataclass(Levels, ["times"], [])
jax.tree_util.register_dataclass(Clock, ["sde", "t_min", "t_max", "low", "high", "share"], ["weighting"])


def _check_range(t_min: float, t_max: float) -> None:
    if not 0 <= t_min < t_max <= 1:
        raise InputError(f"t_min = {t_min:g}, t_max = {t_max:g}: need 0 <= t_min < t_max <= 1.")


def _check_untraced(sde: SDE) -> None:
    if not linalg.is_concrete(sde):
        raise InputError("the process is traced: build the law of times outside of jit and pass it in.")


def check_time_law(time_law: Any) -> None:
    """Checks that it draws times.

    Raises:
        InputError: a name, or a mode of LSGM's, which is a weighting too.
    """
    if isinstance(time_law, WeightedLaw):
        raise InputError(
            "time_law: an lsgm_mode is a weighting with a law of times, for objectives.lsgm; give time_law=mode.law "
            f"and weighting={time_law.weighting!r}"
        )
    if not (hasattr(time_law, "draw") and hasattr(time_law, "sample")):
        raise InputError(f"time_law: expected a law of times, objectives.uniform() say, got {shown(repr(time_law))}")


# ---- for score matching: means


def uniform(t_min: float = 1e-5, t_max: float = 1.0) -> Bins:
    """t uniform on [t_min, t_max]; all weights 1.

    Examples:
        >>> t, weight = objectives.uniform(t_min=0.5).sample(jnp.array([0.0, 0.5]))
        >>> t.tolist(), weight.tolist()
        ([0.5, 0.75], [1.0, 1.0])
    """
    _check_range(t_min, t_max)
    return Bins(edges=np.array([t_min, t_max]), cdf=np.array([0.0, 1.0]))


def levels(num_levels: int) -> Levels:
    """The times at which VE has the noise levels of its sigma_dist, as NCSN and NCSNv2: see `sdes.noise_levels`.

    Examples:
        >>> law = objectives.levels(3)
        >>> law.sample(jnp.array([0.1, 0.5, 0.9])).t.tolist()  # a third of the draws each
        [1.0, 0.5, 0.0]
    """
    return Levels(times=level_times(num_levels))


def importance(
    sde: SDE,
    *,
    weighting: str = "likelihood",
    matching: Matching = "hsm",
    t_min: float = 1e-5,
    t_max: float = 1.0,
    bins: int = BINS,
    anneal_power: float = 2.0,
) -> Bins:
    """Density proportional to the loss of a network whose eps is off by unit noise, on log-spaced bins.

    Args:
        sde: the process, not traced.
        weighting, matching, anneal_power: of the loss; see `weighting.py`.
        t_min, t_max: the range.
        bins: how many.

    Raises:
        ValueError: an unknown weighting, a range that is none or begins at 0, a traced process.

    Examples:
        >>> law = objectives.importance(sdes.vp())
        >>> round(float(law.sample(jnp.array([0.5])).t[0]), 2)  # half of the times lie below
        0.11
    """
    _check_range(t_min, t_max)
    if t_min == 0:
        raise InputError("importance sampling of t needs t_min > 0: the density diverges at 0. Try t_min=1e-5.")
    _check_untraced(sde)
    check_range(bins, COUNT, "bins")
    edges = np.geomspace(t_min, t_max, bins + 1)
    edges[0], edges[-1] = t_min, t_max
    with jax.ensure_compile_time_eval():
        middle = jnp.asarray(np.sqrt(edges[1:] * edges[:-1]), jnp.float32)
        density = unit_error_loss(sde, middle, weighting, Options(matching=matching, anneal_power=anneal_power))
        mass = np.asarray(density, dtype=np.float64) * np.diff(edges)
    cdf = np.concatenate([[0.0], np.cumsum(mass)])
    return Bins(edges=edges, cdf=cdf / cdf[-1])


def unit_error_loss(sde: SDE, t: Times, weighting: str, options: Options = Options()) -> PerExample:
    """Loss at t, per event dimension, of a prediction that is off by unit white noise. (batch,) -> (batch,)."""
    total: Any = 0.0
    for i in range(sde.num_noised):
        error = jnp.zeros((t.shape[0], sde.num_noised, 1), t.dtype).at[:, i].set(1.0)
        weighted = weigh(weighting, sde, t, error, options)
        total = total + jnp.sum(weighted.error**2, axis=(1, 2)) / weighted.divisor
    return total


# ---- LSGM's: integrals

if TYPE_CHECKING:
    Mode = str
else:
    Mode = Literal[tuple(f"{weighting}_{how}" for weighting in WEIGHTINGS for how in ("uniform", "iw"))]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WeightedLaw:
    """A weighting and the law of times at which it is estimated: build it with `lsgm_mode`. A pytree.

    Attributes:
        law: of the times.
        weighting: of the objective.
        t_min: smallest time.
        official: see `lsgm_mode`.
    """

    law: Any
    weighting: str
    t_min: Any
    official: bool = False

    def sample(self, u: Times) -> TimeDraw:
        """As of `TimeLaw`."""
        return self.law.sample(u)


jax.tree_util.register_dataclass(WeightedLaw, ["law", "t_min"], ["weighting", "official"])


def lsgm_mode(
    sde: SDE, mode: str = "ll_iw", *, t_min: float = 1e-2, t_max: float = 1.0, official: bool = False
) -> WeightedLaw:
    """One of LSGM's modes for any process, on the host, before anything is compiled.

    Args:
        sde: the process, not traced.
        mode: "<weighting>_uniform" or "<weighting>_iw", of any weighting in `weighting.WEIGHTINGS`; the published ones
            are of ll, drop_all, drop_sigma2t and rescale.
        t_min: cut-off, `time_eps`: LSGM takes 0.01 for VP and 0 where sigma2_0 > 0.
        t_max: end of the range.
        official: as published, which differs in that uniform times estimate the mean over [t_min, 1] rather than the
            integral (1% less at t_min = 0.01); sub-VP takes VP's times (`iw_subvp_like_vp_sde`); "rescale_iw" draws
            uniform times, and for VE has the weight 1 / (1 - sigma_t^2); the norm of "drop_all_iw" has
            exp(beta_min / (2 slope)) for exp(beta_min^2 / (2 slope)), slope = beta_max - beta_min (0.2% more).

    Raises:
        ValueError: an unknown mode, a range that is none, or t_min = 0 for a process without sigma2_0.

    Examples:
        >>> law = objectives.lsgm_mode(sdes.vp(), "ll_uniform", t_min=0.2)
        >>> t, weight = law.sample(jnp.array([0.5]))
        >>> law.weighting, round(float(t[0]), 3), round(float(weight[0]), 3)  # an integral over 0.8 of time
        ('ll', 0.6, 0.8)
    """
    weighting, _, how = mode.rpartition("_")
    if weighting not in WEIGHTINGS or how not in ("uniform", "iw"):
        names = ", ".join(f"{name}_uniform, {name}_iw" for name in WEIGHTINGS)
        raise InputError(f"mode must be one of {names}, not {mode!r}.")
    _check_range(t_min, t_max)
    _check_untraced(sde)
    if t_min == 0 and (sde.k > 1 or not float(sde.initial_variance()) > 0):
        raise InputError(
            "t_min = 0 needs a process of one variable with sigma2_0 > 0: the weight is infinite at t = 0."
        )
    with jax.ensure_compile_time_eval():
        if how == "uniform" or (official and weighting == "rescale"):
            edges = np.array([t_min, t_max])
            law: TimeLaw = EqualBins(edges=edges, widths=np.diff(edges), integral=not official)
        else:
            law = _importance_of_normal_data(sde, weighting, t_min, t_max, official)
    return WeightedLaw(law=law, weighting=weighting, t_min=t_min, official=official)


def _importance_of_normal_data(sde: SDE, weighting: str, t_min: float, t_max: float, official: bool) -> TimeLaw:
    if official and isinstance(sde, SubVP):
        sde = recipe(D=[[0.5]], Q=[[0.0]], schedule=sde.schedule, sigma2_0=sde.sigma2_0, name="vp")
    kind = _clock.SAME.get(weighting, weighting)
    if not _clock.has_clock(sde, kind):
        return _tabulate(sde, weighting, t_min, t_max)
    with jax.enable_x64(True):  # the ends once, in float64
        wide = jax.tree.map(lambda leaf: np.array(leaf, np.float64), sde)
        low, high = np.asarray(_clock.clock(wide, kind, jnp.asarray([t_min, t_max])), np.float64)
        share = _clock.official_norm(wide) if official and weighting == "drop_all" and not isinstance(sde, VE) else 1.0
    return Clock(sde=sde, weighting=kind, t_min=t_min, t_max=t_max, low=low, high=high, share=share)


@functools.partial(jax.jit, static_argnames="weighting")
def normal_data_loss(sde: SDE, t: Times, weighting: str) -> PerExample:
    """The weighted squared error of the exact score of normal data, per latent variable. (batch,) -> (batch,)."""
    kernel = sde.transition(t)
    first = sde.initial_variance()
    if linalg.is_concrete(first) and not first < 1:
        first = 0.0
    inverse = jnp.swapaxes(kernel.inverse_transpose, 1, 2)
    w = jnp.sqrt(1 - first) * linalg.matmul(inverse, kernel.mean[:, :, :1])
    return weighted_square(sde, t, sde.restrict(w), weighting)[:, 0] / (1 + jnp.sum(w**2, axis=(1, 2)))


def _tabulate(sde: SDE, weighting: str, t_min: float, t_max: float) -> EqualBins:
    low = max(t_min, _FINEST)
    grid = np.unique(np.concatenate([np.geomspace(low, t_max, 2048), np.linspace(low, t_max, 2048), [t_min, t_max]]))
    grid = grid[(grid >= t_min) & (grid <= t_max)]
    values = normal_data_loss(sde, jnp.asarray(np.maximum(grid, low), jnp.float32), weighting)
    values = np.nan_to_num(np.maximum(np.asarray(values, np.float64), 0.0), posinf=0.0)
    cdf = np.concatenate([[0.0], np.cumsum(0.5 * (values[1:] + values[:-1]) * np.diff(grid))])
    cdf = (1 - DEFENSIVE) * cdf / cdf[-1] + DEFENSIVE * (grid - t_min) / (t_max - t_min)
    edges = np.interp(np.linspace(0, 1, BINS + 1), cdf, grid)
    edges[0], edges[-1] = t_min, t_max
    return EqualBins(edges=edges, widths=np.diff(edges), integral=True)
