"""The reverse SDE with adaptive steps, by diffrax's SDE solvers on a virtual Brownian tree.

    dz = [-f z + g g^T score] du + g dW(u),   u = -t from -1 to -t_min.

The clock u = -t increases, as Brownian paths need, and keeps float32's relative precision where t is small. As g
depends on t alone, Ito's and Stratonovich's solutions agree, solvers for additive noise apply, and z - int g dW solves
an ODE driven by the path: whatever steps a controller chooses, the solution converges to that path's as they shrink. A
rejected step is tried again on the same path, which does not favour noise that is easy to solve for.

Reference: Anderson 1982 (reverse SDE); Li et al. 2020, Jelincic, Foster & Kidger 2024 (virtual Brownian tree); Foster,
dos Reis & Strange 2023 (SEA, ShARK); Roessler 2010 (SRA1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sgmjax._inputs import InputError
from sgmjax._kinds import checked_score
from sgmjax._types import AnyArray, DType, Key, Samples, Scalar, ScoreFn, Shape, Sharding, Solver, State, Times
from sgmjax.samplers._probability_flow import FIRST_STEP, cost, evaluations, named_solver, wrapped
from sgmjax.samplers.common import (
    Denoise,
    SampleInfo,
    batch_time,
    check_control,
    check_denoise,
    check_one_by_one,
    check_t_min,
    denoise_step,
    refuse_constraint,
    reverse_drift,
    start_state,
)
from sgmjax.samplers.declaration import adaptive
from sgmjax.sdes import SDE, linalg

# The error estimates compare drifts whose states differ by a Brownian increment: h times h^1/2.
ERROR_ORDER = 1.5
PCOEFF, ICOEFF = 0.1, 0.3  # a PI controller: errors of single steps are noisy


@adaptive
def adaptive_sde(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    t_min: Scalar = 1e-3,
    rtol: Scalar = 1e-2,
    atol: Scalar = 1e-2,
    solver: Solver = "ShARK",
    denoise: Denoise = True,
    per_sample: bool = False,
    initial: State | None = None,
    max_steps: int = 4096,
    brownian_tol: float = 2.0**-20,
    constraint: None = None,
    sharding: Sharding | None = None,
    dtype: DType = jnp.float32,
) -> tuple[Samples, SampleInfo]:
    """Sample by solving the reverse SDE with step-size control.

    The key decides start and Brownian path, each sample's its own, whatever solver, tolerances and `per_sample` are:
    runs of one key converge to the same samples as the tolerances shrink.

    Args:
        key, score_fn, sde, shape: as `em`.
        t_min: where the integration ends.
        rtol, atol: tolerances of the step-size controller; the error norm is the root mean square over the whole state.
        solver: a diffrax SDE solver or the name of one. "ShARK", "SRA1" (strong order 1.5, two evaluations a step),
            "Heun", "Midpoint", "Ralston" (two) and "SPaRK" (three) estimate their own error. "SEA", "Euler",
            "EulerHeun" (equal here), "GeneralShARK" and "SlowRK" are put into a `diffrax.HalfSolver`, at three times
            their one, one, one, two and two.
        denoise: see `common.denoise_step`.
        per_sample: control each sample's steps by itself, score_fn seeing one at a time: not one with labels or
            measurements of (batch,). Otherwise the batch shares step sizes.
        initial: state at the start; None draws from the prior.
        max_steps: bound on accepted and rejected steps.
        brownian_tol: resolution of the Brownian path in t, and the smallest step: below it increments would not be
            independent. Its log2 is the number of normal draws an increment costs.
        constraint: None; samplers on a grid take one (`em`, ...).
        sharding: sharding for the state.

    Returns:
        samples (batch, *event) and a `SampleInfo`; `nfe`, rejected steps included, is a scalar, (batch,) with
        per_sample.

    Raises:
        ValueError: for a solver that is unknown or made for other equations, a t_min outside (0, 1), tolerances that
            are not positive and finite, a constraint, an `initial` of another shape.
        RuntimeError: when max_steps is reached, or a step falls below brownian_tol.

    Examples:
        >>> score_fn = lambda z, t: -z  # of standard normal data, under VP
        >>> samples, info = samplers.adaptive_sde(jax.random.key(0), score_fn, sdes.vp(), (3, 2), rtol=0.1, atol=0.1)
        >>> samples.shape, int(info.nfe) % 2  # two evaluations for every step tried, and the denoising one
        ((3, 2), 1)
    """
    import diffrax
    import equinox as eqx

    solver = find_sde_solver(solver)
    check_denoise(sde, denoise)
    refuse_constraint("adaptive_sde", constraint)
    check_t_min(t_min, sde, dtype)
    check_control(rtol=rtol, atol=atol, brownian_tol=brownian_tol)
    start_key, path_key = jax.random.split(key)
    score_fn = checked_score(score_fn)
    z = start_state(start_key, sde, shape, initial, dtype)
    seeds = path_seeds(path_key, shape[0])
    if sharding is not None:
        z, seeds = (jax.lax.with_sharding_constraint(v, sharding) for v in (z, seeds))
    begin, finish = jnp.asarray(-1.0, dtype), -jnp.asarray(t_min, dtype)

    def drift(u, z, args):
        return reverse_drift(score_fn, sde, z, batch_time(-u, z))

    def solve(z, seeds):
        def increment(u, v):
            struct = jax.ShapeDtypeStruct((sde.num_noised, *z.shape[2:]), dtype)
            path = functools.partial(brownian_increment, struct, brownian_tol)
            return jax.vmap(path, in_axes=(0, None, None))(seeds, u, v)

        noise = noise_term()(lambda u: noise_factor(sde, jnp.reshape(-u, (1,)).astype(dtype)), increment)
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), noise),
            solver,
            begin,
            finish,
            jnp.asarray(FIRST_STEP, dtype),
            z,
            stepsize_controller=diffrax.PIDController(
                rtol=rtol,
                atol=atol,
                pcoeff=PCOEFF,
                icoeff=ICOEFF,
                error_order=ERROR_ORDER,
                dtmin=jnp.asarray(brownian_tol, dtype),
                force_dtmin=False,
            ),
            max_steps=max_steps,
            throw=False,  # its check would bring the whole batch to the host and back
        )
        assert solution.ys is not None and solution.ts is not None  # saved where it stopped
        # what was left for the last step may have been so short that a next one, which is not taken, would be too short
        done = diffrax.is_successful(solution.result) | (solution.ts[0] >= finish)
        return solution.ys[0], solution.stats["num_steps"], done

    if per_sample:
        check_one_by_one(score_fn, z)
        final, steps, success = jax.vmap(lambda one, seed: solve(one[None], seed[None]))(z, seeds)
        final = final[:, 0]
    else:
        final, steps, success = solve(z, seeds)
    final = final + eqx.error_if(
        jnp.zeros((), dtype),
        ~jnp.all(success),
        f"the reverse SDE was not solved within max_steps = {max_steps} steps of at least brownian_tol = "
        f"{brownian_tol:g}: give more or finer ones, or larger tolerances.",
    )
    nfe = evaluations(solver, steps)
    if denoise:
        final = denoise_step(score_fn, sde, final, jnp.full((shape[0],), t_min, dtype), denoise)
        nfe = nfe + 1
    return final[:, 0], SampleInfo(nfe=nfe, state=final)


def find_sde_solver(solver: Solver) -> Any:
    """The diffrax solver of that name, or the given one, with an error estimate: by `diffrax.HalfSolver` if need be.

    Raises:
        ValueError: see `adaptive_sde`.
    """
    import diffrax

    solver, name = named_solver(solver)
    inner = wrapped(solver)
    # not ReversibleHeun: it does not damp, and the drift back to the data is stiff
    suited = (
        diffrax.AbstractSRK, diffrax.Heun, diffrax.Midpoint, diffrax.Ralston, diffrax.Euler, diffrax.EulerHeun
    )  # fmt: skip
    if not isinstance(inner, suited) or cost(solver) is None:
        known = "'ShARK', 'SRA1', 'SEA', 'Heun' or 'EulerHeun'"
        raise InputError(f"solver {name!r} is not one of diffrax's explicit solvers for this SDE: try {known}.")
    tableau = getattr(solver, "tableau", None)
    if isinstance(solver, diffrax.AbstractAdaptiveSolver) or getattr(tableau, "b_error", None) is not None:
        return solver
    return diffrax.HalfSolver(solver)


def noise_factor(sde: SDE, t: Times) -> Float[AnyArray, "batch k r"]:
    """A with A A^T = g g^T and a column for each direction that receives noise. t (batch,) -> (batch, k, r)."""
    return sde.expand(linalg.triangular_factor(sde.restrict(sde.diffusion(t))))


def path_seeds(key: Key, batch: int) -> jax.Array:
    """Raw keys (batch, words), one for each sample's path.

    A tree draws from its key again at every query, which is no reuse but looks like one to `jax.debug_key_reuse`: raw
    keys are not followed. They are of JAX's default kind, whatever the kind of `key`.
    """
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    return jax.random.bits(key, (batch, *words), jnp.uint32)


def brownian_increment(
    struct: Any, tol: float, seed: jax.Array, u: Scalar, v: Scalar, *, levy_area: bool = True
) -> Any:
    """diffrax's object with W (and its space-time Levy area) from u to v on one sample's path over [-1, 0].

    Times are rounded to the tree's own grid: W moves by sqrt(1e-7), not 1e-7, over a rounding error of float32 in time,
    and the same run compiled in another way would end elsewhere.

    Args:
        struct: `jax.ShapeDtypeStruct` of the path.
        tol: its resolution.
        seed: a row of `path_seeds`.
        u, v: scalars, u < v.
    """
    import diffrax

    kind = diffrax.SpaceTimeLevyArea if levy_area else diffrax.BrownianIncrement
    levels = math.ceil(-math.log2(tol))
    path = diffrax.VirtualBrownianTree(-1.0, 0.0, 2.0**-levels, struct, seed, levy_area=kind)
    u, v = (jnp.round(w * 2.0**levels) * 2.0**-levels for w in (u, v))
    return path.evaluate(u, v, use_levy=True)


@functools.cache
def noise_term() -> type[Any]:
    """The class of the term g dW: a diffrax term whose k x r matrix acts on the phase axis alone."""
    import diffrax

    class NoiseTerm(diffrax.AbstractTerm):
        matrix: Callable  # u -> (1, k, r)
        increment: Callable  # (u, v) -> a Levy object of (batch, r, *event)

        def vf(self, t, y, args):
            return self.matrix(t)

        def contr(self, t0, t1, use_levy: bool = False, **kwargs):
            increment = self.increment(t0, t1)
            return increment if use_levy else increment.W

        def prod(self, vf, control):
            return linalg.apply(vf, control)

    return NoiseTerm
