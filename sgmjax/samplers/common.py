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

    Attributes:
        project: project(z, t, noises) -> z, for z (batch, k, *event), the time t (batch,) just reached and noises
            (draws, batch, k, *event). After the denoising step t is 0.
        draws: normal draws `project` needs.
    """

    project: Callable[..., Any]
    draws: int = 0


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
            The constraint's draws, if any, follow the step's on the second axis.
        trajectory: keep all states.
        sharding: a sharding for the state; without it every device would compute the whole batch.
        progress: called on the host with the number of finished steps.
    """
    times = check_times(times)
    prior_key, scan_key, last_key = jax.random.split(key, 3)
    check_denoise(sde, denoise)
    z = start_state(prior_key, sde, shape, initial, dtype)
    steps = len(times) - 1
    total_draws = draws + (constraint.draws if constraint else 0)
    if noise is not None and noise.shape != (steps, total_draws, *z.shape):
        expected = (steps, total_draws, *z.shape)
        raise ValueError(f"noise has shape {noise.shape}, expected {expected} (steps, draws, batch, k, *event).")
    constrain = (lambda v: v) if sharding is None else (lambda v: jax.lax.with_sharding_constraint(v, sharding))
    z = constrain(z)

    def body(carry, xs):
        z, memory = carry
        i, t, s, source, extra = xs
        noises = jax.random.normal(source, (total_draws, *z.shape), dtype) if noise is None else source
        z, memory = step(z, memory, Node(i, t, s, noises[:draws], extra))
        if constraint is not None:
            z = constraint.project(z, batch_time(s, z), noises[draws:])
        z = constrain(z)
        if progress is not None:
            jax.debug.callback(progress, i + 1)
        return (z, memory), (z if trajectory else None)

    source = jax.random.split(scan_key, steps) if noise is None else jnp.asarray(noise, dtype)
    xs = (jnp.arange(steps), jnp.asarray(times[:-1], dtype), jnp.asarray(times[1:], dtype), source, per_step)
    start = z
    (final, _), path = jax.lax.scan(body, (z, memory(z) if callable(memory) else memory), xs)
    nfe = steps * evaluations if isinstance(evaluations, int) else sum(evaluations)
    if denoise:
        last = jnp.full((shape[0],), times[-1], dtype)
        final = denoise_step(score_fn, sde, final, last, denoise)
        if constraint is not None:
            noises = jax.random.normal(last_key, (constraint.draws, *z.shape), dtype)
            final = constrain(constraint.project(final, jnp.zeros_like(last), noises))
        nfe += 1
    if path is not None:
        path = jnp.concatenate([start[None], jnp.asarray(path)], axis=0)
    return final[:, 0], SampleInfo(nfe=nfe, state=final, trajectory=path)


def batch_time(t, z):
    """A scalar time for every element of the batch, (batch,)."""
    return jnp.full((z.shape[0],), t, z.dtype)
