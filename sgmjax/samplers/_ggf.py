"""GGF, the adaptive solver of "Gotta Go Fast When Generating Data with Score-Based Models".

Each step compares Euler-Maruyama with the stochastic improved Euler method on the same noise, at two evaluations:

    K1 = h d(z, t) + sqrt(h) g(t) n,              z'  = z + K1               (lower order)
    K2 = h d(z', t - h) + sqrt(h) g(t - h) n,     z'' = z + (K1 + K2) / 2    (higher order)

d the drift of the reverse SDE. The error relative to a mixed tolerance, in every element of the state,

    e = || (z'' - z') / max(eps_abs, eps_rel max(|z'|, |z'_prev|)) ||,

decides: e <= 1 accepts z'' (extrapolation), and the next step is min(t - t_min, theta h e^-r), each sample's its own.

Reference: Jolicoeur-Martineau et al. 2021 (arXiv 2105.14080), algorithm 1; Roberts 2012 (stochastic improved Euler).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sgmjax._inputs import InputError
from sgmjax._kinds import checked_score
from sgmjax._types import (
    AnyArray,
    DType,
    Key,
    PerExample,
    Samples,
    Scalar,
    ScoreFn,
    Shape,
    Sharding,
    State,
    Times,
)
from sgmjax.samplers._adaptive_sde import brownian_increment, path_seeds
from sgmjax.samplers.common import (
    Denoise,
    SampleInfo,
    check_control,
    check_denoise,
    check_t_min,
    denoise_step,
    refuse_constraint,
    reverse_drift,
    start_state,
)
from sgmjax.samplers.declaration import adaptive
from sgmjax.sdes import SDE, linalg

REST = 1e-6  # an end nearer than this is reached in the same step


@adaptive
def ggf(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    t_min: Scalar = 1e-3,
    rtol: Scalar = 0.02,
    atol: Scalar = 2 / 256,
    safety: Scalar = 0.9,
    exponent: Scalar = 0.9,
    norm: Literal["l2", "linf"] = "l2",
    extrapolation: bool = True,
    first_step: Scalar = 0.01,
    rejected: Literal["keep", "redraw"] = "keep",
    denoise: Denoise = True,
    per_sample: bool = True,
    initial: State | None = None,
    noise: Float[AnyArray, "iterations batch k *event"] | None = None,
    max_steps: int = 4096,
    brownian_tol: float = 2.0**-20,
    constraint: None = None,
    sharding: Sharding | None = None,
    dtype: DType = jnp.float32,
) -> tuple[Samples, SampleInfo]:
    """Sample by GGF.

    Args:
        key, score_fn, sde, shape: as `em`.
        t_min: where the integration ends.
        rtol: eps_rel, 0.01 to 0.5 in the paper.
        atol: eps_abs, of the data variable; the default is one of 256 levels of data in [-1, 1] (the paper's for VP;
            1 / 256 for data in [0, 1]). An auxiliary variable's is atol times the ratio of their standard deviations in
            the prior, so that it does not matter in which units it is measured.
        safety, exponent: theta and r of the step-size rule.
        norm: of the error over a state: "l2" is its root mean square, "linf" its maximum.
        extrapolation: accept z''; False accepts z'.
        first_step: h at the start (0.01 in the paper's VP runs, 0.5 in some of its VE runs).
        rejected: what becomes of the noise of a rejected step. "keep" tries a shorter step on the same Brownian path (a
            virtual Brownian tree, see `adaptive_sde`). "redraw", as the official code, draws afresh. The error grows
            with z' - z, so the noise that is accepted opposes the drift, a bias that no tolerance removes: with the
            exact score of four Gaussian elements under VP the variance came out 1.1 to 1.2 times too large at every
            tolerance (it fades with the size of the event, as the norm concentrates). For published numbers.
        denoise: see `common.denoise_step`. The paper uses "tweedie".
        per_sample: steps of its own for each sample; False: the norm runs over the batch, which shares its steps.
        initial: state at the start; None draws from the prior.
        noise: (iterations, batch, k, *event) to use in place of fresh draws, one for each step tried: replays a run.
        max_steps: bound on accepted and rejected steps.
        brownian_tol: resolution of the path of rejected="keep".
        constraint: None; samplers on a grid take one (`em`, ...).
        sharding: sharding for the state.

    Returns:
        samples (batch, *event) and a `SampleInfo`; `nfe`, rejected steps included, is (batch,), a scalar without
        per_sample.

    Raises:
        ValueError: for settings outside their range, a constraint, an `initial` or `noise` of another shape.
        RuntimeError: when max_steps is reached.

    Examples:
        >>> sde = sdes.vp()
        >>> samples, info = samplers.ggf(jax.random.key(0), lambda z, t: -z, sde, (3, 2), rtol=0.1, denoise="tweedie")
        >>> samples.shape, (info.nfe % 2).tolist()  # of each: two evaluations a step tried, and the denoising one
        ((3, 2), [1, 1, 1])
    """
    import equinox as eqx

    check_denoise(sde, denoise)
    refuse_constraint("ggf", constraint)
    check_t_min(t_min, sde, dtype)
    check_control(
        rtol=rtol, atol=atol, safety=safety, exponent=exponent, first_step=first_step, brownian_tol=brownian_tol
    )
    if norm not in ("l2", "linf"):
        raise InputError(f"norm must be 'l2' or 'linf', not {norm!r}.")
    if rejected not in ("keep", "redraw"):
        raise InputError(f"rejected must be 'keep' or 'redraw', not {rejected!r}.")
    start_key, noise_key = jax.random.split(key)
    score_fn = checked_score(score_fn)
    z = start_state(start_key, sde, shape, initial, dtype)
    batch = shape[0]
    if noise is not None:
        noise = jnp.asarray(noise, dtype)
        if noise.ndim != z.ndim + 1 or noise.shape[1:] != z.shape:
            raise InputError(f"noise has shape {noise.shape}, expected (iterations, {', '.join(map(str, z.shape))}).")
        max_steps = min(max_steps, len(noise))
    constrain = (lambda v: v) if sharding is None else (lambda v: jax.lax.with_sharding_constraint(v, sharding))
    end = jnp.asarray(t_min, dtype)
    smallest = absolute_tolerance(sde, atol, z)
    draw, source = noise_source(
        noise_key, constrain(z), noise=noise, rejected=rejected, brownian_tol=brownian_tol, constrain=constrain
    )

    def unfinished(carry):
        index, _, _, _, t, _, _ = carry
        return jnp.any(t > end) & (index < max_steps)

    def body(carry):
        index, source, z, previous, t, h, tried = carry
        active = t > end
        s = jnp.where(t - h - end < REST, end, t - h)
        n, source = draw(source, index, t, s)
        euler, difference = step_pair(score_fn, sde, z, t, s, n)
        improved = euler + difference
        candidate, check = (improved, euler) if extrapolation else (euler, improved)
        tolerance = jnp.maximum(smallest, rtol * jnp.maximum(jnp.abs(check), jnp.abs(previous)))
        error = error_norm(difference / tolerance, norm, per_sample)
        accept = (error <= 1) & active
        kept = linalg.expand_to(accept, z.ndim)
        t = jnp.where(accept, s, t)
        # an error that is not finite (a score that overflowed) has no power to go by
        factor = jnp.where(jnp.isfinite(error), safety * error**-exponent, 0.1)
        h = jnp.where(active, jnp.minimum(t - end, h * factor), 0.0)
        z, previous = jnp.where(kept, candidate, z), jnp.where(kept, check, previous)
        arrays = (constrain(v) for v in (z, previous, t, h, tried + active))
        return index + 1, source, *arrays

    start = jnp.minimum(jnp.asarray(first_step, dtype), 1 - end)
    t, h, tried = (constrain(jnp.full((batch,), v)) for v in (jnp.ones((), dtype), start, 0))
    carry = (jnp.asarray(0), source, constrain(z), constrain(z), t, h, tried)
    iterations, _, final, _, t, _, tried = jax.lax.while_loop(unfinished, body, carry)
    final = final + eqx.error_if(
        jnp.zeros((), dtype),
        jnp.any(t > end),
        f"GGF did not reach t_min within max_steps = {max_steps} steps: give more, or larger tolerances.",
    )
    nfe = 2 * (tried if per_sample else iterations)
    if denoise:
        final = denoise_step(score_fn, sde, final, jnp.full((batch,), end), denoise)
        nfe = nfe + 1
    return final[:, 0], SampleInfo(nfe=nfe, state=final)


def step_pair(score_fn: ScoreFn, sde: SDE, z: State, t: Times, s: Times, noise: State) -> tuple[State, State]:
    """One step from t down to s by both methods, z' and z'' - z'. z, noise: (batch, k, *event); t, s: (batch,)."""
    h = linalg.expand_to(t - s, z.ndim)
    root = jnp.sqrt(h)
    first = h * reverse_drift(score_fn, sde, z, t) + root * linalg.apply(sde.diffusion(t), noise)
    euler = z + first
    second = h * reverse_drift(score_fn, sde, euler, s) + root * linalg.apply(sde.diffusion(s), noise)
    return euler, 0.5 * (second - first)


def absolute_tolerance(sde: SDE, atol: Scalar, z: State) -> jax.Array:
    """eps_abs of every variable, broadcastable against z (batch, k, *event)."""
    factor = jnp.asarray(sde.prior_factor(), z.dtype)
    std = jnp.sqrt(jnp.sum(factor**2, axis=1))
    return linalg.expand_to((atol * std / std[0])[None], z.ndim)


def error_norm(scaled: State, norm: str, per_sample: bool) -> PerExample:
    """Norm of the scaled error (batch, k, *event) of every sample, (batch,); that of the whole batch if it shares."""
    axes = tuple(range(1, scaled.ndim))
    if norm == "linf":
        each = jnp.max(jnp.abs(scaled), axis=axes)
        return each if per_sample else jnp.full_like(each, jnp.max(each))
    each = jnp.mean(scaled**2, axis=axes)
    return jnp.sqrt(each if per_sample else jnp.full_like(each, jnp.mean(each)))


def noise_source(
    key: Key, z: State, *, noise: AnyArray | None, rejected: str, brownian_tol: float, constrain: Callable
) -> tuple[Callable, Any]:
    """(draw, source): draw(source, index, t, s) gives standard normals like z for steps from t to s, and the source."""
    if noise is not None:
        return (lambda source, index, t, s: (noise[index], source)), ()
    if rejected == "redraw":

        def redraw(key, index, t, s):
            key, now = jax.random.split(key)
            return constrain(jax.random.normal(now, z.shape, z.dtype)), key

        return redraw, key

    struct = jax.ShapeDtypeStruct(z.shape[1:], z.dtype)
    path = jax.vmap(functools.partial(brownian_increment, struct, brownian_tol, levy_area=False))

    def keep(seeds, index, t, s):
        h = linalg.expand_to(jnp.where(t > s, t - s, 1.0), z.ndim)  # nothing moves in a finished sample
        return path(seeds, -t, -s).W / jnp.sqrt(h), seeds

    return keep, constrain(path_seeds(key, z.shape[0]))
