"""Noise schedules: the rate beta(t) >= 0 of a process and its integral, the process's own clock.

Reference: Song et al. 2021, app. C (linear beta); conventions differ between papers, see the constructors of
`sgmjax.sdes` (the second number is an end value here, as in score_sde and PSLD; it is a slope in CLD and gDDIM).
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Numbers


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinearSchedule:
    """beta(t) = beta_min + t (beta_max - beta_min) on t in [0, 1]. Equal ends give a constant rate."""

    beta_min: Any
    beta_max: Any

    def beta(self, t: Numbers) -> Numbers:
        """Noise rate at t, same shape as t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Numbers) -> Numbers:
        """B(t), the integral of beta from 0 to t."""
        return self.between(0.0, t)

    def between(self, s: Numbers, t: Numbers) -> Numbers:
        """The integral of beta from s to t, without cancellation when s is near t."""
        return (t - s) * (self.beta_min + 0.5 * (s + t) * (self.beta_max - self.beta_min))

    def inverse(self, B: Numbers) -> Numbers:
        """The time t at which integral(t) = B, for 0 <= B <= integral(1)."""
        slope = self.beta_max - self.beta_min
        square = self.beta_min**2 + 2 * slope * B
        positive = square > 0  # zero at B = 0 of a rate that starts there
        return jnp.where(positive, 2 * B / (self.beta_min + jnp.sqrt(jnp.where(positive, square, 1.0))), 0.0)


jax.tree_util.register_dataclass(LinearSchedule, ["beta_min", "beta_max"], [])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GeometricSchedule:
    """The rate under which VP's kernel variance grows geometrically. Build it with `geometric`.

    e^{-B(t)} = 1 - start (R^t - 1) = end + (1 + start - end) (1 - R^{t-1}),  R = e^log_ratio.

    Both forms are sums of numbers of one sign where they are used, small t and large t, so that neither B nor e^{-B}
    cancels in float32.

    Attributes:
        start: variance's growth factor at t = 0.
        end: e^{-B(1)}, kept apart because it is small.
        log_ratio: log R.

    Reference: Vahdat et al. 2021, app. B.3 ("geometric VPSDE").
    """

    start: Any
    end: Any
    log_ratio: Any

    def _rise(self, s, t):
        """e^{-B(s)} - e^{-B(t)}, without cancellation."""
        xp = _numpy_of(self.start, s, t)
        return self.start * xp.exp(s * self.log_ratio) * xp.expm1((t - s) * self.log_ratio)

    def _decay(self, t):
        """e^{-B(t)}, to a rounding also near its end."""
        xp = _numpy_of(self.start, t)
        near_end = self.end - (1 + self.start - self.end) * xp.expm1((t - 1) * self.log_ratio)
        return xp.where(t < 0.5, 1 - self._rise(0.0, t), near_end)

    def beta(self, t: Numbers) -> Numbers:
        """Noise rate at t, same shape as t."""
        xp = _numpy_of(self.start, t)
        return self.start * self.log_ratio * xp.exp(t * self.log_ratio) / self._decay(t)

    def integral(self, t: Numbers) -> Numbers:
        """B(t), the integral of beta from 0 to t."""
        return self.between(0.0, t)

    def between(self, s: Numbers, t: Numbers) -> Numbers:
        """The integral of beta from s to t, without cancellation when s is near t."""
        xp = _numpy_of(self.start, s, t)
        share = self._rise(s, t) / self._decay(s)  # 1 - e^{-(B(t) - B(s))}
        small = share < 0.5
        far = xp.log(self._decay(s)) - xp.log(self._decay(t))
        return xp.where(small, -xp.log1p(-xp.where(small, share, 0.0)), far)

    def inverse(self, B: Numbers) -> Numbers:
        """The time t at which integral(t) = B, for 0 <= B <= integral(1)."""
        xp = _numpy_of(self.start, B)
        return xp.log1p(-xp.expm1(-B) / self.start) / self.log_ratio


jax.tree_util.register_dataclass(GeometricSchedule, ["start", "end", "log_ratio"], [])

Schedule: TypeAlias = LinearSchedule | GeometricSchedule


def geometric(*, sigma2_min: float, sigma2_max: float, sigma2_0: float) -> GeometricSchedule:
    """The schedule under which VP's variance is sigma2_min (sigma2_max / sigma2_min)^t - sigma2_min + sigma2_0.

    Args:
        sigma2_min, sigma2_max: ends of the geometric progression.
        sigma2_0: variance of the kernel at t = 0.

    Raises:
        ValueError: unless 0 < sigma2_min < sigma2_max, sigma2_0 >= 0 and the variance stays below 1.
    """
    low, high, first = float(sigma2_min), float(sigma2_max), float(sigma2_0)
    if not 0 < low < high:
        raise InputError(f"sigma2_min = {low:g} must be positive and below sigma2_max = {high:g}.")
    if not first >= 0 or not high - low + first < 1:
        raise InputError(
            f"the variance goes from sigma2_0 = {first:g} to sigma2_max - sigma2_min + sigma2_0 = "
            f"{high - low + first:g}: it must start at 0 or above and end below 1."
        )
    room = 1 - first
    return GeometricSchedule(start=low / room, end=(1 - high + low - first) / room, log_ratio=float(np.log(high / low)))


def _numpy_of(*values):
    """numpy for host numbers, whose float64 is kept; jax.numpy as soon as one value is JAX's."""
    return jnp if any(isinstance(v, jax.Array) for v in values) else np
