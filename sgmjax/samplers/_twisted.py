"""Twisted sequential Monte Carlo: samples given a measurement that are right as the particles grow, for any process.

The chain p(z_s | z_t) of the ancestral sampler (`ddim` with eta = 1, whose mean the estimate of the data sets and whose
covariance is that of the process given x_0 and z_t) is the model. Particles follow it with a score that is moved
towards the measurement, by some g that `posterior` knows,

    z_s = A z_t + P (score + g) + N xi,

and carry weights that make up for it. With the twisting functions p~(y | z_t) = N(y; A D(z_t), noise_std^2 + a r^2),
r^2 = s^2 sigma^2 / (s^2 + sigma^2), D the estimate of x_0 and a the mean square of a row of the operator, and p~ the
likelihood itself at the end, a step's weight is

    p~(y | z_s) / p~(y | z_t) exp(-xi . Q g - |Q g|^2 / 2),      Q = N^-1 P.

Whatever g and p~ are, weighted particles have the law of the chain given y in the limit of many of them: so what is
left of error is the chain's own, by its steps and its score. Wu et al. 2023 take g = grad log p~ and one variable.

Reference: Wu, Trippe, Naesseth, Blei & Cunningham 2023, "Practical and asymptotically exact conditional sampling in
diffusion models", alg. 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._ranges import COUNT, POSITIVE, check_range
from sgmjax._types import DType, HostGrid, Key, Samples, Scalar, ScoreFn, Shape, State, TimeGrid
from sgmjax.samplers._ddim import ddim_coefficients
from sgmjax.samplers.common import batch_time, check_known, check_times, start_state
from sgmjax.samplers.exponential import ExponentialCoefficients
from sgmjax.samplers.measurements import Measurement
from sgmjax.samplers.posterior import check_method, guide, white_variance
from sgmjax.sdes import SDE, linalg


class TwistedInfo(NamedTuple):
    """What `twisted` reports.

    Attributes:
        nfe: evaluations of the score a particle cost.
        state: final states (particles, k, *event) of the samples.
        log_evidence: estimate of log p(y) under the chain; unbiased is its exponential.
        effective: effective number of particles before every step and at the end, (steps + 1,).
        resampled: whether they were resampled there, (steps + 1,); at the end always.
    """

    nfe: int
    state: Any
    log_evidence: Any
    effective: Any
    resampled: Any


def twisted(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    measurement: Measurement,
    method: str = "mmps",
    options: dict[str, Any] | None = None,
    data_std: float = 1.0,
    ess: float = 0.5,
    initial: State | None = None,
    dtype: DType = jnp.float32,
) -> tuple[Samples, TwistedInfo]:
    """Samples of p(x_0 | y) by a population of particles.

    Args:
        key, score_fn, sde, times, initial, dtype: as the samplers'; the parameters of sde must be known, and times must
            end above 0.
        shape: (particles, *event): all of one measurement. For several take `jax.vmap`.
        measurement: with one value y, (*measured), and a noise_std above 0.
        method: how the particles are moved towards it: of `posterior_score`; "none": not at all.
        options: the method's settings.
        data_std: s of the twisting functions.
        ess: resample when the effective number of particles falls below this share of them; 0: only at the end.

    Returns:
        samples (particles, *event) of equal weight, among them copies, and a `TwistedInfo`.

    Raises:
        InputError: no noise in the measurement, a measurement for each particle, a share outside [0, 1].

    Reference: Wu et al. 2023, alg. 1 (systematic resampling).

    Examples:
        >>> known = samplers.measurements.inpainting(np.array([1, 0]))  # the first of two numbers
        >>> m = samplers.measurement(known, jnp.array([0.5]), noise_std=0.1)
        >>> times = samplers.time_grid("quadratic", 5)
        >>> samples, info = samplers.twisted(
        ...     jax.random.key(0), lambda z, t: -z, sdes.vp(), (8, 2), times=times, measurement=m)
        >>> samples.shape, info.effective.shape
        ((8, 2), (5,))
    """
    options = dict(options or {})
    check_range(data_std, POSITIVE, "data_std")
    check_range(shape[0], COUNT, "particles")
    check_known(ess=ess)
    if not 0 <= ess <= 1:
        raise InputError(f"ess = {ess:g}: must lie in [0, 1].")
    if linalg.is_concrete(measurement.noise_std) and not np.all(np.asarray(measurement.noise_std) > 0):
        raise InputError("noise_std = 0: particles are weighed by the likelihood; give a small noise, 0.01.")
    if np.ndim(measurement.noise_std):
        raise InputError("noise_std: twisted weighs particles by one number; divide operator and value by the others.")
    times = check_times(times)
    if method != "none":
        check_method(method, options, measurement.noise_std)
    chain = jax.tree.map(lambda v: jnp.asarray(v, dtype), _chain(sde, times))
    look_at = guide(score_fn, sde, measurement, method=method, **options)
    gain = _gain(measurement, shape[1:])
    number = shape[0]
    start_key, scan_key, last_key = jax.random.split(key, 3)
    z = start_state(start_key, sde, shape, initial, dtype, times[0])

    def seen(z, t):
        """score, g and log p~(y | z_t) of every particle."""
        score, moved, look = look_at(z, batch_time(t, z))
        variance = look.noise_variance + gain * white_variance(look.sigma, data_std)
        return score, moved, _log_normal(look.residual, variance)

    def step(carry, xs):
        z, log_weight, twist, evidence = carry
        key, t, c = xs
        score, moved, now = seen(z, t)
        log_weight = log_weight + now - twist
        z, (score, moved, now), log_weight, gained, report = _resample(key, (z, (score, moved, now)), log_weight, ess)
        white = jnp.asarray(jax.random.normal(jax.random.fold_in(key, 1), z.shape, dtype))
        toward = linalg.apply(c.white, moved)
        z = linalg.apply(c.transition, z) + linalg.apply(c.push, score + moved) + linalg.apply(c.noise, white)
        axes = tuple(range(1, z.ndim))
        log_weight = log_weight - jnp.sum(white * toward + 0.5 * toward**2, axis=axes)
        return (z, log_weight, now, evidence + gained), report

    zero = jnp.zeros(number, dtype)
    keys = jax.random.split(scan_key, len(times) - 1)
    carry = (z, zero, zero, jnp.zeros((), dtype))
    (z, log_weight, twist, evidence), reports = jax.lax.scan(step, carry, (keys, jnp.asarray(times[:-1], dtype), chain))
    _, _, look = look_at(z, batch_time(jnp.asarray(times[-1], dtype), z))
    x0 = look.estimate
    likelihood = _log_normal(measurement.values((number, *look.residual.shape[1:])) - measurement.of(x0),
                             jnp.full(number, look.noise_variance))  # fmt: skip
    log_weight = log_weight + likelihood - twist
    x0, z, _, gained, last = _resample(last_key, (x0, z), log_weight, 2.0)
    effective, resampled = (jnp.append(a, b) for a, b in zip(reports, last, strict=True))
    return x0, TwistedInfo(len(times), z, evidence + gained, effective, resampled)


class _Chain(NamedTuple):
    """The matrices of the ancestral chain, (steps, k, k): `ExponentialCoefficients`, and Q of the docstring."""

    transition: Any
    push: Any
    noise: Any
    white: Any


def _chain(sde: SDE, times: HostGrid) -> _Chain:
    c: ExponentialCoefficients = ddim_coefficients(sde, times, eta=1.0)
    return _Chain(c.transition, c.push, c.noise, np.linalg.solve(c.noise, c.push))


def _gain(measurement: Measurement, event: Shape) -> float:
    """The mean square of a row of the operator, linearised at zero: what white noise in x_0 adds to a measurement."""
    with jax.ensure_compile_time_eval():
        zero = jnp.zeros(event)
        found, push = jax.linearize(measurement.operator, zero)
        noise = np.random.default_rng(0).standard_normal((32, *event)).astype(np.float32)
        return float(jnp.mean(jax.vmap(push)(noise) ** 2))


def _log_normal(residual: Any, variance: Any) -> Any:
    """log N(residual; 0, variance) of every example. residual: (batch, *measured), variance: (batch,)."""
    size = residual[0].size
    square = jnp.sum(residual**2, axis=tuple(range(1, residual.ndim)))
    return -0.5 * (square / variance + size * jnp.log(2 * jnp.pi * variance))


def _resample(key: Key, particles: Any, log_weight: Any, share: Scalar) -> Any:
    """Systematic resampling where the effective number is below a share.

    Returns:
        The particles (both parts of the pair), their log weights, what the evidence gains by it, and
        (effective number, whether it was done).
    """
    number = len(log_weight)
    weight = jax.nn.softmax(log_weight)
    effective = 1 / jnp.sum(weight**2)
    due = effective < share * number
    points = (jnp.arange(number) + jax.random.uniform(key)) / number
    chosen = jnp.clip(jnp.searchsorted(jnp.cumsum(weight), points), 0, number - 1)
    index = jnp.where(due, chosen, jnp.arange(number))
    first, second = jax.tree.map(lambda v: v[index], particles)
    gained = jax.nn.logsumexp(log_weight) - jnp.log(number)
    kept = jnp.where(due, 0.0, log_weight)
    return first, second, kept, jnp.where(due, gained, 0.0), (effective, due)
