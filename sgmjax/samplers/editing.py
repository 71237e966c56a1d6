"""Starting from data: partly noised images, the probability flow as an encoder, and interpolation.

    z = noised(key, sde, x0, t)                      z_t ~ p(z_t | x_0), then any sampler on a grid that starts at t
    samplers.em(key, score_fn, sde, shape, times=start_at(times, t), initial=z)

    latent, nfe = encode(score_fn, sde, sde.augment(x0, key))    the probability flow from t_min up to 1
    x, info = samplers.ode(key, score_fn, sde, shape, initial=latent, denoise=False)     and back

Reference: Meng et al. 2022, alg. 1 (SDEdit: a start at t < 1); Song et al. 2021, sec. 4.3 and app. D.2 (encoding);
Song, Meng & Ermon 2021, app. D.5 (spherical interpolation of latents).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from sgmjax._inputs import InputError, check_network_range
from sgmjax._kinds import checked_score
from sgmjax._types import AnyArray, Data, DType, HostGrid, Key, Numbers, Scalar, ScoreFn, State, States, TimeGrid, Times
from sgmjax.samplers._probability_flow import evaluations, find_solver, ode, reuses_last_stage
from sgmjax.samplers.common import (
    Denoise,
    batch_time,
    check_control,
    check_state_dtype,
    check_t_min,
    check_times,
    reverse_drift,
)
from sgmjax.sdes import SDE, linalg


def noised(key: Key, sde: SDE, x0: Data, t: Scalar | Times) -> States:
    """Data as a state at time t: a draw of z_t given x_0, auxiliaries included.

    Args:
        key: typed PRNG key.
        sde: the process.
        x0: (batch, *event).
        t: a number in (0, 1], or (batch,).

    Returns:
        (batch, k, *event), the `initial` of a sampler whose grid starts at t.

    Raises:
        ValueError: t outside (0, 1]; data that are whole numbers, as images are stored.

    Examples:
        >>> sde, x0 = sdes.psld(), jnp.zeros((3, 2))
        >>> z = samplers.noised(jax.random.key(0), sde, x0, 0.5)
        >>> times = samplers.start_at(samplers.time_grid("quadratic", 5), 0.5)
        >>> samples, _ = samplers.em(jax.random.key(1), exact.ring().score_fn(sde), sde, (3, 2), times=times, initial=z)
        >>> z.shape, samples.shape
        ((3, 2, 2), (3, 2))
    """
    if linalg.is_concrete(t) and not (np.all(np.asarray(t) > 0) and np.all(np.asarray(t) <= 1)):
        raise InputError(f"t = {t}: a start must lie in (0, 1].")
    x0 = jnp.asarray(x0)
    check_network_range(x0)
    t = jnp.broadcast_to(jnp.asarray(t, x0.dtype), x0.shape[:1])
    eps = jax.random.normal(key, (x0.shape[0], sde.k, *x0.shape[1:]), x0.dtype)
    return sde.transition(t, "hsm").perturb(sde.augment(x0), eps)


def start_at(times: TimeGrid, t: float) -> HostGrid:
    """A grid with as many steps, shrunk so that it starts at t and ends where it ended.

    Raises:
        ValueError: t is not above the grid's end and at most 1.

    Examples:
        >>> samplers.start_at([1.0, 0.6, 0.2], 0.6).round(2).tolist()
        [0.6, 0.4, 0.2]
    """
    times = check_times(times)
    if not times[-1] < t <= 1:
        raise InputError(f"t = {t:g}: a start must lie above the grid's end {times[-1]:g} and be at most 1.")
    return times[-1] + (times - times[-1]) * ((t - times[-1]) / (times[0] - times[-1]))


def encode(
    score_fn: ScoreFn,
    sde: SDE,
    z: State,
    *,
    t_min: Scalar = 1e-3,
    rtol: Scalar = 1e-5,
    atol: Scalar = 1e-5,
    solver: Any = "Dopri5",
    max_steps: int = 4096,
) -> tuple[States, Numbers]:
    """The probability flow from data at t_min up to the prior at 1: the latent that `samplers.ode` decodes.

    `ode(..., initial=latent, denoise=False)` with the same t_min gives it back to the tolerance.

    Args:
        score_fn, sde: as a sampler's.
        z: (batch, k, *event), taken as the state at t_min: `sde.augment(x0, key)`; without a key its auxiliaries are
            zero, their mean.
        t_min, rtol, atol, solver, max_steps: as `samplers.ode`; the batch shares its steps.

    Returns:
        The state at t = 1, (batch, k, *event), and the score evaluations it took.

    Raises:
        ValueError, RuntimeError: as `samplers.ode`.

    Examples:
        >>> sde, data = sdes.vp(), exact.mixture([[0.0, 0.0]], 2.0)  # N(0, 4), which the flow takes to N(0, 1)
        >>> latent, nfe = samplers.encode(data.score_fn(sde), sde, sde.augment(jnp.array([[2.0, -4.0]])))
        >>> np.asarray(latent).round(2).tolist()
        [[[1.0, -2.0]]]
    """
    import diffrax
    import equinox as eqx

    score_fn = checked_score(score_fn)
    method: Any = find_solver(solver, adaptive=True)
    z = jnp.asarray(z)
    check_state_dtype(z.dtype)
    check_t_min(t_min, sde, z.dtype)
    check_control(rtol=rtol, atol=atol)

    def field(t, z, args):
        return -reverse_drift(score_fn, sde, z, batch_time(t, z), probability_flow=True)

    start, end = jnp.asarray(t_min, z.dtype), jnp.ones((), z.dtype)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        method,
        start,
        end,
        start,  # the field varies on the scale of t itself there
        z,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        solver_state=(jnp.asarray(False), field(start, z, None)) if reuses_last_stage(method) else None,
        throw=False,
    )
    assert solution.ys is not None
    latent = eqx.error_if(
        solution.ys[0],
        ~diffrax.is_successful(solution.result),
        f"the ODE was not solved within max_steps = {max_steps} steps: give more, or larger tolerances.",
    )
    return latent, evaluations(method, solution.stats["num_steps"])


def slerp(
    sde: SDE, a: State, b: State, weights: Sequence[float] | Real[AnyArray, " n"]
) -> Float[jax.Array, "batch n k *event"]:
    """Spherical interpolation of latents, in the coordinates in which the prior is white.

    A straight line between two draws of a Gaussian passes through states that are too short to be draws; the arc keeps
    their length. (sin((1 - w) theta) a + sin(w theta) b) / sin theta, theta the angle between a and b.

    Args:
        sde: the process, whose prior says what is white.
        a, b: (batch, k, *event).
        weights: (n,); 0 is a, 1 is b.

    Returns:
        (batch, n, k, *event).

    Examples:
        >>> a, b = jnp.array([[[7.0, 1.0]]]), jnp.array([[[1.0, 7.0]]])
        >>> arc = samplers.slerp(sdes.vp(), a, b, [0.0, 0.5, 1.0])
        >>> np.asarray(arc).round(3).tolist()  # all as long as a and b
        [[[[7.0, 1.0]], [[5.0, 5.0]], [[1.0, 7.0]]]]
    """
    white = linalg.inverse_transpose(jnp.asarray(sde.prior_factor(), a.dtype)[None]).swapaxes(1, 2)
    flat_a, flat_b = (linalg.apply(white, z).reshape(len(z), -1) for z in (a, b))
    lengths = jnp.linalg.norm(flat_a, axis=1) * jnp.linalg.norm(flat_b, axis=1)
    cosine = jnp.sum(flat_a * flat_b, axis=1) / jnp.maximum(lengths, jnp.finfo(a.dtype).tiny)
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))[:, None]
    w = jnp.asarray(weights, a.dtype)[None]
    straight = jnp.abs(jnp.sin(angle)) < 1e-3  # (anti)parallel: the arc is a line, or is not defined
    sine = jnp.where(straight, 1.0, jnp.sin(angle))
    first = jnp.where(straight, 1 - w, jnp.sin((1 - w) * angle) / sine)
    second = jnp.where(straight, w, jnp.sin(w * angle) / sine)
    first, second = (linalg.expand_to(part, a.ndim + 1) for part in (first, second))
    return first * a[:, None] + second * b[:, None]


def interpolate(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    a: Data,
    b: Data,
    *,
    num: int = 8,
    t_min: Scalar = 1e-3,
    rtol: Scalar = 1e-5,
    atol: Scalar = 1e-5,
    denoise: Denoise = False,
    dtype: DType = jnp.float32,
) -> tuple[Float[jax.Array, "batch num *event"], Numbers]:
    """Images between two images: both encoded, their latents interpolated, and decoded.

    Args:
        key: draws the auxiliaries of the states that are encoded, the same for a and b.
        score_fn, sde: as a sampler's.
        a, b: (batch, *event) data.
        num: images a row, both ends included; at least 2.
        t_min, rtol, atol: of both ways.
        denoise: of the way back; False gives the ends back to the tolerance, while the network's denoising step changes
            them a little.

    Returns:
        (batch, num, *event), and the score evaluations a row took (there and back).

    Examples:
        >>> a, b = jnp.array([[7.0, 1.0]]), jnp.array([[1.0, 7.0]])
        >>> between, nfe = samplers.interpolate(jax.random.key(0), lambda z, t: -z, sdes.vp(), a, b, num=3)
        >>> np.asarray(between).round(2).tolist()  # of standard normal data, which the flow leaves in place: an arc
        [[[7.0, 1.0], [5.0, 5.0], [1.0, 7.0]]]
    """
    if num < 2:
        raise InputError(f"num = {num}: an interpolation has its two ends at least.")
    a, b = jnp.asarray(a), jnp.asarray(b)
    for end in (a, b):
        check_network_range(end)
    a, b = a.astype(dtype), b.astype(dtype)
    if a.shape != b.shape:
        raise InputError(f"the ends have shapes {a.shape} and {b.shape}: give as many of one as of the other.")
    encode_key, decode_key = jax.random.split(key)
    n = len(a)
    options: dict[str, Any] = {"t_min": t_min, "rtol": rtol, "atol": atol}
    # the same auxiliaries at both ends, so that nothing but the data differs
    start = sde.augment(a, encode_key).at[:, 0].set(a)  # without the noise of sigma2_0
    ends = jnp.concatenate([start, start.at[:, 0].set(b)])
    latent, there = encode(score_fn, sde, ends, **options)
    between = slerp(sde, latent[:n], latent[n:], jnp.linspace(0.0, 1.0, num, dtype=dtype))
    flat = between.reshape(n * num, *between.shape[2:])
    x, info = ode(
        decode_key, score_fn, sde, (n * num, *a.shape[1:]), initial=flat, denoise=denoise, dtype=dtype, **options
    )
    return x.reshape(n, num, *a.shape[1:]), there + info.nfe
