"""Noise schedules: the rate beta(t) >= 0 of a process and its integral, the process's own clock.

Reference: Song et al. 2021, app. C (linear beta); conventions differ between papers, see the constructors of
`sgmjax.sdes` (the second number is an end value here, as in score_sde and PSLD; it is a slope in CLD and gDDIM).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinearSchedule:
    """beta(t) = beta_min + t (beta_max - beta_min) on t in [0, 1]. Equal ends give a constant rate."""

    beta_min: Any
    beta_max: Any

    def beta(self, t):
        """Noise rate at t, same shape as t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t):
        """B(t), the integral of beta from 0 to t."""
        return self.between(0.0, t)

    def between(self, s, t):
        """The integral of beta from s to t, without cancellation when s is near t."""
        return (t - s) * (self.beta_min + 0.5 * (s + t) * (self.beta_max - self.beta_min))

    def inverse(self, B):
        """The time t at which integral(t) = B, for 0 <= B <= integral(1)."""
        slope = self.beta_max - self.beta_min
        return 2 * B / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * B))


jax.tree_util.register_dataclass(LinearSchedule, ["beta_min", "beta_max"], [])
