"""Sampling given a measurement: the score of p(z_t | y), for every process and every sampler.

    m = samplers.measurement(samplers.measurements.super_resolution(4), y, noise_std=0.05)
    given = samplers.posterior_score(score_fn, sde, m, method="mmps")
    samples, info = samplers.unipc(key, given, sde, shape, times=times, denoise="tweedie")

By Bayes' rule score(z_t | y) = score(z_t) + grad log p(y | z_t). What a state tells of x_0 is one ordinary noisy image
of level sigma(t) (`sdes.estimate`), whatever the process; so what is asked for is the posterior of x_0 given it, whose
mean is the denoiser's D, and whose covariance is sigma^2 times D's Jacobian (Tweedie's formula of second order). With
it taken as normal, N(D, V), and A linear, or linearised at D,

    grad log p(y | z_t) = (d D / d z)^T A^T (noise_std^2 + A V A^T)^-1 (y - A D),                                  (1)

and the methods differ in V:

    "mmps"   sigma^2 d D / d y, by vector-Jacobian products in conjugate gradients (Rozet et al. 2024, eq. (14), alg. 2)
    "tmpd"   the same, the row sums of A V A^T in place of the matrix (Boys et al. 2023, eq. (19))
    "pigdm"  s^2 sigma^2 / (s^2 + sigma^2), right for normal white data of deviation s (Song et al. 2023, eqs. (7), (8))
    "dps"    0; of the residual the length alone is used, with a strength (Chung et al. 2023, alg. 1)

(1) is exact with "mmps" for normal data, and there for every linear process. Nothing here is asymptotically exact for
other data; see `twisted`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._kinds import checked_score, says
from sgmjax._types import Data, PerExample, ScoreFn
from sgmjax.samplers.measurements import Measurement
from sgmjax.score import agreed
from sgmjax.sdes import SDE, estimate, linalg


class Look(NamedTuple):
    """The linearised measurement at a batch of states; what the methods know.

    Attributes:
        residual: y - A D, (batch, *measured).
        push: v (batch, *event) -> A v. pull: w (batch, *measured) -> A^T w.
        covariance: v (batch, *event) -> sigma^2 (d D / d y)^T v, (batch, *event).
        sigma: noise level of the states, (batch,).
        noise_variance: noise_std^2, a number or (batch, *measured).
        estimate: D, (batch, *event).
    """

    residual: Data
    push: Callable[[Any], Any]
    pull: Callable[[Any], Any]
    covariance: Callable[[Any], Any]
    sigma: PerExample
    noise_variance: Any
    estimate: Data


def mmps(look: Look, *, iterations: int = 3) -> Data:
    """The covariance of the posterior itself. iterations: of the conjugate gradients; each is a derivative of D."""
    return solve(lambda w: look.push(look.covariance(look.pull(w))), look, iterations)


def tmpd(look: Look, *, shorten: bool = True) -> Data:
    """The row sums of the measurement's covariance A V A^T, as a diagonal.

    At levels at which they have no digit (in float32 above 900: the first step of third order) those of white data of
    deviation 1 take their place; where one is negative it is taken for 0.

    shorten: as `pigdm`. Where correlations are negative a row's sum is less than its variance, and the published step
    overshoots.
    """
    ones = look.pull(jnp.ones_like(look.residual))
    known = look.sigma**2 * jnp.finfo(look.estimate.dtype).eps < LOST
    white = _scale(white_variance(look.sigma, 1.0), ones)
    sums = look.push(jnp.where(linalg.expand_to(known, ones.ndim), look.covariance(ones), white))
    found = look.residual / (look.noise_variance + jnp.maximum(sums, 0.0))
    return shortened(found, look) if shorten else found


def pigdm(look: Look, *, data_std: float = 1.0, iterations: int = 5, shorten: bool = True) -> Data:
    """The covariance for white normal data of deviation data_std (published: 1).

    iterations: of the conjugate gradients, without D.

    shorten: a step that would go farther than the covariance itself allows ends where it is best along its own
    direction (a derivative more). The paper's gain overshoots by the data's variance where that is more than
    data_std^2 (along the first principal components of images by some dozens, and samples run away). For white data
    nothing is shortened. The authors' program has sigma^2 in place of the variance, `data_std=inf` here: it overshoots
    nowhere, and takes little from few measurements.
    """
    variance = white_variance(look.sigma, data_std)
    found = solve(lambda w: _scale(variance, look.push(look.pull(w))), look, iterations)
    return shortened(found, look) if shorten else found


def white_variance(sigma: Any, data_std: Any) -> Any:
    """Of the posterior of x_0 given its estimate at level sigma, for white normal data of deviation data_std."""
    return sigma**2 / (1 + (sigma / data_std) ** 2)


def dps(look: Look, *, scale: float = 1.0) -> Data:
    """Along grad |y - A D|, by which the estimate D is moved by `scale` times that gradient.

    The published step of a sampler, zeta grad |y - A D|^2 / |y - A D|, moves it by 2 zeta / (1 - (sigma_s /
    sigma_t)^2), sigma_s the level where the step ends: with many equal steps of log sigma that is one number.
    """
    axes = tuple(range(1, look.residual.ndim))
    length = jnp.sqrt(jnp.sum(look.residual**2, axis=axes))
    return _scale(scale / (look.sigma**2 * jnp.maximum(length, 1e-12)), look.residual)


METHODS: Mapping[str, Callable[..., Data]] = {"mmps": mmps, "tmpd": tmpd, "pigdm": pigdm, "dps": dps}
LOST = 0.1  # rounding of the covariance, sigma^2 times that of D's slope, above which its row sums are not taken
NEED_NOISE = ("mmps", "tmpd")  # their covariance may have no inverse


def posterior_score(
    score_fn: ScoreFn, sde: SDE, measurement: Measurement, *, method: str = "mmps", **options: Any
) -> ScoreFn:
    """The score of z_t given a measurement.

    Args:
        score_fn: score_fn(z, t) of the process, of an exact score or a network; that of the noised variables is enough.
        sde: the process.
        measurement: see `samplers.measurement`.
        method: "mmps", "tmpd", "pigdm" or "dps": see the module's docstring.
        options: the method's own settings: its function here.

    Returns:
        score_fn(z, t) -> (batch, k, *event), zero for variables without noise. A call is one evaluation of score_fn and
        1 (dps), 2 (pigdm), 3 (tmpd) or 1 + iterations (mmps) of its derivatives; `info.nfe` counts calls.

    Raises:
        InputError: a method that does not exist, settings that it does not have, a noise of 0 where it needs one; when
            the score is computed, a measurement of another shape than the operator's.

    Examples:
        >>> known = samplers.measurements.inpainting(np.array([1, 0]))  # the first of two numbers
        >>> m = samplers.measurement(known, jnp.array([0.5]), noise_std=0.01)
        >>> score_fn = samplers.posterior_score(lambda z, t: -z, sdes.vp(), m)  # of standard normal data, given m
        >>> times = samplers.time_grid("quadratic", 5)
        >>> samples, _ = samplers.ddim(jax.random.key(0), score_fn, sdes.vp(), (3, 2), times=times, denoise="tweedie")
        >>> np.asarray(samples[:, 0]).round(1).tolist()
        [0.5, 0.5, 0.5]
    """
    check_method(method, options, measurement.noise_std)
    guided = guide(score_fn, sde, measurement, method=method, **options)

    @says(kind="score")
    def given(z, t):
        score, toward, _ = guided(z, t)
        return score + toward

    return given


def settings(method: str) -> dict[str, Any]:
    """A method's own settings by name, with their default values."""
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_method(method: str, options: Mapping[str, Any], noise_std: Any) -> None:
    """Raise InputError for a method that does not exist, settings it does not have, a noise of 0 where it needs one."""
    if method not in METHODS:
        raise InputError(f"method: {method!r} is unknown; choose one of {', '.join(METHODS)}")
    known = settings(method)
    for name in options:
        if name not in known:
            raise InputError(f"{name}: method {method!r} has no such setting; there are {', '.join(known)}")
    if method in NEED_NOISE and linalg.is_concrete(noise_std) and not np.all(np.asarray(noise_std) > 0):
        raise InputError(
            f"noise_std = {noise_std}: {method!r} needs noise in the measurement; give a small one, 0.01, or take "
            "'pigdm'"
        )


def guide(
    score_fn: ScoreFn, sde: SDE, measurement: Measurement, *, method: str, **options: Any
) -> Callable[..., tuple[Any, Any, Look]]:
    """f(z, t) -> the score, what the measurement adds to it, eq. (1), and the `Look`; method "none" adds nothing."""
    look_at = linearised(score_fn, sde, measurement)

    def guided(z, t):
        score, seen, pull_back = look_at(z, t)
        if method == "none":
            return score, jnp.zeros_like(z), seen
        weights = METHODS[method](seen, **options)
        return score, sde.expand(sde.restrict(pull_back(seen.pull(weights)))), seen

    return guided


def linearised(
    score_fn: ScoreFn, sde: SDE, measurement: Measurement
) -> Callable[..., tuple[Any, Look, Callable[[Any], Any]]]:
    """f(z, t) -> the score, the `Look`, and v (batch, *event) -> (d D / d z)^T v, (batch, k, *event)."""
    std, score_fn = measurement.noise_std, agreed(checked_score(score_fn), sde)

    def look_at(z, t):
        look = estimate(sde, t)
        sigma, mean = look.sigma, linalg.expand_to(look.kernel.mean[:, :, 0], z.ndim)

        def denoised(z):
            score = score_fn(z, t)
            noise = look.noise(z, look.kernel.restrict(look.kernel.eps(score)))
            return look.of(z) - _scale(sigma, noise), score

        x0, transposed, score = jax.vjp(denoised, z, has_aux=True)
        pull_back = lambda v: transposed(v)[0]  # noqa: E731
        found, push = jax.linearize(measurement.of, x0)
        adjoint = jax.linear_transpose(push, x0)
        pull = lambda w: adjoint(w)[0]  # noqa: E731
        residual = measurement.values(found.shape).astype(found.dtype) - found
        covariance = lambda v: _scale(sigma**2, jnp.sum(mean * pull_back(v), axis=1))  # noqa: E731
        variance = jnp.asarray(std, z.dtype) ** 2
        if variance.ndim:  # of each value
            variance = jnp.broadcast_to(variance[None], residual.shape)
        return score, Look(residual, push, pull, covariance, sigma, variance, x0), pull_back

    return look_at


def solve(operator: Callable[[Data], Data], look: Look, iterations: int) -> Data:
    """(noise_std^2 + operator)^-1 residual by conjugate gradients, every example by its own.

    A network's covariance is neither quite symmetric nor quite positive, and then the iterates can run away: of an
    example's that of the least remainder is taken, where none is less than the residual the step along it that leaves
    least, and none is made where a direction is not positive.

    Args:
        operator: linear and positive on (batch, *measured), up to a network's faults.
        look: see `Look`.
        iterations: at most the size of a measurement are of use.
    """

    def step(i, state):
        found, rest, way, square, best, least = state
        through = look.noise_variance * way + operator(way)
        curvature = _dot(way, through)
        length = _ratio(square, curvature)
        found, rest = found + length * way, rest - length * through
        after = jnp.where(length > 0, _dot(rest, rest), 0.0)
        best = jnp.where(i == 0, _ratio(curvature, _dot(through, through)) * way, best)
        better = (length > 0) & (after < least)
        best, least = jnp.where(better, found, best), jnp.where(better, after, least)
        return found, rest, rest + _ratio(after, square) * way, after, best, least

    zero, square = jnp.zeros_like(look.residual), _dot(look.residual, look.residual)
    return jax.lax.fori_loop(0, iterations, step, (zero, look.residual, look.residual, square, zero, square))[4]


def shortened(found: Data, look: Look) -> Data:
    """`found` (batch, *measured), but no farther along its own direction than the covariance itself would go."""
    through = look.noise_variance * found + look.push(look.covariance(look.pull(found)))
    best, asked = _dot(found, look.residual), _dot(found, through)
    return jnp.where(asked > best, _ratio(best, asked), 1.0) * found


def _dot(a: Data, b: Data) -> Data:
    """Of every example, (batch, 1, ...)."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _ratio(a: Data, b: Data) -> Data:
    """a / b where both are positive, else 0."""
    return jnp.where((a > 0) & (b > 0), a / jnp.where(b > 0, b, 1.0), 0.0)


def _scale(by: PerExample, v: Data) -> Any:
    """Numbers (batch,) times (batch, ...)."""
    return linalg.expand_to(by, v.ndim) * v
