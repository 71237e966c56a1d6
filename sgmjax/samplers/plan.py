"""How samples are drawn, said in one value: the sampler by name, its settings, its budget and its grid.

    plan = Plan(sampler="sscs", steps=100)
    samples, info = draw(plan, key, score_fn, sde, (64, 32, 32, 3))

What a configuration's section `sampling` says, and what `Task.sample` takes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from sgmjax import sdes
from sgmjax._inputs import InputError
from sgmjax._ranges import COUNT, FINITE, OPEN_UNIT, POSITIVE, TIME, TOLERANCE
from sgmjax._types import HostGrid, Key, Samples, Shape
from sgmjax.samplers import registry
from sgmjax.samplers._exponential_coefficients import METHODS, exponential_coefficients
from sgmjax.samplers._predictor_corrector import score_sde_times
from sgmjax.samplers._restart import extra_steps, restart, ways_down
from sgmjax.samplers.common import Constraint, SampleInfo, check_times
from sgmjax.samplers.editing import start_at
from sgmjax.samplers.grids import host_noise_level, time_grid
from sgmjax.score import ScoreFn, analytic_start
from sgmjax.sharding import BATCH_AXES
from sgmjax.spec import Settings

STARTED = (*METHODS, "conjugate")  # samplers that have an analytic start
FAR = 20.0  # noise level from which next to nothing is known of data of deviation 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is not said is as in a configuration.

    Attributes:
        sampler: a name of `sgmjax.samplers.SAMPLERS`.
        options: the sampler's own settings, its function's keyword arguments, {"snr": 0.16}.
        steps: network evaluations, the denoising one included; of samplers on a grid.
        grid: a name of `samplers.time_grid`; "score_sde" with `pc`, "levels" with VE, see `times`; "tuned": that of
            the setting `times`, or of a run folder, where `python -m sgmjax.tune_grid` has left it.
        times: of grid "tuned", from 1 down to where sampling ends.
        weights: of grid "tuned", what was learned to add to the method's weights, `TunedGrid.weights` number by number;
            empty if nothing was.
        data_mean, data_std: of grid "tuned", where the first score is that of `score.analytic_start`: mean of the data,
            number by number, and their deviation. That step is not one of `steps`. Empty: it is the network's.
        analytic_start: with grid "auto" and an exponential integrator, whether the first score is that of standard
            normal data, `score.analytic_start`, and the grid has a step more for it. At t = 1 networks that predict eps
            know the data worse than that. None: if the noise there is FAR above the data.
        rho, power: of the grids of these names.
        restarts: where the samples go back up and how often, (levels, repeats, low, high) each: see
            `samplers.Interval`. Their evaluations are part of `steps`.
        t_min: time where sampling ends.
        denoise: see `samplers.common.denoise_step`; with grid "auto" True is "tweedie"; "x_mean": pc's last step
            without its noise.
        rtol, atol: of adaptive samplers; None: the sampler's own.
    """

    sampler: str = "sscs"
    options: Settings = Settings()
    steps: Annotated[int, COUNT] = 50
    grid: Literal["uniform", "quadratic", "power", "rho", "logsnr", "auto", "score_sde", "levels", "tuned"] = (
        "quadratic"
    )
    times: tuple[Annotated[float, TIME], ...] = ()
    weights: tuple[Annotated[float, FINITE], ...] = ()
    data_mean: tuple[Annotated[float, FINITE], ...] = ()
    data_std: Annotated[float, POSITIVE] = 1.0
    analytic_start: bool | None = None
    rho: Annotated[float, POSITIVE] = 7.0
    power: Annotated[float, POSITIVE] = 2.0
    restarts: tuple[tuple[Annotated[float, POSITIVE], ...], ...] = ()
    t_min: Annotated[float, OPEN_UNIT] = 1e-3
    denoise: bool | Literal["sde", "ode", "tweedie", "x_mean"] = True
    rtol: Annotated[float, TOLERANCE] | None = None
    atol: Annotated[float, TOLERANCE] | None = None


def draw(
    plan: Plan,
    key: Key,
    score_fn: ScoreFn,
    sde: sdes.SDE,
    shape: Shape,
    *,
    start: float = 1.0,
    sampler: Callable[..., Any] | None = None,
    given: Callable[[ScoreFn], ScoreFn] | None = None,
    **control: Any,
) -> tuple[Samples, SampleInfo]:
    """Samples by a plan; the batch is split over the current mesh, if there is one.

    Args:
        plan: what to do.
        key, score_fn, sde, shape: the samplers' contract.
        start: time at which the grid starts (with an `initial` state of that time); 1 for adaptive samplers.
        sampler: a function that takes the settings of the plan's sampler; None: that sampler.
        given: what is made of the score function, as `posterior_score`: after an analytic start, which is of the data.
        control: `initial` and, for samplers on a grid, `constraint`.

    Returns:
        Samples (batch, *event) and a `SampleInfo`.

    Examples:
        >>> from sgmjax.samplers.plan import Plan, draw
        >>> sde, plan = sdes.psld(), Plan(sampler="em", steps=5, grid="uniform")
        >>> samples, info = draw(plan, jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2))
        >>> samples.shape, info.nfe
        ((3, 2), 5)
    """
    denoise = "tweedie" if plan.grid == "auto" and plan.denoise is True else plan.denoise
    options: dict[str, Any] = {"denoise": denoise, **plan.options}
    free = 0  # evaluations that are none of the network
    sampler = sampler or registry.SAMPLERS[plan.sampler]
    if plan.restarts:
        if registry.is_adaptive(plan.sampler):
            raise InputError(f"restarts are for samplers that step through a grid, and {plan.sampler} does not")
        sampler = functools.partial(restart, sampler, intervals=plan.restarts)
    if registry.is_adaptive(plan.sampler):
        if start != 1.0:
            raise InputError(f"start = {start:g}: {plan.sampler} chooses its own steps, from t = 1; take one on a grid")
        tolerances = {"rtol": plan.rtol, "atol": plan.atol}
        options |= {"t_min": plan.t_min, **{k: v for k, v in tolerances.items() if v is not None}}
    else:
        if start != 1.0 and not plan.data_mean:
            plan = dataclasses.replace(plan, analytic_start=False)
        grid, more = times(plan, sde)
        if start != 1.0 and (plan.weights or plan.data_mean):
            raise InputError(
                f"start = {start:g}: the learned weights and the analytic start of a tuned grid are for the whole way "
                "from t = 1; tune without --weights and --analytic_start for this"
            )
        if starts_analytically(plan, sde):
            score_fn = analytic_start(score_fn, sde, _mean(plan, shape), plan.data_std)
            free = _free(plan, sde, grid, control.get("constraint"))
        options |= {"times": grid if start == 1.0 else start_at(grid, start), **more}
    if given is not None:
        score_fn = given(score_fn)
    if not jax.sharding.get_abstract_mesh().empty:
        options["sharding"] = PartitionSpec(
            BATCH_AXES if shape[0] > 1 else None
        )  # of one: vmap splits over the samples
    samples, info = sampler(key, score_fn, sde, shape, **options, **control)
    return samples, info._replace(nfe=info.nfe - free) if free else info


def _free(plan: Plan, sde: sdes.SDE, grid: HostGrid, constraint: Constraint | None) -> int:
    """How often a run asks for the score at t = 1: as often as a constraint repeats the first step, or restarts do."""
    ways = ways_down(sde, grid, plan.restarts) if plan.restarts else []
    again = sum(way.repeats for way in ways if np.float32(way.grid[0]) >= 1)
    return (1 + again) * (1 if constraint is None else constraint.repeats)


def starts_analytically(plan: Plan, sde: sdes.SDE) -> bool:
    """Whether the first score is `score.analytic_start`'s.

    Examples:
        >>> from sgmjax.samplers.plan import Plan, starts_analytically
        >>> sde = sdes.ve(sigma_min=0.01, sigma_max=50.0)  # whose noise is far above the data
        >>> [starts_analytically(Plan(sampler=name, grid="auto"), sde) for name in ("unipc", "em")]
        [True, False]
    """
    if plan.data_mean:
        return True
    if plan.grid != "auto" or plan.sampler not in STARTED or plan.analytic_start is False:
        return False
    return bool(plan.analytic_start) or float(host_noise_level(sde, np.ones(1))[0]) >= FAR


def _mean(plan: Plan, shape: Shape) -> np.ndarray:
    """The mean of the data, (*event)."""
    if not plan.data_mean:
        return np.zeros(shape[1:], np.float32)
    if len(plan.data_mean) != math.prod(shape[1:]):
        raise InputError(
            f"grid 'tuned': it was tuned to examples of {len(plan.data_mean)} numbers, these have {shape[1:]}"
        )
    return np.reshape(np.asarray(plan.data_mean, np.float32), shape[1:])


def times(plan: Plan, sde: sdes.SDE) -> tuple[HostGrid, dict[str, Any]]:
    """The time grid of a sampler with a budget of `plan.steps` evaluations, and what else it must then be given.

    Grid "score_sde" is that of the official program, for `pc`: with its discrete noise levels, one for each step.
    "levels" are noise levels by the process's sigma_dist, from VE's sigma_max down to sigma_min itself (t = 0): for
    `annealed_langevin`, which takes options.steps_per_level of the `steps` at each of its (steps - denoise) /
    steps_per_level levels.

    Raises:
        ValueError: a grid that cannot be.

    Examples:
        >>> from sgmjax.samplers.plan import Plan, times
        >>> grid, more = times(Plan(sampler="em", steps=3, grid="quadratic", t_min=0.2), sdes.psld())
        >>> grid.round(2).tolist(), more
        ([1.0, 0.4, 0.2], {})
    """
    evaluations = registry.evaluations_per_step(plan.sampler, plan.options)
    last = _evaluates_last(plan)
    if plan.grid == "tuned":
        steps = grid_steps(plan)
        if plan.restarts and plan.weights:
            raise InputError("grid 'tuned': learned weights are for one way down; leave restarts out, or the weights")
        if plan.data_mean and plan.sampler not in STARTED:
            raise InputError(
                f"grid 'tuned': {plan.sampler} does not ask for the score at t = 1, so `data_mean` is of no use"
            )
        if len(plan.times) != steps + 1:
            raise InputError(
                f"grid 'tuned' takes `times`, {steps + 1} of them for steps = {plan.steps}, and has {len(plan.times)}: "
                "make them by python -m sgmjax.tune_grid for a run, or by samplers.tune_grid"
            )
        grid = check_times(np.asarray(plan.times, np.float64))
        if not plan.weights:
            return grid, {}
        options = dict(plan.options)
        return grid, {
            "coefficients": exponential_coefficients(sde, grid, method=plan.sampler, weights=plan.weights, **options)  # pyright: ignore[reportArgumentType]
        }
    if plan.grid == "score_sde":
        if plan.sampler != "pc":
            raise InputError("grid 'score_sde' is for sampler 'pc'")
        if plan.restarts:
            raise InputError("grid 'score_sde' goes down once, by its own levels; leave restarts out, or take 'rho'")
        num_scales = plan.options.get("num_scales") or plan.steps // evaluations
        return score_sde_times(num_scales, t_min=plan.t_min), {"num_scales": num_scales}
    annealed = plan.sampler == "annealed_langevin"  # which takes its steps at the last time too
    if plan.analytic_start and (plan.grid != "auto" or plan.sampler not in STARTED):
        raise InputError(f"analytic_start: with grid 'auto' and one of {', '.join(STARTED)}")
    nfe = _evaluations(plan) + last + starts_analytically(plan, sde)
    if annealed or plan.grid == "levels":
        spans = grid_steps(plan) - annealed
        if spans < 1:
            least = (1 + annealed) * evaluations + last
            raise InputError(f"steps = {plan.steps}: at least {least} evaluations are needed for two noise levels")
        if plan.grid == "levels":
            if not isinstance(sde, sdes.VE):
                raise InputError("grid 'levels' ends at VE's sigma_min: for sde.name 've'; others have 'logsnr'")
            return sdes.level_times(spans + 1), {}
        nfe, evaluations = spans + last, 1
    grid = time_grid(
        plan.grid, nfe, t_min=plan.t_min, denoise=last, evaluations=evaluations, sde=sde, rho=plan.rho,
        power=plan.power,
    )  # fmt: skip
    return grid, {}


def grid_steps(plan: Plan) -> int:
    """How many steps of the sampler on its grid the budget of `plan.steps` evaluations allows, beside restarts.

    Examples:
        >>> from sgmjax.samplers.plan import Plan, grid_steps
        >>> grid_steps(Plan(sampler="edm", steps=35))  # of two evaluations; the last is for the denoising step
        17
    """
    return _evaluations(plan) // registry.evaluations_per_step(plan.sampler, plan.options) + bool(plan.data_mean)


def _evaluations(plan: Plan) -> int:
    """What the budget leaves for the grid: without the denoising step and the restarts.

    Raises:
        ValueError: restarts that leave nothing.
    """
    each = registry.evaluations_per_step(plan.sampler, plan.options)
    spent = extra_steps(plan.restarts) * each
    left = plan.steps - _evaluates_last(plan) - spent
    if plan.restarts and left < 2 * each:
        raise InputError(
            f"steps = {plan.steps}: the restarts alone take {spent} evaluations, and two steps and the last one "
            f"{2 * each + _evaluates_last(plan)}; give {spent + 2 * each + _evaluates_last(plan)} or more"
        )
    return left


def _evaluates_last(plan: Plan) -> bool:
    """Whether a denoising step takes an evaluation of its own."""
    return bool(plan.denoise) and plan.denoise != "x_mean"


def check(plan: Plan, sde: sdes.SDE, where: str = "sampling") -> None:
    """That the sampler exists, has these settings and works for this process: it is traced once, on two numbers.

    Args:
        plan: what to do.
        sde: the process.
        where: name of the plan, for messages.

    Raises:
        InputError: one line that names the setting.

    Examples:
        >>> from sgmjax.samplers.plan import Plan, check
        >>> check(Plan(sampler="sscs", steps=5), sdes.psld())  # nothing to object to
        >>> check(Plan(sampler="edm", steps=5), sdes.psld())
        Traceback (most recent call last):
        ...
        sgmjax._inputs.InputError: sampling: edm is written for processes of one variable (vp, subvp, ve), ...
    """
    registry.check_settings(plan.sampler, plan.options, f"{where}.")
    if plan.data_mean:
        plan = dataclasses.replace(plan, data_mean=(0.0,))  # of two numbers, one an example

    def run(key):
        return draw(plan, key, lambda z, t: jnp.zeros_like(z), sde, (2, 1))[0]

    try:
        with jax.debug_key_reuse(False):  # nothing is drawn
            jax.eval_shape(run, jax.random.key(0))
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: {error}") from None
