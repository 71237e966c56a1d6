"""What all samplers share: the reverse drift, the denoising step, the scan over a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax.sdes import SDE, linalg

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


def reverse_drift(score_fn: Callable, sde: SDE, z, t, *, probability_flow: bool = False):
    """Drift of the reverse process in reversed time, -f z + g g^T score (half the score for the ODE).

    Reference: Anderson 1982; Song et al. 2021, eqs. (6) and (13).

    Args:
        z: (batch, k, *event). t: (batch,) forward time.
    """
    scale = 0.5 if probability_flow else 1.0
    return scale * linalg.apply(sde.diffusion_squared(t), score_fn(z, t)) - sde.drift(z, t)


def denoise_step(score_fn: Callable, sde: SDE, z, t, kind: Denoise):
    """The last step, from t to 0 without noise. z (batch, k, *event), t (batch,).

    "sde" (True) is one Euler step of the reverse SDE's drift, as published for CLD and PSLD; "ode" one of the
    probability flow (PSLD's ODE sampler); "tweedie" the posterior mean of x_0, for processes that noise every variable.
    """
    check_denoise(sde, kind)
    if kind == "tweedie":
        kernel = sde.transition(t, "hsm")
        posterior = z + linalg.apply(kernel.covariance, score_fn(z, t))
        x0 = posterior[:, 0] / linalg.expand_to(kernel.mean[:, 0, 0], z.ndim - 1)
        return jnp.concatenate([x0[:, None], posterior[:, 1:]], axis=1)
    drift = reverse_drift(score_fn, sde, z, t, probability_flow=kind == "ode")
    return z + linalg.expand_to(t, z.ndim) * drift


def check_denoise(sde: SDE, kind: Denoise) -> None:
    """Raise ValueError for an unknown kind of denoising step, or one that the process does not have."""
    if kind not in (True, False, "sde", "ode", "tweedie"):
        raise ValueError(f"denoise must be a bool, 'sde', 'ode' or 'tweedie', not {kind!r}.")
    if kind == "tweedie" and sde.num_noised != sde.k:
        raise ValueError(f"denoise='tweedie' needs the score of all {sde.k} variables: use denoise=True.")


def start_state(key, sde: SDE, shape: tuple[int, ...], initial, dtype):
    """The state to start from, (batch, k, *event): `initial`, checked, or a draw from the prior."""
    z = sde.prior_sample(key, shape, dtype) if initial is None else jnp.asarray(initial, dtype)
    expected = (shape[0], sde.k, *shape[1:])
    if z.shape != expected:
        raise ValueError(f"initial has shape {z.shape}, expected {expected} (batch, k, *event).")
    return z


def check_times(times) -> np.ndarray:
    """A usable grid as float64.

    Raises:
        ValueError: unless it is 1-D, has two entries, and decreases within [0, 1].
    """
    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2 or not (np.diff(times) < 0).all() or times[0] > 1 or times[-1] < 0:
        raise ValueError("times must be a 1-D grid of at least two entries that decreases within [0, 1].")
    return times


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
        repeats: how often each step is taken: after all but the last time the state is diffused back up to where the
            step started, which lets the rest of the state adapt to what was imposed (RePaint, Lugmayr et al. 2022).
            Each repetition costs the step's evaluations again, and one more normal draw.
        lagging: project at the time the step started from rather than the one it reached, and the denoised state at
            times[-1] without noise: what the codes of score_sde and PSLD do. For published numbers.
    """

    project: Callable[..., Any]
    draws: int = 0
    repeats: int = 1
    lagging: bool = False


def scan_grid(
    step: Callable,
    key,
    score_fn: Callable,
    sde: SDE,
    shape: tuple[int, ...],
    *,
    times,
    draws: int,
    denoise: Denoise,
    evaluations: int | Sequence[int] = 1,
    memory: Any = None,
    per_step: Any = None,
    constraint: Constraint | None = None,
    initial=None,
    noise=None,
    trajectory: bool = False,
    sharding=None,
    progress: Callable[[int], None] | None = None,
    dtype=jnp.float32,
):
    """Run `step(z, memory, node) -> (z, memory)` over a grid, then denoise.

    The first eleven arguments are the samplers' own; what follows `per_step` is what every fixed-grid sampler accepts
    and hands on as `**options`.

    Args:
        step: takes z (batch, k, *event), what the last step remembered, and a `Node`.
        key, score_fn, sde, shape: the samplers' contract.
        times: (steps + 1,) decreasing grid.
        draws: normal draws a step needs.
        denoise: see `denoise_step`; False ends at times[-1].
        evaluations: score evaluations a step makes, or one number for each step.
        memory: what the first step is given (a pytree of arrays, or a function of the first z that makes it).
        per_step: a pytree of arrays (steps, ...), such as coefficients computed on the host.
        constraint: see `Constraint`.
        initial: state at times[0]; None draws from the prior.
        noise: (steps, draws, batch, k, *event) to use in place of fresh draws: couples runs, replays recorded ones.
            The constraint's draws, if any, follow the step's on the second axis; with `repeats` > 1 each repetition
            has these and then the draw that takes its start back up (not used in the first one).
        trajectory: keep all states.
        sharding: a sharding for the state; without it every device would compute the whole batch.
        progress: called on the host with the number of finished steps.
    """
    times = check_times(times)
    prior_key, scan_key, last_key = jax.random.split(key, 3)
    check_denoise(sde, denoise)
    z = start_state(prior_key, sde, shape, initial, dtype)
    if constraint is not None and initial is None:
        last_key, start_key = jax.random.split(last_key)
        start_noises = jax.random.normal(start_key, (constraint.draws, *z.shape), dtype)
        z = constraint.project(z, batch_time(times[0], z), start_noises)
    steps = len(times) - 1
    repeats = 1 if constraint is None else constraint.repeats
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}: a step is taken at least once.")
    once_draws = draws + (constraint.draws if constraint else 0)
    total_draws = once_draws if repeats == 1 else repeats * (once_draws + 1)
    if noise is not None and noise.shape != (steps, total_draws, *z.shape):
        expected = (steps, total_draws, *z.shape)
        raise ValueError(f"noise has shape {noise.shape}, expected {expected} (steps, draws, batch, k, *event).")
    constrain = (lambda v: v) if sharding is None else (lambda v: jax.lax.with_sharding_constraint(v, sharding))
    z = constrain(z)

    def once(z, memory, node: Node):
        z, memory = step(z, memory, node._replace(noises=node.noises[:draws]))
        if constraint is not None:
            time = batch_time(node.t if constraint.lagging else node.s, z)
            z = constraint.project(z, time, node.noises[draws:once_draws])
        return constrain(z), memory

    def body(carry, xs):
        z, memory = carry
        i, t, s, source, extra = xs
        noises = jax.random.normal(source, (total_draws, *z.shape), dtype) if noise is None else source
        node = Node(i, t, s, noises, extra)
        if repeats == 1:
            z, memory = once(z, memory, node)
        else:
            z, memory = repeat(once, sde, z, memory, node, repeats)
        if progress is not None:
            jax.debug.callback(progress, i + 1)
        return (z, memory), (z if trajectory else None)

    source = jax.random.split(scan_key, steps) if noise is None else jnp.asarray(noise, dtype)
    xs = (jnp.arange(steps), jnp.asarray(times[:-1], dtype), jnp.asarray(times[1:], dtype), source, per_step)
    start = z
    (final, _), path = jax.lax.scan(body, (z, memory(z) if callable(memory) else memory), xs)
    nfe = repeats * (steps * evaluations if isinstance(evaluations, int) else sum(evaluations))
    if denoise:
        last = jnp.full((shape[0],), times[-1], dtype)
        final = denoise_step(score_fn, sde, final, last, denoise)
        if constraint is not None:
            noises = jax.random.normal(last_key, (constraint.draws, *z.shape), dtype)
            at, noises = (last, jnp.zeros_like(noises)) if constraint.lagging else (jnp.zeros_like(last), noises)
            final = constrain(constraint.project(final, at, noises))
        nfe += 1
    if path is not None:
        path = jnp.concatenate([start[None], jnp.asarray(path)], axis=0)
    return final[:, 0], SampleInfo(nfe=nfe, state=final, trajectory=path)


def repeat(once: Callable, sde: SDE, z, memory, node: Node, repeats: int):
    """`repeats` times `once(z, memory, node)`, the state being diffused back from node.s to node.t in between.

    Every repetition starts from the same memory: it is the same step.
    """
    back = sde.transition_between(jnp.reshape(node.s, (1,)), jnp.reshape(node.t, (1,)))  # one for the whole batch
    draws = len(node.noises) // repeats

    def body(carry, xs):
        z, _ = carry
        first, noises = xs
        z = jnp.where(first, z, back.perturb(z, noises[-1]))
        return once(z, memory, node._replace(noises=noises)), None

    grouped = node.noises.reshape(repeats, draws, *node.noises.shape[1:])
    (z, memory), _ = jax.lax.scan(body, (z, memory), (jnp.arange(repeats) == 0, grouped))
    return z, memory


def batch_time(t, z):
    """A scalar time for every element of the batch, (batch,)."""
    return jnp.full((z.shape[0],), t, z.dtype)
