"""Time grids by measurement: those on which few steps stay nearest to the path that many steps take.

A teacher follows the probability flow in many small steps and keeps its states z and its estimates D of the data at a
ladder of noise levels. A grid of few steps is a selection of these levels, and the error that each of its steps would
add is known without a further evaluation, since all estimates are at hand. With `linear_flow`'s factor R, in whose
coordinates eta = R^-1 z the flow moves through the estimate alone, the step from level j to level k of a multistep
method that has seen level i before ends at

    eta_k' = eta_j + (v_k - v_j) [(1 + r) D_j - r D_i],    v = R^-1 E_0,    r = (l_k - l_j) / (2 (l_j - l_i)),       (1)

l the log-SNR (DPM-Solver++ 2M; r = 0 is DDIM). What it misses the teacher's eta_k by counts w_k = sigma_k (1 +
sigma_k^2 / s^2)^-1/2 times in the samples, sigma the noise level and s the standard deviation of the data: so does the
flow of normal data carry an error on. The grid with the least sum of errors is found by dynamic programming over pairs
of levels. GITS (Chen et al. 2024) does so with Euler's steps, whose error depends on one level before; that of a
multistep method depends on two, and its best grids are others. Inner products of all eta and D are all that the
errors ask for, so thousands of steps are judged in a second.

What is found is then tried out by its distance to where the teacher ends (`refinement.miss`), and moved downhill: the
levels, and the method's weights if they are to be learned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sgmjax import score
from sgmjax._inputs import InputError
from sgmjax._kinds import checked_score
from sgmjax._types import HostGrid, Key, Shape, State, TimeGrid
from sgmjax.samplers import registry
from sgmjax.samplers._exponential_coefficients import METHODS, exponential_coefficients
from sgmjax.samplers.common import Denoise, check_denoise, check_t_min, check_times, start_state
from sgmjax.samplers.exponential import host_flow
from sgmjax.samplers.grids import Grid, host_noise_level, host_time_at, time_grid
from sgmjax.samplers.linear_flow import Flow
from sgmjax.samplers.refinement import Descent, Run
from sgmjax.sdes import SDE

POWERS = (1.0, 1.5, 2.0, 3.0)  # of the errors that are summed; which is best is seen by sampling
PLAIN: tuple[Grid, ...] = ("quadratic", "rho", "logsnr")
ENDS = (0.01, 0.03, 0.1, 0.3)  # noise levels at which the plain grids are tried
BETWEEN = 4  # steps of the teacher from one level to the next


class TunedGrid(NamedTuple):
    """What `tune_grid` found.

    Attributes:
        times: the grid, (steps + 1,), decreasing from 1.
        error: distance of the sampler's samples to the teacher's from the same starts in standard deviations of the
            data, as `refinement.miss` has it; None for samplers for which it is not known.
        plain: the same for the grids that `time_grid` has: {"logsnr to 0.03": 0.2, ...}.
        weights: what was learned to add to the method's weights, (steps, order, k, m), or None: for
            `exponential_coefficients(sde, times, method=sampler, weights=weights)`.
        mean, std: of the data as the network has them, for `score.analytic_start`, (*event) and a number, or None: the
            grid is then for a first evaluation by it.
    """

    times: HostGrid
    error: float | None
    plain: dict[str, float]
    weights: np.ndarray | None = None
    mean: np.ndarray | None = None
    std: float | None = None


class Teacher(NamedTuple):
    """A path at a ladder of noise levels.

    Attributes:
        start: states at t = 1, (batch, k, *event).
        times, levels: of the ladder, decreasing, (n,); noise levels as `sdes.noise_level`.
        eta: R^-1 z, (n, k, batch, size of an event). data: estimates of the data, (n, batch, size of an event).
        v: R^-1 E_0, (n, k).
        samples: where it ends, (batch, *event).
    """

    start: State
    times: HostGrid
    levels: HostGrid
    eta: np.ndarray
    data: np.ndarray
    v: np.ndarray
    samples: np.ndarray


def tune_grid(
    key: Key,
    score_fn: Callable[..., Any],
    sde: SDE,
    shape: Shape,
    *,
    steps: int,
    sampler: str = "unipc",
    options: Mapping[str, Any] | None = None,
    denoise: Denoise = True,
    t_min: float = 1e-3,
    levels: int = 60,
    refine: int = 0,
    weights: bool = False,
    analytic_start: bool = False,
    times: TimeGrid | None = None,
    variables: Any = None,
    progress: Callable[[str], None] = lambda text: None,
) -> TunedGrid:
    """The time grid on which a sampler with few steps is nearest to the probability flow.

    Args:
        key: of the starts.
        score_fn: the score; or, where `variables` are given, a function of them that makes it: so they are not made
            part of the compiled programs.
        sde: the process; its parameters must be known.
        shape: (batch, *event) of the paths that are followed: a few dozen images will do.
        steps: of the grid; evaluations, without the one for `denoise`, and with that of `analytic_start`.
        sampler: its name. The exponential integrators without noise (`ddim`, ..., `unipc`) are tried out on what is
            found; the grid for others is what is best for a step of their order.
        options: its settings.
        denoise: see `denoise_step`.
        t_min: where the teacher ends; the grid may end before.
        levels: of the ladder from which the grid is chosen.
        refine: iterations of L-BFGS in which the grid's levels are moved downhill: those of two selections (by sums
            of other powers of the errors), of the best plain grid, and of what is best then. An iteration asks for
            about four times the evaluations of a run, and for derivatives of score_fn.
        weights: also learn the weights that the method gives to its predictions (k x m numbers for each), in as many
            iterations more (S4S, Frankel et al. 2025, learns those of one variable).
        analytic_start: take the first score by `score.analytic_start` instead of an evaluation, from what the network
            says of the data's mean at high noise levels and from the deviation of the teacher's samples.
        times: a grid of `steps` steps to begin with, in place of the search.
        variables: see `score_fn`.
        progress: called with a line about what was found.

    Raises:
        InputError: a sampler that there is not or that takes no grid, settings it does not have.
        ValueError: steps that the ladder cannot give, a traced process, refinement for a sampler that cannot be tried.

    Examples:
        >>> sde = sdes.vp()
        >>> score_fn = exact.ring().score_fn(sde)
        >>> tuned = samplers.tune_grid(jax.random.key(0), score_fn, sde, (8, 2), steps=4, levels=12)
        >>> len(tuned.times), tuned.error <= min(tuned.plain.values())  # the plain grids are among those tried
        (5, True)
    """
    if not 1 <= steps < levels:
        raise InputError(f"steps = {steps}: must be from 1 to levels - 1 = {levels - 1}.")
    check_t_min(t_min, sde, jnp.float32)
    check_denoise(sde, denoise)
    options = dict(options or {})
    registry.check_settings(sampler, options)
    if registry.is_adaptive(sampler):
        raise InputError(
            f"sampler: {sampler!r} chooses its own steps and takes no grid; take one that steps through one"
        )
    coefficients_of = METHODS.get(sampler)
    tried = coefficients_of is not None and coefficients_of(sde, [1.0, 0.5], **options).noise is None
    if times is not None:
        times = check_times(times)
        if len(times) != steps + 1:
            raise InputError(f"times has {len(times) - 1} steps, and steps = {steps}.")
        if not tried:
            raise InputError(f"times: {sampler!r} is not tried out, so there is nothing to begin with a grid.")
    if analytic_start and not tried:
        raise InputError(f"analytic_start: {sampler!r} (options {options}) is no exponential integrator without noise.")
    if weights and not refine:
        raise InputError("weights: they are learned in the iterations of `refine`, and refine = 0.")
    if refine and not tried:
        raise InputError(
            f"refine = {refine}: {sampler!r} (options {options}) is no exponential integrator without noise."
        )
    if variables is None:
        given, variables = checked_score(score_fn), ()
        make = lambda _: given  # noqa: E731
    else:
        make = lambda v: checked_score(score_fn(v))  # noqa: E731
    read = lambda v: score.agreed(make(v), sde)  # noqa: E731
    run = Run(read, variables, sde, denoise)
    teacher = follow(key, run, sde, shape, t_min=t_min, levels=levels)
    if coefficients_of is None or not tried:
        return TunedGrid(selections(teacher, steps, (2.0,), order=1)[0], None, {})

    mean = std = None
    if analytic_start:
        # at the level where the estimates differ least from path to path: above, it is a network's errors that grow
        level = np.argmin(np.mean(np.var(teacher.data, axis=1), axis=1))
        mean = np.mean(teacher.data[level], axis=0).reshape(shape[1:]).astype(np.float32)
        std = float(np.sqrt(np.mean(np.var(teacher.samples, axis=0))))
        run = Run(lambda v: score.analytic_start(read(v), sde, mean, std), variables, sde, denoise)
    descent = Descent(run, teacher.start, teacher.samples, sde, functools.partial(coefficients_of, sde, **options))
    plain = {}
    for kind in PLAIN:
        for end in ENDS:
            low = float(np.clip(host_time_at(sde, np.array([end]))[0], t_min, 0.5))
            grid = time_grid(kind, steps, t_min=low, denoise=False, sde=sde)
            plain[f"{kind} to {end:g}"] = descent.error(grid), grid
    common = min(plain.values(), key=lambda pair: pair[0])
    if times is None:
        order = 1 if sampler in ("ddim", "gddim") or options.get("order") == 1 else 2
        found = [(descent.error(grid), grid) for grid in selections(teacher, steps, POWERS, order=order)]
        starts = [*sorted(found, key=lambda pair: pair[0])[:2], common]
    else:
        starts = [(descent.error(times), times)]
    best, grid = min(starts, key=lambda pair: pair[0])
    progress(f"{steps} steps of {sampler}: {best:.3g}; the best of time_grid's {common[0]:.3g}")
    learned = None
    if refine:
        best, grid, _ = min((descent(grid, refine) for _, grid in starts), key=lambda one: one[0])
        if len(starts) > 1:
            best, grid, _ = descent(grid, refine)
        progress(f"levels moved: {best:.3g}")
    if weights:
        best, grid, learned = descent(grid, refine, weights=True)
        progress(f"weights learned: {best:.3g}")
    return TunedGrid(grid, best, {name: value for name, (value, _) in plain.items()}, learned, mean, std)


# ---- the teacher


def follow(key: Key, run: Run, sde: SDE, shape: Shape, *, t_min: float, levels: int) -> Teacher:
    """The teacher: DPM-Solver++ 3M with steps that are equal in the log-SNR."""
    start = start_state(key, sde, shape, None, jnp.float32)
    high, low = np.log(host_noise_level(sde, np.array([1.0, t_min])))
    fine = np.linspace(high, low, BETWEEN * levels + 1)
    times = np.concatenate([[1.0], host_time_at(sde, np.exp(fine[1:-1])), [t_min]])
    coefficients = exponential_coefficients(sde, times, method="dpm_solver_pp", order=3)
    samples, (states, data) = run.path(start, coefficients, times)
    kept = slice(None, None, BETWEEN)
    states, data = (np.asarray(v[kept], np.float64) for v in (states, data))
    n, batch = data.shape[:2]
    path = host_flow(sde, np.append(times[:-1][kept], t_min))
    inverse = _inverse_R(path)[:n]
    frame = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame, np.float64)
    eta = np.einsum("nij,nbjs->nibs", inverse @ frame, states.reshape(n, batch, sde.k, -1))
    v = np.einsum("nij,nj->ni", inverse, path.at.data_mean[:n])
    return Teacher(
        start, times[:-1][kept], np.exp(fine[:-1][kept]), eta, data.reshape(n, batch, -1), v, np.asarray(samples)
    )  # fmt: skip


def _inverse_R(path: Flow) -> np.ndarray:
    return np.swapaxes(path.rotation, 1, 2) @ path.at.inverse


# ---- choosing


def step_errors(teacher: Teacher, *, order: int = 2) -> np.ndarray:
    """What the step from level j to level k adds, with level i before it, (n, n, n) [i, j, k]; inf unless i < j < k.

    In units of the data. i = j stands for a step without a level before it.
    """
    eta, D, v = teacher.eta, teacher.data, teacher.v
    n, k = v.shape
    D = D.reshape(n, -1)
    count = D.shape[1]
    eta = np.swapaxes(eta.reshape(n, k, -1), 0, 1)
    DD = D @ D.T / count
    eD = eta @ D.T / count  # (k, n, n)
    ee = np.einsum("cnp,cmp->nm", eta, eta) / count
    square = np.diag(ee)
    moved = square[:, None] + square[None] - 2 * ee  # |eta_j - eta_k|^2
    p = v[None] - v[:, None]  # v_k - v_j, [j, k, c]
    toward = np.einsum("jkc,cji->ijk", p, eD) - np.einsum("jkc,cki->ijk", p, eD)  # <p (eta_j - eta_k), D_i>
    own = np.einsum("jjk->jk", toward)
    level = -np.log(teacher.levels)
    i, j, to = np.ogrid[:n, :n, :n]
    before = i < j if order > 1 else np.zeros((n, n, 1), bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(before, 0.5 * (level[to] - level[j]) / (level[j] - level[i]), 0.0)
    diagonal = np.diag(DD)
    drawn = (1 + r) ** 2 * diagonal[j] - 2 * r * (1 + r) * DD[i, j] + r**2 * diagonal[i]
    square = moved[None] + 2 * ((1 + r) * own[None] - r * toward) + np.sum(p**2, axis=-1)[None] * drawn
    size = np.std(teacher.samples)
    weight = teacher.levels / np.sqrt(1 + (teacher.levels / size) ** 2)
    error = weight * np.sqrt(np.maximum(square, 0.0))
    return np.where((i <= j) & (j < to), error, np.inf)


def end_errors(teacher: Teacher) -> np.ndarray:
    """What is missed by taking the estimate of the data at a level for the sample, (n,)."""
    samples = teacher.samples.reshape(1, *teacher.data.shape[1:])
    return np.sqrt(np.mean((teacher.data - samples) ** 2, axis=(1, 2)))


def selections(teacher: Teacher, steps: int, powers: tuple[float, ...], *, order: int) -> list[HostGrid]:
    """The grids of the least sums of powers of the errors, each once."""
    cost, last = step_errors(teacher, order=order), end_errors(teacher)
    chosen = {tuple(cheapest(cost**power, last**power, steps)) for power in powers}
    return [teacher.times[list(levels)] for levels in sorted(chosen)]


def cheapest(cost: np.ndarray, last: np.ndarray, steps: int) -> np.ndarray:
    """The levels 0 = l_0 < l_1 < ... < l_steps of least total cost, (steps + 1,).

    Args:
        cost: (n, n, n) as `step_errors`; the first step costs cost[0, 0, l_1].
        last: (n,) of ending at a level.
    """
    n = len(last)
    best = np.full((n, n), np.inf)  # of having arrived by a step from j to k
    best[0] = cost[0, 0]
    back = []
    for _ in range(steps - 1):
        total = best[:, :, None] + cost  # [i, j, k]
        back.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    j, k = np.unravel_index(np.argmin(best + last[None]), best.shape)
    chosen = [int(k), int(j)]
    for before in reversed(back):
        chosen.append(int(before[chosen[-1], chosen[-2]]))
    return np.array(chosen[::-1])
