"""How training times are drawn: uniformly, from a density that flattens the loss over t, or at discrete noise levels.

A `TimeSampler` (or `DiscreteTimes`) is a pytree; `sample(u)` turns uniform numbers into times and the importance
weights that keep the expectation of the loss that of uniform sampling.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax.objectives.score_matching import Weighting, expected_loss
from sgmjax.sdes import SDE, level_times
from sgmjax.sdes.base import Matching


class TimeDraw(NamedTuple):
    t: Any  # (batch,)
    weight: Any  # (batch,), uniform density / proposal density


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TimeSampler:
    """Piecewise-uniform density over t: bins between `edges`, of cumulative probability `cdf` (both (n + 1,))."""

    edges: Any
    cdf: Any

    def sample(self, u) -> TimeDraw:
        """Inverse CDF. u: (batch,) uniform on [0, 1)."""
        edges, cdf = jnp.asarray(self.edges, u.dtype), jnp.asarray(self.cdf, u.dtype)
        i = jnp.clip(jnp.searchsorted(cdf, u, side="right") - 1, 0, cdf.shape[0] - 2)
        low, width, mass = edges[i], edges[i + 1] - edges[i], cdf[i + 1] - cdf[i]
        t = low + jnp.clip((u - cdf[i]) / mass, 0.0, 1.0) * width
        return TimeDraw(t, width / (mass * (edges[-1] - edges[0])))

    def draw(self, key, batch: int, dtype=jnp.float32) -> TimeDraw:
        """`sample` of fresh uniform numbers."""
        return self.sample(jax.random.uniform(key, (batch,), dtype))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DiscreteTimes:
    """One of `times` (n,), all equally likely."""

    times: Any

    def sample(self, u) -> TimeDraw:
        """Inverse CDF. u: (batch,) uniform on [0, 1)."""
        times = jnp.asarray(self.times, u.dtype)
        index = jnp.minimum((u * len(times)).astype(jnp.int32), len(times) - 1)
        return TimeDraw(times[index], jnp.ones_like(u))

    def draw(self, key, batch: int, dtype=jnp.float32) -> TimeDraw:
        """`sample` of fresh uniform numbers."""
        return self.sample(jax.random.uniform(key, (batch,), dtype))


Times: TypeAlias = TimeSampler | DiscreteTimes

jax.tree_util.register_dataclass(TimeSampler, ["edges", "cdf"], [])
jax.tree_util.register_dataclass(DiscreteTimes, ["times"], [])


def _check_range(t_min: float, t_max: float) -> None:
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(f"t_min = {t_min:g}, t_max = {t_max:g}: need 0 <= t_min < t_max <= 1.")


def uniform(t_min: float = 1e-5, t_max: float = 1.0) -> TimeSampler:
    """t uniform on [t_min, t_max]; all weights 1."""
    _check_range(t_min, t_max)
    return TimeSampler(edges=np.array([t_min, t_max]), cdf=np.array([0.0, 1.0]))


def levels(num_levels: int) -> DiscreteTimes:
    """The times at which VE has the noise levels of its sigma_dist, as NCSN and NCSNv2: see `sdes.noise_levels`."""
    return DiscreteTimes(times=level_times(num_levels))


def importance(
    sde: SDE,
    *,
    weighting: Weighting = "likelihood",
    matching: Matching = "hsm",
    t_min: float = 1e-5,
    t_max: float = 1.0,
    bins: int = 1000,
    anneal_power: float = 2.0,
) -> TimeSampler:
    """Density proportional to the loss of a network whose eps is off by unit noise, for any process and weighting.

    For VP and the likelihood weighting this is g^2 / sigma^2, the proposal of Song et al. 2021b (app. B) and Vahdat et
    al. 2021 (sec. 3.3), which they invert in closed form; here the CDF is tabulated on log-spaced bins and inverted
    numerically. The weights use the tabulated density, so the estimate stays unbiased whatever the bins.
    """
    _check_range(t_min, t_max)
    if t_min == 0:
        raise ValueError("importance sampling of t needs t_min > 0: the density diverges at 0. Try t_min=1e-5.")
    edges = np.geomspace(t_min, t_max, bins + 1)
    edges[0], edges[-1] = t_min, t_max
    middle = np.sqrt(edges[1:] * edges[:-1])
    density = expected_loss(sde, jnp.asarray(middle, jnp.float32), weighting, matching, anneal_power)
    mass = np.asarray(density, dtype=np.float64) * np.diff(edges)
    cdf = np.concatenate([[0.0], np.cumsum(mass)])
    return TimeSampler(edges=edges, cdf=cdf / cdf[-1])
