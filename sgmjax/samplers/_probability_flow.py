"""The probability-flow ODE, solved by diffrax: adaptive (the published RK45 runs) or on a fixed grid.

    dz/dt = f(t) z - 1/2 g(t) g(t)^T score(z, t),  from t = 1 down to t_min.

Reference: Song et al. 2021, eq. (13).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sgmjax._inputs import InputError
from sgmjax._kinds import checked_score
from sgmjax._types import DType, Key, Numbers, Samples, Scalar, ScoreFn, Shape, Sharding, Solver, State, TimeGrid
from sgmjax.samplers.common import (
    Denoise,
    SampleInfo,
    batch_time,
    check_control,
    check_denoise,
    check_end,
    check_one_by_one,
    check_t_min,
    check_times,
    denoise_step,
    refuse_constraint,
    reverse_drift,
    start_state,
)
from sgmjax.samplers.declaration import adaptive
from sgmjax.sdes import SDE

FIRST_STEP = 0.01  # of the adaptive runs; given, so that diffrax spends no evaluations on choosing it


@adaptive
def ode(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    t_min: Scalar = 1e-3,
    rtol: Scalar = 1e-5,
    atol: Scalar = 1e-5,
    solver: Solver = "Dopri5",
    times: TimeGrid | None = None,
    denoise: Denoise = True,
    per_sample: bool = False,
    initial: State | None = None,
    max_steps: int = 4096,
    constraint: None = None,
    sharding: Sharding | None = None,
    dtype: DType = jnp.float32,
) -> tuple[Samples, SampleInfo]:
    """Sample by solving the probability-flow ODE.

    Args:
        key, score_fn, sde, shape: as `em`.
        t_min: where the integration ends.
        rtol, atol: tolerances of the step-size controller; the error norm is the root mean square over the whole
            state, as scipy's RK45 in the official codes.
        solver: a diffrax solver or the name of one: any explicit Runge-Kutta one ("Dopri5" (RK45), "Tsit5", "Dopri8",
            "Heun", ...), "ReversibleHeun", on a grid also "Euler" and "LeapfrogMidpoint", or a `diffrax.HalfSolver` of
            one of them. Not implicit ones: diffrax does not report what their root finder costs.
        times: a decreasing grid to step through without control (t_min, rtol, atol then do not matter); it ends above
            0, unless the process has a score there (`common.check_end`).
        denoise: see `common.denoise_step`; True is the SDE drift (CLD), "ode" the probability flow's (PSLD).
        per_sample: control each sample's steps by itself, score_fn seeing one at a time: not one with labels or
            measurements of (batch,). Otherwise the batch shares step sizes, and a sample depends
            (within the tolerance) on its batch-mates.
        initial: state at the start; None draws from the prior.
        max_steps: bound on accepted and rejected steps.
        constraint: None; samplers on a grid take one (`em`, ...).
        sharding: sharding for the state.

    Returns:
        samples (batch, *event) and a `SampleInfo`; `nfe` is a scalar, (batch,) with per_sample.

    Raises:
        ValueError: for tolerances that are not positive and finite; a solver that is unknown, implicit, or without the
            error estimate that adaptive steps need; a t_min outside (0, 1); a constraint; an `initial` of another
            shape.
        RuntimeError: when max_steps is reached, or steps became so small that they vanish.

    Examples:
        >>> sde, data = sdes.vp(), exact.mixture([[0.0, 0.0]], 2.0)  # N(0, 4), from N(0, 1)
        >>> latent = jnp.array([[[1.0, -2.0]]])
        >>> samples, info = samplers.ode(
        ...     jax.random.key(0), data.score_fn(sde), sde, (1, 2), initial=latent, denoise=False)
        >>> np.asarray(samples).round(2).tolist()
        [[2.0, -4.0]]
    """
    import diffrax
    import equinox as eqx

    solver = find_solver(solver, adaptive=times is None)
    refuse_constraint("ode", constraint)
    check_denoise(sde, denoise)
    if times is None:
        check_t_min(t_min, sde, dtype)
        check_control(rtol=rtol, atol=atol)
        start, end, first_step = 1.0, t_min, jnp.asarray(-FIRST_STEP, dtype)
        controller = diffrax.PIDController(rtol=rtol, atol=atol)
    else:
        times = check_times(times)
        check_end(times[-1], sde, dtype)
        start, end, first_step = times[0], times[-1], None
        max_steps = max(max_steps, len(times) - 1)
        controller = diffrax.StepTo(ts=jnp.asarray(times, dtype))
    score_fn = checked_score(score_fn)
    z = start_state(key, sde, shape, initial, dtype, start)
    if sharding is not None:
        z = jax.lax.with_sharding_constraint(z, sharding)

    def field(t, z, args):
        return -reverse_drift(score_fn, sde, z, batch_time(t, z), probability_flow=True)

    def solve(z):
        term = diffrax.ODETerm(field)
        begin, finish = jnp.asarray(start, dtype), jnp.asarray(end, dtype)
        solution = diffrax.diffeqsolve(
            term,
            solver,
            begin,
            finish,
            first_step,
            z,
            stepsize_controller=controller,
            max_steps=max_steps,
            # given, the first evaluation is made once, also when the first step is rejected
            solver_state=(jnp.asarray(False), field(begin, z, None)) if reuses_last_stage(solver) else None,
            throw=False,  # its check would bring the whole batch to the host and back
        )
        assert solution.ys is not None  # saved at the end point
        return solution.ys[0], solution.stats["num_steps"], diffrax.is_successful(solution.result)

    if per_sample:
        check_one_by_one(score_fn, z)
        final, steps, success = jax.vmap(lambda one: solve(one[None]))(z)
        final = final[:, 0]
    else:
        final, steps, success = solve(z)
    checked = eqx.error_if(
        jnp.zeros((), dtype),
        ~jnp.all(success),
        f"the ODE was not solved within max_steps = {max_steps} steps: give more, or larger tolerances.",
    )
    final = final + checked
    nfe = evaluations(solver, steps)
    if denoise:
        final = denoise_step(score_fn, sde, final, jnp.full((shape[0],), end, dtype), denoise)
        nfe = nfe + 1
    return final[:, 0], SampleInfo(nfe=nfe, state=final)


def find_solver(solver: Solver, *, adaptive: bool) -> Any:
    """The diffrax solver of that name, or the given one, if its evaluations can be counted.

    Raises:
        ValueError: see `ode`.
    """
    import diffrax

    solver, name = named_solver(solver)
    try_these = "try 'Dopri5', 'Tsit5', 'Dopri8' or 'Heun'"
    inner = wrapped(solver)
    if isinstance(inner, diffrax.AbstractImplicitSolver):
        raise InputError(f"solver {name!r} is implicit: diffrax does not count its root finder's scores; {try_these}.")
    # a multistep solver starts over inside HalfSolver
    unsuited = (diffrax.AbstractSRK, diffrax.EulerHeun) + (diffrax.LeapfrogMidpoint,) * (inner is not solver)
    if cost(solver) is None or isinstance(inner, unsuited):
        raise InputError(f"solver {name!r} is not one of diffrax's explicit ODE solvers: {try_these}.")
    if adaptive and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise InputError(f"solver {name!r} has no error estimate for adaptive steps: give times, or HalfSolver of it.")
    return solver


def named_solver(solver: Solver) -> tuple[Any, str]:
    """(solver, name) for a diffrax solver or its name; (None, name) where diffrax has none of that name."""
    import diffrax

    if not isinstance(solver, str):
        return solver, type(solver).__name__
    kind = getattr(diffrax, solver, None)
    if not (isinstance(kind, type) and issubclass(kind, diffrax.AbstractSolver)):
        return None, solver
    try:
        return kind(), solver
    except TypeError:  # abstract, or in need of arguments, as HalfSolver
        return None, solver


def wrapped(solver: Solver) -> Any:
    """The solver inside a HalfSolver, which compares a step with two of half its length; else the solver itself."""
    import diffrax

    return solver.solver if type(solver) is diffrax.HalfSolver else solver


def cost(solver: Solver) -> tuple[int, int] | None:
    """Evaluations of the drift that a diffrax solver makes (in every step, once at the start); None if not known."""
    import diffrax

    inner = wrapped(solver)
    if inner is not solver:
        each = cost(inner)
        return None if each is None else (3 * each[0], each[1])
    tableau: Any = getattr(solver, "tableau", None)
    if isinstance(solver, diffrax.AbstractERK):
        return (tableau.num_stages - 1, 1) if tableau.fsal else (tableau.num_stages, 0)
    if isinstance(solver, diffrax.AbstractSRK):
        skipped = 0 if tableau.ignore_stage_f is None else int(tableau.ignore_stage_f.sum())
        return len(tableau.b_sol) - skipped, 0
    if isinstance(solver, diffrax.ReversibleHeun):
        return 1, 1
    if isinstance(solver, (diffrax.Euler, diffrax.EulerHeun, diffrax.LeapfrogMidpoint)):
        return 1, 0
    return None


def reuses_last_stage(solver: Solver) -> bool:
    """Whether a Runge-Kutta step's last stage is the next one's first (Dopri5, Tsit5, ...)."""
    tableau = getattr(wrapped(solver), "tableau", None)
    return bool(getattr(tableau, "fsal", False))


def evaluations(solver: Solver, steps: Numbers) -> Numbers:
    """Evaluations of the drift that a diffrax solver makes in `steps` steps, rejected ones included."""
    found = cost(solver)
    assert found is not None  # `find_solver` has made sure
    return steps * found[0] + found[1]
