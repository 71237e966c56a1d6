"""Time grids: 1-D, decreasing, float64, computed on the host; some are laid out in the noise level of the process.

That is the sigma(t) of `sdes.estimate`: the noise of the best estimate of x_0 that a state gives. (Noise over mean of
the data variable alone would not do: where the auxiliaries make it oscillate, its mean passes through zero.)
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import HostGrid, TimeGrid
from sgmjax.samplers.common import check_known, check_t_min
from sgmjax.sdes import SDE, linalg, noise_level, time_at_noise_level

Grid = Literal["uniform", "quadratic", "power", "rho", "logsnr", "auto"]
GRIDS = get_args(Grid)

AUTO_GRID = Path(__file__).resolve().parent / "auto_grid.json"  # written by benchmarks/plain_grids.py
_PADDING = 128  # host inversions come in multiples of this size, so that grids of all lengths share a compilation


def time_grid(
    kind: Grid,
    nfe: int,
    *,
    t_min: float = 1e-3,
    denoise: bool = True,
    evaluations: int = 1,
    sde: SDE | None = None,
    rho: float = 7.0,
    power: float = 2.0,
) -> HostGrid:
    """The grid of a fixed-step sampler with a budget of score evaluations.

    Args:
        kind: with u from 0 to 1 in equal steps,
            "uniform": t = 1 - (1 - t_min) u.
            "power": t = t_min + (1 - t_min) (1 - u)^power; with power 2 it is
            "quadratic" (Dockhorn et al. 2022, app. B.4): steps that shrink linearly to the data.
            "rho": sigma^(1/rho) equally spaced, sigma the noise level of `noise_level` (Karras et al. 2022, eq. (5)).
            "logsnr": log sigma equally spaced, the limit of large rho (Lu et al. 2022, DPM-Solver).
            "auto": one step down to a noise level of the data's size, then log sigma equally spaced to where the
            denoising step is to take over: for 4 to 50 evaluations, by the number of variables and of evaluations
            (docs/samplers.md#a-plain-grid). For data of deviation about 1 (0.5 to 1), and denoise="tweedie".
        nfe: score evaluations; the denoising step, if any, takes one of them.
        t_min: where the grid ends, in (0, 1); of "auto", where it ends at the latest, or without `denoise`.
        denoise: whether the sampler will take the denoising step.
        evaluations: how many a step makes. What the budget leaves over after whole steps is not spent.
        sde: the process, for "rho", "logsnr" and "auto"; its parameters must be known, so not those of a function
            being jitted.
        rho: exponent of "rho", positive; 7 is the paper's.
        power: exponent of "power", positive.

    Returns:
        float64 array from 1 down to t_min, with nfe + 1 entries (nfe if denoise) at one evaluation a step.

    Raises:
        ValueError: for an nfe that leaves no step, a t_min outside (0, 1), an unknown kind, an exponent that is not
            positive, a process that is missing or traced.

    Examples:
        >>> samplers.time_grid("quadratic", 3, t_min=0.2).round(2).tolist()  # two steps, and the denoising one
        [1.0, 0.4, 0.2]
        >>> len(samplers.time_grid("logsnr", 9, evaluations=2, sde=sdes.vp()))  # four steps of two evaluations
        5
    """
    steps = (nfe - bool(denoise)) // evaluations
    if steps < 1:
        least = evaluations + bool(denoise)
        raise InputError(f"steps = {nfe}: at least {least} evaluations are needed{' with denoising' * bool(denoise)}.")
    check_t_min(t_min)
    u = np.linspace(0.0, 1.0, steps + 1)
    if kind == "uniform":
        return 1.0 - (1.0 - t_min) * u
    if kind in ("quadratic", "power"):
        exponent = 2.0 if kind == "quadratic" else _positive("power", power)
        return t_min + (1.0 - t_min) * (1.0 - u) ** exponent
    if kind not in GRIDS:
        raise InputError(f"grid must be one of {', '.join(repr(g) for g in GRIDS)}, not {kind!r}.")
    if sde is None:
        raise InputError(f"grid {kind!r} is laid out in the process's noise level: give time_grid the sde.")
    if not linalg.is_concrete(sde):
        raise InputError(f"grid {kind!r} needs known parameters: compute it outside of jit, with the sde of the run.")
    low, high = np.log(_on_host(noise_level, sde, np.asarray([t_min, 1.0])))
    if kind == "auto":
        to, end = _best_jump(sde.k, steps + bool(denoise))
        log_sigma = np.log(jump_levels(np.exp(high), to, max(end, np.exp(low)), steps if denoise else steps - 1))
        if denoise:
            t_min = float(host_time_at(sde, np.exp(log_sigma[-1:]))[0])
        else:
            log_sigma = np.append(log_sigma, low)
    elif kind == "logsnr":
        log_sigma = high + u * (low - high)
    else:  # eq. (5), relative to the highest level, which may be large
        inverse = 1 / _positive("rho", rho)
        log_sigma = high + rho * np.log(1 + u * np.expm1(inverse * (low - high)))
    times = np.concatenate([[1.0], host_time_at(sde, np.exp(log_sigma[1:-1])), [t_min]])
    if not (np.diff(times) < 0).all():
        raise InputError(f"grid {kind!r} with {steps} steps to t_min = {t_min:g} has equal times: take fewer steps.")
    return times


_compiled = {f: jax.jit(f) for f in (noise_level, time_at_noise_level)}


def host_noise_level(sde: SDE, times: TimeGrid) -> HostGrid:
    """`noise_level` in float64, outside of any trace. times: (n,), the parameters of the process known."""
    return _on_host(noise_level, sde, np.asarray(times, np.float64))


def host_time_at(sde: SDE, sigma: HostGrid) -> HostGrid:
    """`time_at_noise_level` likewise. sigma: (n,)."""
    return _on_host(time_at_noise_level, sde, np.asarray(sigma, np.float64))


def _on_host(function, sde: SDE, values: np.ndarray) -> np.ndarray:
    """function(sde, values) in float64, whatever the precision and the trace around it. values: (n,), n >= 0."""
    padded = np.ones(-(-max(len(values), 1) // _PADDING) * _PADDING)
    padded[: len(values)] = values
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        # copies: jit remembers the float32 form of a numpy array that an earlier function has closed over
        sde = jax.tree.map(lambda v: jnp.asarray(np.array(v, np.float64)), sde)
        return np.asarray(_compiled[function](sde, jnp.asarray(padded)))[: len(values)]


def jump_levels(first: float, high: float, end: float, steps: int) -> HostGrid:
    """Noise levels, decreasing, (steps + 1,): from `first` to `high` in one step, then equal steps in the logarithm."""
    if steps < 2:
        return np.array([first, end][: steps + 1])
    even = first * (end / first) ** (1 / steps)  # where equal steps would go
    high = min(high, even) if high > end else even
    return np.concatenate([[first], np.exp(np.linspace(np.log(high), np.log(end), steps))])


@functools.cache
def _table() -> dict[str, dict[str, list[float]]]:
    return json.loads(AUTO_GRID.read_text())


def _best_jump(k: int, evaluations: int) -> tuple[float, float]:
    """high and end of `jump_levels` for a process of k variables, between the budgets that were measured."""
    measured = _table()
    of = measured[str(min(k, max(map(int, measured))))]
    known = np.log([float(budget) for budget in of])
    logs = np.log([numbers[:2] for numbers in of.values()])
    high, end = (np.exp(np.interp(np.log(evaluations), known, values)) for values in logs.T)
    return float(high), float(end)


def _positive(name: str, value: float) -> float:
    check_known(**{name: value})
    if not value > 0:
        raise InputError(f"{name} = {value:g}: must be positive.")
    return value
