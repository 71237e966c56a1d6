"""Restart: on the way down, back up by the forward process and down again, in chosen intervals of noise levels.

    restart(samplers.edm, key, score_fn, sde, shape, times=times, intervals=[(3, 2, 0.06, 0.3)])

A deterministic sampler makes small errors of discretisation and keeps those of the network; noise makes it forget both.
Restart puts much of it in at once: from the level `low` the state goes up to the level `high` by the process itself,
z_t given z_s, and down again in few steps, so many times. What is contracted is the difference between the law of the
samples and the true one, by the overlap of two laws at `high` (Xu et al. 2023, theorem 2).

It acts on any sampler that steps through a grid, for any process: every way down is a run of that sampler between two
levels, which starts without memory. In the levels of one variable going up is adding sqrt(high^2 - low^2) of noise, as
published.

Reference: Xu et al. 2023, "Restart sampling for improving generative processes", alg. 1 and app. B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, HostGrid, Key, Samples, ScoreFn, Shape, State, TimeGrid
from sgmjax.samplers.common import Denoise, SampleInfo, check_known, check_times, diffuse_back, plan_visits
from sgmjax.samplers.declaration import declaration, own_settings
from sgmjax.samplers.grids import host_noise_level, host_time_at
from sgmjax.sdes import SDE, linalg

RHO = 7.0  # of the grids of the restarts, as published


class Interval(NamedTuple):
    """Where and how often the samples go back up, in the order of the official program.

    Attributes:
        levels: noise levels of the way down, both ends included: levels - 1 steps.
        repeats: how many times.
        low: noise level from which they go up; of the grid's levels the nearest is taken.
        high: noise level to which they go up.
    """

    levels: int
    repeats: int
    low: float
    high: float


Intervals = Sequence[Interval | Sequence[float]]


def restart(
    sampler: Callable[..., Any],
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    intervals: Intervals,
    S_noise: float = 1.0,
    denoise: Denoise | None = None,
    jump_noise: Float[AnyArray, "jumps batch k *event"] | None = None,
    initial: Any = None,
    trajectory: bool = False,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample with restarts.

    Args:
        sampler: any of `samplers.SAMPLERS` that steps through a grid; `edm` is the published one.
        key, score_fn, sde, shape, times, initial: as the sampler's; the parameters of sde must be known.
        intervals: an `Interval` each, (levels, repeats, low, high).
        S_noise: standard deviation of what takes the states up, in units of the process's; published with 1.003.
        denoise: as the sampler's; None: its own default.
        jump_noise: (number of jumps, batch, k, *event), what takes the states up, in order; None draws it. The
            sampler's own noise, if any, follows from the key.
        trajectory: keep all states, those after a jump among them: (steps + jumps + 1, batch, k, *event).
        progress: called on the host with the number of finished steps, after each way down.
        options: the sampler's own settings and what it hands on (`constraint`, `sharding`, `dtype`).

    Returns:
        samples (batch, *event) and a `SampleInfo`, whose nfe has the restarts in it.

    Raises:
        ValueError: an adaptive sampler, intervals that cannot be, options that are of a whole grid.

    Examples:
        >>> sde = sdes.vp()
        >>> times, intervals = samplers.time_grid("rho", 9, evaluations=2, sde=sde), [(3, 2, 0.5, 2.0)]
        >>> samples, info = samplers.restart(
        ...     samplers.edm, jax.random.key(0), lambda z, t: -z, sde, (3, 2), times=times, intervals=intervals)
        >>> samples.shape, info.nfe  # 9, and twice two steps of two evaluations
        ((3, 2), 17)
    """
    settings = own_settings(sampler) | options
    _check_sampler(sampler, settings)
    times = check_times(times)
    ways = ways_down(sde, times, intervals)
    constraint = options.get("constraint")
    jumps = sum(way.repeats for way in ways)
    dtype = options.get("dtype", jnp.float32)
    expected = (jumps, shape[0], sde.k, *shape[1:])
    check_known(S_noise=S_noise)
    if not S_noise > 0:
        raise InputError(f"S_noise = {S_noise:g}: must be positive.")
    if jump_noise is not None and np.shape(jump_noise) != expected:
        raise InputError(f"jump_noise has shape {np.shape(jump_noise)}, expected {expected} (jumps, batch, k, *event).")

    def down(key, z, grid, last):
        kinds = {} if denoise is None else {"denoise": denoise}
        kinds = kinds if last else {"denoise": False}
        more = {"initial": z, "trajectory": trajectory, "times": grid}
        return sampler(key, score_fn, sde, shape, **options, **more, **kinds)[1]

    def again(z, xs, way):
        key, noise = xs
        key, jump_key = jax.random.split(key)
        noise = jax.random.normal(jump_key, z.shape, dtype) if noise is None else noise
        low, high = (jnp.asarray(t, dtype) for t in (way.grid[-1], way.grid[0]))
        info = down(key, diffuse_back(sde, z, low, high, S_noise * noise), way.grid, False)
        return info.state, info.trajectory

    z, nfe, finished, path, used = initial, 0, 0, [], 0
    for part, way in enumerate(ways):
        key, part_key, again_key = jax.random.split(key, 3)
        last = part == len(ways) - 1
        info = down(part_key, z, times[way.first : way.last + 1], last)
        z, nfe = info.state, nfe + info.nfe
        finished += len(plan_visits(way.last - way.first, constraint).step)
        path += [] if info.trajectory is None else [info.trajectory if part == 0 else info.trajectory[1:]]
        _report(progress, finished, z)
        if way.repeats:
            noises = None if jump_noise is None else jnp.asarray(jump_noise[used : used + way.repeats], dtype)
            xs = (jax.random.split(again_key, way.repeats), noises)
            z, states = jax.lax.scan(lambda z, xs, way=way: again(z, xs, way), z, xs)
            visits = way.repeats * len(plan_visits(len(way.grid) - 1, constraint).step)
            nfe, finished = nfe + visits * declaration(sampler).evaluations(settings), finished + visits
            path += [] if states is None else [states.reshape(-1, *states.shape[2:])]
            _report(progress, finished, z)
            used += way.repeats
    return z[:, 0], SampleInfo(nfe=nfe, state=z, trajectory=jnp.concatenate(path) if path else None)


class Way(NamedTuple):
    """A part of the grid, and the restarts from its end.

    Attributes:
        first, last: indices of the times where it starts and ends.
        repeats: of the restarts; 0 for the last part.
        grid: times of a restart, from `high` down to the part's end.
    """

    first: int
    last: int
    repeats: int
    grid: HostGrid


def ways_down(sde: SDE, times: TimeGrid, intervals: Intervals) -> list[Way]:
    """The parts of a grid between restarts, the last one without.

    Raises:
        ValueError: intervals that cannot be; a traced process.
    """
    if not linalg.is_concrete(sde):
        raise InputError("restarts are laid out in noise levels: the parameters of the process must be known.")
    times = check_times(times)
    levels = host_noise_level(sde, times)
    found: dict[int, Way] = {}
    for interval in map(_read, intervals):
        end = int(np.argmin(np.abs(levels - interval.low)))
        low, named = levels[end], f"restart {tuple(interval)}"
        if end == len(times) - 1:
            raise InputError(
                f"{named}: the grid's level nearest to low is its last, {low:g}, and sampling must go on from there; "
                "take more steps, or a higher low."
            )
        if end == 0:
            raise InputError(f"{named}: the grid's level nearest to low is its first, {low:g}: take more steps.")
        if not low < interval.high <= levels[0]:
            raise InputError(
                f"{named}: high must lie above {low:g}, the grid's level nearest to low, and at most at its first, "
                f"{levels[0]:g}"
            )
        if end in found:
            raise InputError(f"{named}: another one starts from the same level of the grid, {low:g}; take more steps.")
        u = np.linspace(0.0, 1.0, interval.levels)
        high_root, low_root = interval.high ** (1 / RHO), low ** (1 / RHO)
        inside = (high_root + u * (low_root - high_root)) ** RHO
        grid = host_time_at(sde, inside)
        grid = np.concatenate([grid[:-1], times[end : end + 1]])
        if not (np.diff(grid) < 0).all():
            raise InputError(f"{named}: its {interval.levels} levels have equal times; take fewer, or a higher high.")
        found[end] = Way(0, end, interval.repeats, grid)
    ends = sorted(found)
    ways = [found[end]._replace(first=first) for first, end in zip([0, *ends], ends, strict=False)]
    return [*ways, Way(ends[-1] if ends else 0, len(times) - 1, 0, times[-1:])]


def extra_steps(intervals: Intervals) -> int:
    """Steps that restarts add to those of the grid."""
    return sum((one.levels - 1) * one.repeats for one in map(_read, intervals))


def _check_sampler(sampler: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a sampler that cannot go down a grid in parts, and for options of a whole grid."""
    name, declared = getattr(sampler, "__name__", repr(sampler)), declaration(sampler)
    if declared.adaptive:
        raise InputError(f"{name} chooses its own steps: restarts are for samplers that step through a grid.")
    if not declared.divisible(settings):
        raise InputError(
            f"{name} cannot be restarted with these settings, which are of the grid as a whole (edm's S_churn, pc's "
            "num_scales, the levels of annealed_langevin)."
        )
    for option in ("coefficients", "noise"):
        if settings.get(option) is not None:
            raise InputError(f"{option} is of one way down a grid; with restarts leave it out.")


def _report(progress: Callable[[int], None] | None, finished: int, z: State) -> None:
    """Tells of the finished steps once z is there."""
    if progress is not None:
        jax.debug.callback(lambda count, z: progress(count), finished, z[(0,) * z.ndim])


def _read(interval: Interval | Sequence[float]) -> Interval:
    values = tuple(interval)
    if len(values) != 4 or any(v != int(v) or v < least for v, least in zip(values[:2], (2, 1), strict=True)):
        raise InputError(
            f"restart {values}: an interval is (levels, repeats, low, high), with 2 levels or more, at least 1 repeat, "
            "and two noise levels, as (3, 2, 0.06, 0.3)"
        )
    if not 0 < values[2] < values[3]:
        raise InputError(f"restart {values}: the noise levels must be positive, low below high.")
    return Interval(int(values[0]), int(values[1]), float(values[2]), float(values[3]))
