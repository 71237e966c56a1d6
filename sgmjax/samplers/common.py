"""What all samplers share: the reverse drift, the denoising step, the scan over a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sgmjax._inputs import InputError
from sgmjax._kinds import checked_score
from sgmjax._types import (
    AnyArray,
    DType,
    HostGrid,
    Key,
    Samples,
    Scalar,
    ScoreFn,
    Shape,
    Sharding,
    State,
    States,
    TimeGrid,
    Times,
)
from sgmjax.score import agreed
from sgmjax.sdes import SDE, VE, estimate, linalg

EARLIEST_SURE = 1e-5  # kernels are right to rounding in float32 from here on, whatever the process
Denoise = bool | Literal["sde", "ode", "tweedie"]


class SampleInfo(NamedTuple):
    """What a sampler reports beside the samples.

    Attributes:
        nfe: score evaluations a sample cost, the denoising one included. A number, or an array for adaptive solvers.
        state: final state (batch, k, *event); its data variable is the sample.
        trajectory: None, or the states at every grid point, (steps + 1, batch, k, *event).
    """

    nfe: Any
    state: Any
    trajectory: Any = None


def reverse_drift(score_fn: ScoreFn, sde: SDE, z: State, t: Times, *, probability_flow: bool = False) -> States:
    """Drift of the reverse process in reversed time, -f z + g g^T score (half the score for the ODE).

    Reference: Anderson 1982; Song et al. 2021, eqs. (6) and (13).

    Args:
        score_fn, sde: as a sampler's.
        z: (batch, k, *event). t: (batch,) forward time.
        probability_flow: the drift of the ODE.

    Examples:
        >>> score_fn, sde = lambda z, t: -z, sdes.vp(beta_min=2.0, beta_max=2.0)  # of standard normal data
        >>> z, t = jnp.ones((1, 1, 2)), jnp.array([0.5])
        >>> samplers.reverse_drift(score_fn, sde, z, t).tolist()  # beta z / 2 - beta z
        [[[-1.0, -1.0]]]
        >>> samplers.reverse_drift(score_fn, sde, z, t, probability_flow=True).tolist()
        [[[0.0, 0.0]]]
    """
    scale = 0.5 if probability_flow else 1.0
    return scale * linalg.apply(sde.diffusion_squared(t), score_fn(z, t)) - sde.drift(z, t)


def denoise_step(score_fn: ScoreFn, sde: SDE, z: State, t: Times, kind: Denoise) -> States:
    """The last step, from t to 0 without noise. z (batch, k, *event), t (batch,).

    "sde" (True) is one Euler step of the reverse SDE's drift, as published for CLD and PSLD; "ode" one of the
    probability flow (PSLD's ODE sampler); "tweedie" the posterior mean of x_0, which the noised variables' score tells
    of every process (`sdes.estimate`), and of the others their share in it.
    """
    check_denoise(sde, kind)
    if kind == "tweedie":
        return _posterior_mean(agreed(score_fn, sde), sde, z, t)
    drift = reverse_drift(score_fn, sde, z, t, probability_flow=kind == "ode")
    denoised: Any = z + linalg.expand_to(t, z.ndim) * drift
    return denoised


def _posterior_mean(score_fn: ScoreFn, sde: SDE, z: State, t: Times) -> States:
    """E[x_0 | z] in place of the data, and in place of each other variable what x_0 adds to its mean."""
    if sde.num_noised < sde.k:
        look = estimate(sde, t)
        mean, eps = look.kernel.mean[:, :, 0], look.kernel.restrict(look.kernel.eps(score_fn(z, t)))
        x0 = look.of(z) - linalg.expand_to(look.sigma, z.ndim - 1) * look.noise(z, eps)
        return (linalg.expand_to(mean.at[:, 0].set(1.0), z.ndim) * x0[:, None]).astype(z.dtype)
    kernel = sde.transition(t, "hsm")
    posterior = z + linalg.apply(kernel.covariance, score_fn(z, t))
    x0 = posterior[:, 0] / linalg.expand_to(kernel.mean[:, 0, 0], z.ndim - 1)
    return jnp.concatenate([x0[:, None], posterior[:, 1:]], axis=1)


def check_denoise(sde: SDE, kind: Denoise) -> None:
    """Raise ValueError for an unknown kind of denoising step, or one that the process does not have."""
    if kind not in (True, False, "sde", "ode", "tweedie"):
        raise InputError(f"denoise must be a bool, 'sde', 'ode' or 'tweedie', not {kind!r}.")


def start_state(key: Key, sde: SDE, shape: Shape, initial: State | None, dtype: DType, start: float = 1.0) -> States:
    """The state to start from at time `start`, (batch, k, *event): `initial`, checked, or a draw from the prior."""
    check_state_dtype(dtype)
    if initial is None and start < 1 - 1e-6:
        raise InputError(
            f"times start at {start:g}, and the prior is the law at 1: give initial, as samplers.noised(key, sde, x0, "
            f"{start:g}), or sde.prior_sample(key, shape) where that is meant"
        )
    z = sde.prior_sample(key, shape, dtype) if initial is None else jnp.asarray(initial, dtype)
    expected = (shape[0], sde.k, *shape[1:])
    if z.shape != expected:
        raise InputError(f"initial has shape {z.shape}, expected {expected} (batch, k, *event).")
    return z


def check_state_dtype(dtype: DType) -> None:
    """Raise ValueError for states in half precision, which hold neither the times of a grid nor its small steps."""
    if jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
        raise InputError(
            f"dtype: times and states of a sampler need float32 or float64, not {jnp.dtype(dtype)}; let the network "
            "compute in half precision if you like, score_fn may cast what it is given and return what it computes in"
        )


def check_times(times: TimeGrid, *, stays: bool = False) -> HostGrid:
    """A usable grid as float64.

    Raises:
        ValueError: unless it is 1-D, has two entries, and decreases (`stays`: does not increase) within [0, 1]; for
            times that are an argument of jit, as nothing could be checked or planned.
    """
    if not linalg.is_concrete(times):
        raise InputError("times are traced (an argument of jit): the grid must be known; close over it, as over shape.")
    times = np.asarray(times, dtype=np.float64)
    steps = np.diff(times) if times.ndim == 1 else np.zeros(0)
    falls = (steps <= 0).all() if stays else (steps < 0).all()
    if len(steps) < 1 or not falls or times[0] > 1 or times[-1] < 0:
        raise InputError("times must be a 1-D grid of at least two entries that decreases within [0, 1].")
    return times


def steps_of(times: HostGrid) -> np.ndarray:
    """Where each step of a grid starts and ends, (steps, 2)."""
    return np.stack([times[:-1], times[1:]], axis=1)


def check_grid_of(made: Any, times: HostGrid) -> None:
    """Raise ValueError for coefficients that were made for another grid of as many steps, where they are known numbers.

    Args:
        made: `steps_of` their grid. times: the grid of the run.
    """
    if linalg.is_concrete(made) and not np.allclose(made, steps_of(times), rtol=1e-6, atol=0.0):
        raise InputError(
            "coefficients belong to another grid, of as many steps: compute them from the times given here."
        )


def check_end(t: Scalar, sde: SDE, dtype: DType = jnp.float32, *, in_log_t: bool = False) -> None:
    """Raise ValueError where a grid ends at a time at which its sampler asks for a score that is not finite.

    At t = 0 the kernel of most processes is a point. VE's is not, nor one with sigma2_0 > 0 (LSGM): they have a score
    there. A traced process is taken to have none at 0, unless it is such a VE.

    Args:
        t: the end, a known number.
        sde: the process.
        dtype: of the run: 0 is what rounds to it.
        in_log_t: whether what is asked for is a function of log t, which no process has at 0.
    """
    if t < EARLIEST_SURE and ((in_log_t and not t > 0) or not _has_score(sde, t, dtype)):
        raise InputError(
            f"times must end above 0: at the end, t = {t:g}, this run asks for the score, which is not finite there. "
            "End at 1e-3, say, and let denoise take the last step; em, sscs and pc can end at 0 with denoise=False."
        )


def check_t_min(t_min: Scalar, sde: SDE | None = None, dtype: DType = jnp.float32) -> None:
    """Raise ValueError unless t_min lies in (0, 1), and the process has a score there. A traced t_min passes."""
    if not linalg.is_concrete(t_min):
        return
    if not 0 < t_min < 1:
        raise InputError(f"t_min = {t_min:g}: must lie between 0 and 1.")
    if t_min < EARLIEST_SURE and sde is not None and not _has_score(sde, t_min, dtype):
        raise InputError(f"t_min = {t_min:g}: the score of this process is not finite so near to 0; take 1e-5.")


def check_control(**values: Scalar) -> None:
    """One-line errors for the settings of a step-size control: all positive and finite."""
    for name, value in values.items():
        if linalg.is_concrete(value) and not (value > 0 and np.isfinite(value)):
            raise InputError(f"{name} = {value:g}: must be positive and finite.")


def check_known(**values: Any) -> None:
    """One-line errors for settings that decide what is compiled, or what the host computes, and are traced."""
    for name, value in values.items():
        if not linalg.is_concrete(value):
            raise InputError(f"{name} is traced (an argument of jit): it must be known before compilation.")


def _has_score(sde: SDE, t, dtype) -> bool:
    """Whether the kernel at time t has a finite precision in `dtype`; as `check_end` says for a traced process."""
    at_0 = np.asarray(t, dtype) == 0
    if not linalg.is_concrete(sde):
        return not at_0 or (isinstance(sde, VE) and sde.sigma2_0 is None)
    with jax.ensure_compile_time_eval():
        if at_0:  # rounding may hide that the kernel is singular
            full = np.linalg.matrix_rank(np.asarray(sde.initial_factor())) == sde.k
            return bool(full) or getattr(sde, "numerical_eps", 0.0) > 0
        return bool(jnp.isfinite(sde.transition(jnp.full((1,), t, dtype)).inverse_transpose).all())


def check_one_by_one(score_fn: ScoreFn, z: State) -> None:
    """Raise InputError where a score function takes the batch z, but not an example of it. It is only traced."""

    def ask(batch):
        structs = (jax.ShapeDtypeStruct((batch, *shape), z.dtype) for shape in (z.shape[1:], ()))
        jax.eval_shape(score_fn, *structs)

    try:
        ask(1)
    except Exception as error:
        ask(len(z))  # what is wrong with the function itself is said as it is
        raise InputError(
            "per_sample=True shows score_fn one example at a time, and it has labels, strengths or measurements for "
            f"{len(z)} of them: give per_sample=False, or map by jax.vmap over keys, examples and labels together"
        ) from error


def refuse_constraint(sampler: str, constraint: Any) -> None:
    """Raise ValueError for a constraint given to a sampler that chooses its own steps."""
    if constraint is None:
        return
    from sgmjax.samplers import registry  # which imports the samplers

    takers = ", ".join(name for name in registry.SAMPLERS if not registry.is_adaptive(name))
    raise InputError(f"{sampler} chooses its own steps and takes no constraint; these do: {takers}.")


class Node(NamedTuple):
    """One step of a grid, as the function that takes it sees it.

    Attributes:
        index: number of the step, from 0.
        t, s: scalars, the step goes from t down to s.
        noises: (draws, batch, k, *event) standard normal.
        extra: this step's slice of `per_step`, or None.
    """

    index: Any
    t: Any
    s: Any
    noises: Any
    extra: Any = None


class Constraint(NamedTuple):
    """What is done to the state after every step, whatever the sampler: how inpainting is built.

    A start drawn from the prior is projected too; a given `initial` is taken as it is.

    Attributes:
        project: project(z, t, noises) -> z, for z (batch, k, *event), the time t (batch,) just reached and noises
            (draws, batch, k, *event). After the denoising step t is 0.
        draws: normal draws `project` needs.
        repeats, jump: resampling (RePaint, Lugmayr et al. 2022): the grid is taken in stretches of `jump` steps, each
            `repeats` times, the state being diffused back up to the start of the stretch in between. It lets the rest
            of the state adapt to what was imposed, at `repeats` times the evaluations.
        lagging: project at the time the step started from rather than the one it reached, and the denoised state at
            times[-1] without noise: what the codes of score_sde and PSLD do. For published numbers.
    """

    project: Callable[..., Any]
    draws: int = 0
    repeats: int = 1
    jump: int = 10
    lagging: bool = False


def scan_grid(
    step: Callable,
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    draws: int,
    denoise: Denoise,
    evaluations: int | Sequence[int] = 1,
    score_at_end: bool = False,
    memory: Any = None,
    per_step: Any = None,
    stays: bool = False,
    every: int = 1,
    constraint: Constraint | None = None,
    initial: State | None = None,
    noise: Float[AnyArray, "steps draws batch k *event"] | None = None,
    trajectory: bool = False,
    sharding: Sharding | None = None,
    progress: Callable[[int], None] | None = None,
    dtype: DType = jnp.float32,
) -> tuple[Samples, SampleInfo]:
    """Run `step(z, memory, node) -> (z, memory)` over a grid, then denoise.

    What stands before `constraint` is the samplers' own; what follows is what every fixed-grid sampler accepts and
    hands on as `**options`.

    Args:
        step: takes z (batch, k, *event), what the last step remembered, and a `Node`.
        key, score_fn, sde, shape: the samplers' contract.
        times: (steps + 1,) decreasing grid.
        draws: normal draws a step needs.
        denoise: see `denoise_step`; False ends at times[-1].
        evaluations: score evaluations a step makes, or one number for each step.
        score_at_end: whether a step evaluates the score at the time where it ends: the last one does so at times[-1].
        memory: what the first step is given (a pytree of arrays, or a function of the first z that makes it).
        per_step: a pytree of arrays (steps, ...), such as coefficients computed on the host.
        stays: whether the grid may name a time several times, for steps that stay at it.
        every: keep every so-manieth state only, where `trajectory` keeps them; divides the number of steps.
        constraint: see `Constraint`.
        initial: state at times[0]; None draws from the prior, for a grid that starts at 1.
        noise: (steps, draws, batch, k, *event) to use in place of fresh draws: couples runs, replays recorded ones.
            The constraint's draws, if any, follow the step's on the second axis. With `repeats` there is an entry for
            each visit of `plan_visits`, whose last draw takes the state back up (used where a stretch is repeated).
        trajectory: keep all states (of repeated steps the last).
        sharding: a sharding for the state; without it every device would compute the whole batch.
        progress: called on the host with the number of finished steps.
        dtype: of the state and of the draws.
    """
    score_fn = checked_score(score_fn)
    times = check_times(times, stays=stays)
    if denoise or score_at_end:
        check_end(times[-1], sde, dtype)
    prior_key, scan_key, last_key = jax.random.split(key, 3)
    check_denoise(sde, denoise)
    z = start_state(prior_key, sde, shape, initial, dtype, times[0])
    if constraint is not None and initial is None:
        last_key, start_key = jax.random.split(last_key)
        start_noises = jax.random.normal(start_key, (constraint.draws, *z.shape), dtype)
        z = constraint.project(z, batch_time(times[0], z), start_noises)
    visits = plan_visits(len(times) - 1, constraint)
    count, resampled = len(visits.step), len(visits.step) > len(times) - 1
    total_draws = draws + (constraint.draws if constraint else 0) + resampled
    strides = every > 1 and trajectory and not resampled
    if noise is not None and np.shape(noise) != (count, total_draws, *z.shape):
        expected = (count, total_draws, *z.shape)
        raise InputError(f"noise has shape {np.shape(noise)}, expected {expected} (steps, draws, batch, k, *event).")
    constrain = (lambda v: v) if sharding is None else (lambda v: jax.lax.with_sharding_constraint(v, sharding))
    z = constrain(z)

    def once(z, memory, node: Node):
        z, memory = step(z, memory, node._replace(noises=node.noises[:draws]))
        if constraint is not None:
            time = batch_time(node.t if constraint.lagging else node.s, z)
            z = constraint.project(z, time, node.noises[draws : draws + constraint.draws])
        return constrain(z), memory

    def body(carry, xs):
        z, memory, kept = carry
        visit, i, t, s, source, extra, (since, opens) = xs
        noises = jax.random.normal(source, (total_draws, *z.shape), dtype) if noise is None else source
        if resampled:
            z = diffuse_back(sde, z, since, t, noises[-1])
            memory = jax.tree.map(lambda m, k: jnp.where(since < t, k, m), memory, kept)  # of the stretch's first step
            kept = jax.tree.map(lambda m, k: jnp.where(opens, m, k), memory, kept)
        z, memory = once(z, memory, Node(i, t, s, noises, extra))
        if progress is not None:
            jax.debug.callback(progress, visit + 1)
        return (z, memory, kept), (z if trajectory and not strides else None)

    def stride(carry, xs):
        carry, _ = jax.lax.scan(body, carry, xs)
        return carry, carry[0]

    source = jax.random.split(scan_key, count) if noise is None else jnp.asarray(noise, dtype)
    t, s, since = (jnp.asarray(times[i], dtype) for i in (visits.step, visits.step + 1, visits.since))
    per_step = jax.tree.map(lambda a: jnp.asarray(a)[visits.step], per_step) if resampled else per_step
    xs = (jnp.arange(count), jnp.asarray(visits.step), t, s, source, per_step, (since, jnp.asarray(visits.opens)))
    start = z
    memory = memory(z) if callable(memory) else memory
    if strides:
        xs = jax.tree.map(lambda a: a.reshape(count // every, every, *a.shape[1:]), xs)
    (final, _, _), path = jax.lax.scan(stride if strides else body, (z, memory, memory if resampled else None), xs)
    nfe = count * evaluations if isinstance(evaluations, int) else sum(evaluations[i] for i in visits.step)
    if denoise:
        last = jnp.full((shape[0],), times[-1], dtype)
        final = denoise_step(score_fn, sde, final, last, denoise)
        if constraint is not None:
            noises = jax.random.normal(last_key, (constraint.draws, *z.shape), dtype)
            at, noises = (last, jnp.zeros_like(noises)) if constraint.lagging else (jnp.zeros_like(last), noises)
            final = constrain(constraint.project(final, at, noises))
        nfe += 1
    if path is not None:
        path = path if strides else jnp.asarray(path)[visits.final][every - 1 :: every]
        path = jnp.concatenate([start[None], path], axis=0)
    return final[:, 0], SampleInfo(nfe=nfe, state=final, trajectory=path)


class Visits(NamedTuple):
    """The order in which the steps of a grid are taken when stretches of it are repeated; arrays (visits,).

    Attributes:
        step: which step.
        since: index of the grid time at which the state stands before it.
        opens: whether a stretch begins for the first time.
        final: (steps,) the last visit of each step.
    """

    step: np.ndarray
    since: np.ndarray
    opens: np.ndarray
    final: np.ndarray


def plan_visits(steps: int, constraint: Constraint | None) -> Visits:
    """The visits of a grid of so many steps: each once, or as `Constraint.repeats` and `jump` say.

    Raises:
        ValueError: repeats or jump below 1.
    """
    repeats, jump = (1, 1) if constraint is None else (constraint.repeats, constraint.jump)
    if repeats < 1 or jump < 1:
        raise InputError(f"repeats = {repeats}, jump = {jump}: both are at least 1.")
    stretches = [range(first, min(first + jump, steps)) for first in range(0, steps, jump)]
    order = np.array([i for stretch in stretches for _ in range(repeats) for i in stretch])
    since = np.concatenate([[0], order[:-1] + 1])
    opens = np.isin(order, [stretch[0] for stretch in stretches]) & (since == order)
    final = len(order) - 1 - np.unique(order[::-1], return_index=True)[1]
    return Visits(order, since, opens, final)


def diffuse_back(sde: SDE, z: State, s: Scalar, t: Scalar, noise: State) -> States:
    """A draw of z_t given z_s = z, for scalars s <= t; z itself where they are equal."""
    back = sde.transition_between(jnp.reshape(s, (1,)), jnp.reshape(t, (1,)))  # one matrix for the whole batch
    return jnp.where(s < t, back.perturb(z, noise), z)


def batch_time(t: Scalar, z: AnyArray) -> Float[jax.Array, " batch"]:
    """A scalar time for every element of the batch, (batch,)."""
    return jnp.full((z.shape[0],), t, z.dtype)
