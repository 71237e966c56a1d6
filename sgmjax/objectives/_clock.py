"""Clocks: c(t) with a known inverse, whose slope is the weighted error of the exact score of normal data.

Times at which c is uniform have the density that `time_law.lsgm_mode` wants for its "_iw" modes. VP with a linear or a
geometric rate has such clocks for `ll`, `drop_sigma2t` and (linear) `drop_all`, and VE for `ll`, `drop_sigma2t` and
(geometric) `drop_all`; so have the weightings that for one variable are multiples of these, `SAME`.

Reference: Vahdat et al. 2021, app. B.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import erf, erfinv

from sgmjax._types import Times
from sgmjax.sdes import SDE, VE, LinearSchedule, Recipe

SAME = {
    "likelihood": "ll", "reweightedv1": "drop_sigma2t", "simple": "drop_all", "reweightedv2": "drop_all",
    "annealed": "drop_all",
}  # fmt: skip


def _gaussian_bell(sde):
    """VP's e^{-B} is exp(beta_min b / 2) exp(-(a (t + b))^2); returns a, b and the first factor."""
    slope = sde.schedule.beta_max - sde.schedule.beta_min
    a, b = jnp.sqrt(0.5 * slope), sde.schedule.beta_min / slope
    return a, b, jnp.exp(0.5 * sde.schedule.beta_min * b)


def clock(sde: Any, weighting: str, t: Times) -> Any:
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


def slope(sde: Any, weighting: str, t: Times) -> Any:
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


def invert(sde: Any, weighting: str, c: Times) -> Any:
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


def has_clock(sde: SDE, weighting: str) -> bool:
    """Whether there is one. weighting: not a key of `SAME`, but its value."""
    if isinstance(sde, VE):
        known = weighting in ("ll", "drop_sigma2t") or (weighting == "drop_all" and sde.sigma_dist == "geometric")
        return known and float(sde.initial_variance()) < 1 and float(sde.sigma_min) < 1
    if not isinstance(sde, Recipe) or sde.k > 1 or sde.numerical_eps or float(sde.Sigma_inf[0, 0]) != 1:
        return False
    if weighting == "drop_all":
        return isinstance(sde.schedule, LinearSchedule) and float(sde.schedule.beta_max) > float(sde.schedule.beta_min)
    return weighting in ("ll", "drop_sigma2t")


def official_norm(sde: Any) -> float:
    """The published norm of drop_all_iw over the right one."""
    low, high = float(sde.schedule.beta_min), float(sde.schedule.beta_max)
    return math.exp(0.5 * low * (1 - low) / (high - low))
