"""How the noise levels are drawn at which a denoiser is trained, and the weight that makes up for it.

    log_normal    log sigma normal (Karras et al. 2022, table 1: mean -1.2, deviation 1.2). Of sigma / (1 + sigma), the
                  time of the straight path, it is the logit-normal law of Esser et al. 2024 (mean 0, deviation 1).
    log_uniform   log sigma uniform between two levels.
    of_process    the noise levels of a process at times of a `time_law`.

A law knows the range it covers: a denoiser asked beyond it was not trained for what it is asked.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError, shown
from sgmjax._ranges import FINITE, check_range
from sgmjax._types import DType, Key
from sgmjax.objectives.time_law import TimeLaw, at_least_float32, check_time_law
from sgmjax.sdes import SDE, linalg, noise_level

COVERED = 4.9  # standard deviations of log sigma: all but one draw in a million


class SigmaDraw(NamedTuple):
    sigma: Any  # (batch,)
    weight: Any  # (batch,), multiplies the loss


class SigmaLaw(abc.ABC):
    """A distribution of noise levels; a pytree."""

    @abc.abstractmethod
    def draw(self, key: Key, batch: int, dtype: DType = jnp.float32) -> SigmaDraw:
        """Noise levels (batch,), of `dtype` or float32 if that is narrower."""

    @property
    @abc.abstractmethod
    def range(self) -> tuple[float, float]:
        """The lowest and the highest level that training sees; on the host."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LogNormal(SigmaLaw):
    """See `log_normal`."""

    mean: Any
    std: Any

    def draw(self, key: Key, batch: int, dtype: DType = jnp.float32) -> SigmaDraw:
        sigma = jnp.exp(self.mean + self.std * jax.random.normal(key, (batch,), at_least_float32(dtype)))
        return SigmaDraw(sigma, jnp.ones_like(sigma))

    @property
    def range(self) -> tuple[float, float]:
        low, high = (float(self.mean) + side * float(self.std) for side in (-COVERED, COVERED))
        return math.exp(low), math.exp(high)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LogUniform(SigmaLaw):
    """See `log_uniform`."""

    sigma_min: Any
    sigma_max: Any

    def draw(self, key: Key, batch: int, dtype: DType = jnp.float32) -> SigmaDraw:
        dtype = at_least_float32(dtype)
        low, high = jnp.log(jnp.asarray(self.sigma_min, dtype)), jnp.log(jnp.asarray(self.sigma_max, dtype))
        sigma = jnp.exp(low + (high - low) * jax.random.uniform(key, (batch,), dtype))
        return SigmaDraw(sigma, jnp.ones_like(sigma))

    @property
    def range(self) -> tuple[float, float]:
        return float(self.sigma_min), float(self.sigma_max)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OfProcess(SigmaLaw):
    """See `of_process`."""

    sde: SDE
    time_law: TimeLaw

    def draw(self, key: Key, batch: int, dtype: DType = jnp.float32) -> SigmaDraw:
        t, weight = self.time_law.draw(key, batch, dtype)
        return SigmaDraw(noise_level(self.sde, t), weight)

    @property
    def range(self) -> tuple[float, float]:
        with jax.ensure_compile_time_eval():
            ends = self.time_law.sample(jnp.asarray([0.0, np.nextafter(np.float32(1), np.float32(0))])).t
            low, high = np.sort(np.asarray(noise_level(self.sde, ends)))
        return float(low), float(high)


jax.tree_util.register_dataclass(LogNormal, ["mean", "std"], [])
jax.tree_util.register_dataclass(LogUniform, ["sigma_min", "sigma_max"], [])
jax.tree_util.register_dataclass(OfProcess, ["sde", "time_law"], [])


def check_sigma_law(sigma_law: Any) -> None:
    """Checks that it draws noise levels.

    Raises:
        InputError: a name, or a law of times.
    """
    if not (hasattr(sigma_law, "draw") and hasattr(sigma_law, "range")):
        raise InputError(
            f"sigma_law: expected a law of noise levels, objectives.log_normal() say, got {shown(repr(sigma_law))}; "
            "objectives.of_process makes one of a law of times"
        )


def log_normal(mean: float = -1.2, std: float = 1.2) -> LogNormal:
    """log sigma ~ N(mean, std^2). Defaults: Karras et al. 2022.

    Raises:
        InputError: a deviation that is not positive.

    Examples:
        >>> sigma, weight = objectives.log_normal(mean=-1.2, std=1.2).draw(jax.random.key(0), 3)
        >>> sigma.shape, weight.tolist()
        ((3,), [1.0, 1.0, 1.0])
    """
    check_range(mean, FINITE, "mean")
    check_range(std, FINITE, "std")
    if linalg.is_concrete(std) and not std > 0:
        raise InputError(f"std = {std:g}: the deviation of log sigma must be positive.")
    return LogNormal(mean=mean, std=std)


def log_uniform(sigma_min: float = 0.002, sigma_max: float = 80.0) -> LogUniform:
    """log sigma uniform between two levels. Defaults: the range in which EDM samples.

    Raises:
        InputError: unless 0 < sigma_min < sigma_max.

    Examples:
        >>> law = objectives.log_uniform(0.01, 100.0)
        >>> law.range
        (0.01, 100.0)
        >>> sigma, weight = law.draw(jax.random.key(0), 100)
        >>> bool((sigma > 0.0099).all() and (sigma < 100.01).all())
        True
    """
    check_range(sigma_min, FINITE, "sigma_min")
    check_range(sigma_max, FINITE, "sigma_max")
    if linalg.is_concrete(sigma_min, sigma_max) and not 0 < sigma_min < sigma_max:
        raise InputError(f"sigma_min = {sigma_min:g} must be positive and below sigma_max = {sigma_max:g}.")
    return LogUniform(sigma_min=sigma_min, sigma_max=sigma_max)


def of_process(sde: SDE, time_law: TimeLaw) -> OfProcess:
    """The noise levels (`sdes.noise_level`) that the process has at times of the law.

    Raises:
        InputError: a time_law that is none.

    Examples:
        >>> law = objectives.of_process(sdes.ve(sigma_min=0.01, sigma_max=100.0), objectives.uniform(t_min=0.5))
        >>> low, high = law.range
        >>> round(low, 2), round(high, 2)
        (1.0, 100.0)
    """
    check_time_law(time_law)
    return OfProcess(sde=sde, time_law=time_law)
