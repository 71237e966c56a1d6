"""Noise levels of NCSNv2, by the equations of its paper (techniques 2 and 4), in float64 on the host.

NCSNv2 is the VE process at L discrete noise levels sigma_1 > ... > sigma_L in geometric progression. Since
`sdes.ve` has sigma(t) = sigma_min (sigma_max / sigma_min)^t, the levels are its times

    t_i = 1 - (i - 1) / (L - 1),    sigma_max = sigma_1,  sigma_min = sigma_L,

and with `sdes.ve(sigma_dist="uniform")`, linear in t, the same times are the equally spaced levels of the published
code's `sigma_dist: uniform`. So everything that works for a process and times works for them. How to choose geometric
ones for data of D dimensions:

    technique 1   sigma_1: the largest Euclidean distance between two examples (`sgmjax.metrics.pairwise`).
    technique 2   gamma = sigma_{i-1} / sigma_i so that adjacent levels overlap: a fraction C of the noise of a level
                  has a length within three standard deviations of the next larger one's, `ratio_of_overlap`.
    technique 4   the step size eps of annealed Langevin dynamics, for T steps a level, after which the variance is as
                  near that of the level as it can be, `best_step_size`.

(Technique 3 is the network's division by sigma, technique 5 the averaged parameters.)

Reference: Song & Ermon 2020, "Improved techniques for training score-based generative models", sec. 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Numbers

# Technique 2 asks for C of about a half. The level counts that the authors published and trained with correspond to
# 0.567 for all their data sets. That is the default here: it is what their results were measured with, and it errs to
# the safe side, with 6% more levels.
PUBLISHED_OVERLAP = 0.567
PAPER_OVERLAP = 0.5

_LEAST = 1e-18
SMALLEST_DIMENSION = 5  # technique 2 has no solution below


# ---- levels and times


def geometric_levels(sigma_max: float, sigma_min: float, num_levels: int) -> Float[np.ndarray, " levels"]:
    """sigma_1 = sigma_max, ..., sigma_L = sigma_min with a constant ratio. (L,), decreasing.

    Raises:
        ValueError: unless sigma_max > sigma_min > 0; fewer than two levels.

    Examples:
        >>> sdes.geometric_levels(8.0, 1.0, 4).round(6).tolist()
        [8.0, 4.0, 2.0, 1.0]
    """
    _check_ends(sigma_max, sigma_min)
    times = level_times(num_levels)
    return np.exp(np.log(sigma_min) + times * (np.log(sigma_max) - np.log(sigma_min)))


def uniform_levels(sigma_max: float, sigma_min: float, num_levels: int) -> Float[np.ndarray, " levels"]:
    """sigma_1 = sigma_max, ..., sigma_L = sigma_min, equally spaced. (L,), decreasing.

    Raises:
        ValueError: as `geometric_levels`.

    Examples:
        >>> sdes.noise_levels.uniform_levels(8.0, 2.0, 4).tolist()
        [8.0, 6.0, 4.0, 2.0]
    """
    _check_ends(sigma_max, sigma_min)
    level_times(num_levels)  # checks the number
    return np.linspace(sigma_max, sigma_min, num_levels)


LEVELS = {"geometric": geometric_levels, "uniform": uniform_levels}  # by sigma_dist


def level_times(num_levels: int) -> Float[np.ndarray, " levels"]:
    """The times t_1 = 1, ..., t_L = 0 at which `sdes.ve` has the noise levels of its sigma_dist. (L,), decreasing.

    Raises:
        ValueError: fewer than two levels.

    Examples:
        >>> times = sdes.level_times(5)
        >>> times.tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
        >>> sde = sdes.ve(sigma_min=1.0, sigma_max=16.0)
        >>> [round(float(sigma), 3) for sigma in sde.sigma(times)]
        [16.0, 8.0, 4.0, 2.0, 1.0]
    """
    if num_levels < 2:
        raise InputError(f"num_levels = {num_levels}: annealing needs at least two noise levels.")
    return np.linspace(1.0, 0.0, num_levels)


def times_of_levels(sigmas: Sequence[float] | Real[AnyArray, " levels"]) -> Float[np.ndarray, " levels"]:
    """The times at which the geometric `sdes.ve(sigma_max=sigmas[0], sigma_min=sigmas[-1])` has any given levels.

    Args:
        sigmas: (L,), positive and decreasing.

    Returns:
        (L,), from 1 to 0.

    Raises:
        ValueError: levels that do not decrease, or are not positive; fewer than two.

    Examples:
        >>> sdes.noise_levels.times_of_levels([16.0, 8.0, 2.0, 1.0]).round(6).tolist()
        [1.0, 0.75, 0.25, 0.0]
    """
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise InputError(f"sigmas has shape {sigmas.shape}: give at least two noise levels, as a 1-D array.")
    if not (np.isfinite(sigmas).all() and sigmas[-1] > 0 and (np.diff(sigmas) < 0).all()):
        raise InputError("sigmas must be positive and decrease, from sigma_1 to sigma_L.")
    times = np.log(sigmas / sigmas[-1]) / np.log(sigmas[0] / sigmas[-1])
    times[0], times[-1] = 1.0, 0.0
    return times


# ---- technique 2: the ratio of adjacent levels


def overlap(ratio: float, dimension: float) -> float:
    """C, the fraction of the noise of a level that lies where the next larger level's noise does.

    The length of sigma times D-dimensional noise is nearly N(sqrt(D) sigma, sigma^2 / 2); C is the mass of the smaller
    level within three standard deviations of the larger one's mean,

        Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma).

    Args:
        ratio: gamma > 1.
        dimension: D, numbers in one example.

    Reference: Song & Ermon 2020, technique 2.

    Examples:
        >>> ratio = sdes.noise_levels.ratio_of_levels(50.0, 0.01, 232)  # the published levels for CIFAR-10
        >>> round(sdes.noise_levels.overlap(ratio, 32 * 32 * 3), 3)
        0.567
    """
    return _overlap(float(ratio) - 1.0, math.sqrt(2 * dimension))


def _overlap(excess: float, root: float) -> float:
    """The same in gamma - 1 and sqrt(2 D); a difference of upper tails, so that a small C keeps its digits."""
    shift, width = root * excess, 3 * (1 + excess)
    return float(ndtr(width - shift) - ndtr(-width - shift))


def ratio_of_overlap(dimension: float, overlap: float = PUBLISHED_OVERLAP) -> float:
    """gamma > 1 at which adjacent levels overlap by C = `overlap`.

    With s = sqrt(2 D), C rises from 0.9973 at gamma = 1 to a maximum where 6 s gamma (gamma - 1) =
    log((s + 3) / (s - 3)), and then falls to 0: the root sought is the one beyond the maximum. For s <= 3 (D <= 4)
    C only rises: however far apart the levels are, they overlap.

    Args:
        dimension: D.
        overlap: C in (0, 1); see `PUBLISHED_OVERLAP` and `PAPER_OVERLAP`.

    Raises:
        ValueError: D <= 4, with the ratio of the nearest D that has one; C that is not reached.

    Reference: Song & Ermon 2020, technique 2.

    Examples:
        >>> ratio = sdes.noise_levels.ratio_of_overlap(32 * 32 * 3)
        >>> round(sdes.noise_levels.overlap(ratio, 32 * 32 * 3), 3)
        0.567
        >>> sdes.noise_levels.levels_of_ratio(50.0, 0.01, ratio)  # as published for CIFAR-10
        232
    """
    if not 0 < overlap < 1:
        raise InputError(f"overlap = {overlap:g}: must lie between 0 and 1; the paper says 0.5, published are 0.567.")
    if not (np.isfinite(dimension) and dimension >= 1):
        raise InputError(f"dimension = {dimension:g}: the numbers in one example, at least 1.")
    root = math.sqrt(2 * dimension)
    if dimension < SMALLEST_DIMENSION and not root > 3:
        raise InputError(
            f"dimension = {dimension:g}: technique 2 has no solution for D <= 4, where levels at any ratio overlap by "
            f"more than 0.9973; the nearest ratio is that of D = {SMALLEST_DIMENSION}, "
            f"{ratio_of_overlap(SMALLEST_DIMENSION, overlap):.4g}."
        )
    # where the overlap is largest: the positive solution of 6 s x (1 + x) = log((s + 3) / (s - 3)), x = gamma - 1
    peak = math.log((root + 3) / (root - 3)) / (6 * root)
    low = 2 * peak / (1 + math.sqrt(1 + 4 * peak))
    # C < Phi(3 gamma - s (gamma - 1)), which is the overlap asked for just before:
    high = 1.001 * (3 - float(ndtri(overlap))) / (root - 3)
    if high <= low or _overlap(low, root) <= overlap:
        raise InputError(f"overlap = {overlap:g}: levels of {dimension:g} dimensions overlap by less at any ratio.")
    excess = brentq(lambda x: _overlap(x, root) - overlap, low, high, xtol=1e-300, rtol=4 * np.finfo(float).eps)
    return 1.0 + float(excess)  # type: ignore[arg-type]


def levels_of_ratio(sigma_max: float, sigma_min: float, ratio: float) -> int:
    """L: how many levels `ratio` apart there are from sigma_max down to sigma_min, both included. At least 2.

    Rounded down: with `PUBLISHED_OVERLAP` it gives the published counts of all data sets (232, 500, 788, 1086, 2311).

    Examples:
        >>> sdes.noise_levels.levels_of_ratio(8.0, 1.0, 2.0)  # 8, 4, 2, 1
        4
    """
    _check_ends(sigma_max, sigma_min)
    if not ratio > 1:
        raise InputError(f"ratio = {ratio:g}: must be above 1.")
    spans = (math.log(sigma_max) - math.log(sigma_min)) / math.log(ratio)
    return max(2, 1 + math.floor(spans * (1 + 1e-12)))  # a whole number of spans stays whole


def ratio_of_levels(sigma_max: float, sigma_min: float, num_levels: int) -> float:
    """gamma of so many geometric levels.

    Examples:
        >>> round(sdes.noise_levels.ratio_of_levels(8.0, 1.0, 4), 6)  # 8, 4, 2, 1
        2.0
    """
    _check_ends(sigma_max, sigma_min)
    level_times(num_levels)  # checks the number
    return math.exp((math.log(sigma_max) - math.log(sigma_min)) / (num_levels - 1))


# ---- technique 4: the step size


def variance_ratio(step_size: Numbers, *, sigma_min: float, ratio: float, steps: int) -> Numbers:
    """s_T^2 / sigma_i^2: the variance after a level of annealed Langevin dynamics, over that of the level.

    For data that are one point: T steps at sigma_i from N(0, sigma_{i-1}^2). With alpha = eps / sigma_L^2,

        (1 - alpha)^{2T} (gamma^2 - b) + b,    b = 2 eps / (sigma_L^2 - sigma_L^2 (1 - alpha)^2) = 2 / (2 - alpha).

    It is above 1 for every eps, since b > 1.

    Args:
        step_size: eps, a number or an array.
        sigma_min: sigma_L.
        ratio: gamma = sigma_{i-1} / sigma_i.
        steps: T.

    Raises:
        ValueError: a step size that diverges (eps >= 2 sigma_L^2), or is not positive.

    Reference: Song & Ermon 2020, proposition 3 and technique 4.

    Examples:
        >>> ratio = sdes.noise_levels.variance_ratio(0.5, sigma_min=1.0, ratio=2.0, steps=1)
        >>> round(float(ratio), 6)  # a step x <- x / 2 + n, from variance 4
        2.0
    """
    alpha = np.asarray(step_size, np.float64) / sigma_min**2
    if not (alpha > 0).all():
        raise InputError(f"step_size = {np.min(step_size):g}: must be positive.")
    check_step(float(np.max(alpha)), float(np.max(step_size)))
    limit = 2 / (2 - alpha)
    return (1 - alpha) ** (2 * steps) * (ratio**2 - limit) + limit


def best_step_size(*, sigma_min: float, ratio: float, steps: int) -> float:
    """eps whose `variance_ratio` is nearest to 1. See there for the arguments.

    The ratio of variances has one stationary point: with q = (1 - alpha)^{2T}, its derivative vanishes where
    2 T (1 - alpha)^{2T-1} (gamma^2 - b) = (1 - q) b', whose left side falls and right side rises on (0, 1) (and beyond
    1 the value at 2 - alpha is smaller).

    Examples:
        >>> round(sdes.noise_levels.best_step_size(sigma_min=0.1, ratio=2.0, steps=1), 6)  # 0.1^2 (1 - 1 / 2^2)
        0.0075
    """
    return sigma_min**2 * best_relative_step(ratio, steps)


def best_relative_step(ratio: float, steps: int) -> float:
    """alpha = eps / sigma_L^2 of `best_step_size`, in (0, 1).

    Examples:
        >>> round(sdes.noise_levels.best_relative_step(2.0, steps=1), 6)  # for one step, 1 - 1 / gamma^2
        0.75
    """
    if not ratio > 1:
        raise InputError(f"ratio = {ratio:g}: must be above 1.")
    if steps < 1:
        raise InputError(f"steps_per_level = {steps}: at least 1.")
    power = 2 * steps

    def slope(alpha: float) -> float:
        decay = power * math.log1p(-alpha)  # log q
        push = power * math.exp(decay - math.log1p(-alpha)) * (ratio**2 - 2 / (2 - alpha))
        return push + math.expm1(decay) * 2 / (2 - alpha) ** 2

    top = 1 - 1e-12
    if slope(top) > 0:  # one step from a level a million times as large: to its own, at alpha = 1
        return top
    return float(brentq(slope, 0.0, top, xtol=1e-300, rtol=4 * np.finfo(float).eps))  # type: ignore[arg-type]


def check_step(alpha: float, step_size: float) -> None:
    """Raise ValueError for a step of Langevin dynamics that diverges: alpha = eps / sigma_L^2 of 2 and more.

    On N(0, sigma^2) a step is x <- (1 - alpha) x + noise, with alpha the same at all levels.

    Examples:
        >>> sdes.noise_levels.check_step(0.75, 0.0075)
        >>> sdes.noise_levels.check_step(2.0, 0.02)
        Traceback (most recent call last):
        sgmjax._inputs.InputError: step_size = 0.02: annealed Langevin dynamics diverges ...
    """
    if not alpha < 2:
        raise InputError(
            f"step_size = {step_size:g}: annealed Langevin dynamics diverges at eps >= 2 sigma_L^2 = "
            f"{2 * step_size / alpha:.4g}; technique 4 gives one that does not (leave step_size out)."
        )


def _check_ends(sigma_max: float, sigma_min: float) -> None:
    if 0 < sigma_min < _LEAST:
        raise InputError(
            f"sigma_L = {sigma_min:g} (sigma_min): must be at least {_LEAST:g}, or float32 loses its square."
        )
    if not (np.isfinite(sigma_max) and 0 < sigma_min < sigma_max):
        raise InputError(
            f"sigma_1 = {sigma_max:g} (sigma_max) must be above sigma_L = {sigma_min:g} (sigma_min), both positive."
        )


# ---- all at once


class Recommendation(NamedTuple):
    """What techniques 2 and 4 make of the ends and the dimension.

    Attributes:
        overlap: C that was asked for.
        solution: gamma at which it is reached.
        num_levels: L.
        ratio: gamma of L levels between the ends, a little larger than `solution`.
        steps_per_level: T.
        step_size: eps.
        variance_ratio: what technique 4 brings near 1.
        nearest: None, or the dimension whose `solution` was taken because the data's own has none.
    """

    overlap: float
    solution: float
    num_levels: int
    ratio: float
    steps_per_level: int
    step_size: float
    variance_ratio: float
    nearest: int | None = None


def recommend(
    *,
    sigma_max: float,
    sigma_min: float,
    dimension: int,
    steps_per_level: int = 5,
    overlap: float = PUBLISHED_OVERLAP,
    nearest: bool = False,
) -> Recommendation:
    """Levels and step size for data of `dimension` numbers whose largest distance is `sigma_max`.

    Args:
        sigma_max, sigma_min: sigma_1 and sigma_L.
        dimension: D.
        steps_per_level: T.
        overlap: C.
        nearest: where D is too small for technique 2, take the ratio of the nearest dimension that is not.

    Raises:
        ValueError: sigma_1 not above sigma_L; C or D for which technique 2 has no solution (D: unless `nearest`).

    Examples:
        >>> found = sdes.noise_levels.recommend(sigma_max=50.0, sigma_min=0.01, dimension=32 * 32 * 3)
        >>> found.num_levels, float(f"{found.step_size:.1e}")  # as published for CIFAR-10
        (232, 6.2e-06)
    """
    _check_ends(sigma_max, sigma_min)
    replaced = nearest and dimension < SMALLEST_DIMENSION
    solution = ratio_of_overlap(SMALLEST_DIMENSION if replaced else dimension, overlap)
    num_levels = levels_of_ratio(sigma_max, sigma_min, solution)
    ratio = ratio_of_levels(sigma_max, sigma_min, num_levels)
    ends = {"sigma_min": sigma_min, "ratio": ratio, "steps": steps_per_level}
    step_size = best_step_size(**ends)
    return Recommendation(
        overlap, solution, num_levels, ratio, steps_per_level, step_size, float(variance_ratio(step_size, **ends)),
        SMALLEST_DIMENSION if replaced else None,
    )  # fmt: skip
