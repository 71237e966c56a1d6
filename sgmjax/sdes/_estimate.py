"""What a state tells of the data: one noisy look at every element, the same for all processes.

Given x_0, a state is z_t = m x_0 + L eps (the kernel of hybrid score matching; m the data column of its mean), alike in
every element of the event. Of x_0 it tells as much as the best linear estimate does,

    y = sigma^2 m^T Sigma^-1 z = x_0 + sigma n,      sigma(t)^-2 = m^T Sigma^-1 m,      Sigma = L L^T,

n standard normal: y is a sufficient statistic, so the posterior of x_0 is that of an ordinary image with ordinary
noise, whatever the process and the number of its variables. With D(y; sigma) the mean of that posterior, a denoiser,
the score of any process is

    score(z, t) = Sigma^-1 (m D(y; sigma) - z) = -A z - sigma Sigma^-1 m (y - D(y; sigma)) / sigma,
    A = Sigma^-1 - sigma^2 Sigma^-1 m m^T Sigma^-1.

The first part is the noise that y does not see, the second what a denoiser takes for noise. A is never formed by that
difference, both of whose terms are as large as 1/sigma^2: A = J^T (J Sigma J^T)^-1 J for any J whose rows span all that
is orthogonal to m, and with J z = z_i - (m_i / m_p) z_p, p the largest of m, nothing cancels. So the score is right in
float32 at every t, as far as the denoiser's (y - D) / sigma is.

sigma is the noise level of a process. For k = 1 it is std / mean, the sigma of Karras et al. 2022. It increases with t
for every process, since a later z_t is a function of an earlier one and of independent noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Data, Matrices, Noise, PerExample, Samples, State, States, Times, Vectors
from sgmjax.sdes import linalg
from sgmjax.sdes.base import SDE, Kernel, check_time

BLIND = 1e8  # noise level from which a state knows nothing of the data
EARLIEST = 1e-7  # times are looked for from here on
_LEAST_HEARD = 1e-6  # share of all variables alike in `heard_by_drift`
_BISECTIONS = {"float32": 40, "float64": 70}  # halvings of log t down to rounding


class Denoiser:
    """D(y; sigma), the mean of the posterior of x_0 given y = x_0 + sigma n. y (batch, *event), sigma (batch,).

    Called, it gives x_0, (batch, *event); `noise` gives the n that is left, (y - D(y; sigma)) / sigma, which a function
    of x_0 alone cannot give to better than rounding / sigma, nor one of n alone x_0 to better than rounding * sigma.

    Args:
        x0: the function (y, sigma) -> x_0; or
        noise: the function (y, sigma) -> n; or both, of one denoiser.

    Raises:
        InputError: neither.
    """

    def __init__(self, x0: Callable[..., Any] | None = None, *, noise: Callable[..., Any] | None = None):
        if x0 is None and noise is None:
            raise InputError("Denoiser: give x0 or noise, the function of (y, sigma) that there is, or both")
        self._x0, self._noise = x0, noise

    def __call__(self, y: Data, sigma: Times) -> Samples:
        """x_0."""
        if self._x0 is not None:
            return _checked(self._x0(y, sigma), y)
        return jnp.asarray(y) - linalg.expand_to(sigma, y.ndim) * self.noise(y, sigma)

    def noise(self, y: Data, sigma: Times) -> Samples:
        """n."""
        if self._noise is not None:
            return _checked(self._noise(y, sigma), y)
        return (jnp.asarray(y) - self(y, sigma)) / linalg.expand_to(sigma, y.ndim)


def _checked(out: Any, y: Any) -> Any:
    if out.shape != y.shape:
        raise InputError(
            f"the denoiser returned {out.shape} for data of shape {y.shape}: it must return the same shape"
        )
    return out


class Estimate(NamedTuple):
    """The look at x_0 that states at some times are.

    Attributes:
        sigma: its noise, (batch,).
        weights: (batch, k), y = weights . z.
        along: (batch, k), sigma Sigma^-1 m: minus the score of a unit of n.
        rest: A of the module's docstring, (batch, k, k).
        white: (batch, k), L^-1 m sigma, of length 1: eps = L^T A z + white n.
        kernel: of z_t given x_0.
    """

    sigma: PerExample
    weights: Vectors
    along: Vectors
    rest: Matrices
    white: Vectors
    kernel: Kernel

    def of(self, z: State) -> Samples:
        """y, the estimate of x_0: (batch, k, *event) -> (batch, *event)."""
        return jnp.sum(linalg.expand_to(self.weights, z.ndim) * z, axis=1)

    def score(self, z: State, noise: Data) -> States:
        """The score of all variables, where `noise` is a denoiser's, of y: (batch, *event)."""
        return -linalg.apply(self.rest, z) - linalg.expand_to(self.along, z.ndim) * noise[:, None]

    def noise(self, z: State, eps: Noise, weights: Vectors | None = None) -> Samples:
        """The n in y that a prediction of the noised variables' eps at z implies.

        Where the variables do not agree, as those of a network need not, by `weights` (batch, k), `heard_by_drift` or
        any other; None: `white`, which is least squares in eps.
        """
        white = self.kernel.restrict(linalg.expand_to(self.white, z.ndim))
        weighed = white if weights is None else self.kernel.restrict(linalg.expand_to(weights, z.ndim))
        other = self.kernel.restrict(-self.kernel.eps(linalg.apply(self.rest, z)))
        return jnp.sum(weighed * (eps - other), axis=1) / jnp.sum(weighed * white, axis=1)


def estimate(sde: SDE, t: Times) -> Estimate:
    """The look at x_0 that a state at t is. t: (batch,).

    Examples:
        >>> sde, t = sdes.psld(), jnp.full(1, 0.1)
        >>> z0, no_noise = sde.augment(jnp.full((1, 1), 2.0)), jnp.zeros((1, 2, 1))
        >>> z = sde.transition(t).perturb(z0, no_noise)
        >>> round(float(sdes.estimate(sde, t).of(z)[0, 0]), 3)  # x_0
        2.0
    """
    kernel = sde.transition(t, "hsm")
    mean, inverse = kernel.mean[:, :, 0], kernel.inverse_transpose
    white, sigma = _in_white(mean, inverse)
    white = white * sigma[:, None]
    along = linalg.apply(inverse, white)
    pivot = jax.nn.one_hot(jnp.argmax(jnp.abs(mean), axis=1), sde.k, dtype=mean.dtype)
    ratio = mean / jnp.sum(pivot * mean, axis=1)[:, None]
    others = jnp.eye(sde.k, dtype=mean.dtype)[None] - ratio[:, :, None] * pivot[:, None, :]
    others = others * (1 - pivot)[:, :, None]  # J, a row of zeros in place of the pivot's
    # A one in that row's place makes the factor of J Sigma J^T one that can be inverted.
    noises = linalg.matmul(others, kernel.factor)
    spread = linalg.triangular_factor(jnp.concatenate([noises, pivot[:, :, None]], axis=-1))
    half = linalg.matmul(jnp.swapaxes(linalg.inverse_transpose(spread), 1, 2), others)
    rest = linalg.matmul(jnp.swapaxes(half, 1, 2), half)
    return Estimate(sigma, along * sigma[:, None], along, rest, white, kernel)


def heard_by_drift(sde: SDE, t: Times, look: Estimate) -> Vectors:
    """Weights (batch, k) of `Estimate.noise` for the n whose score is nearest as the process uses it.

    That is the least |g^T (score - score_n)|: H white, H = L^-1 g g^T L^-T, scaled to the trace 1, and a little of
    white itself for where g is zero.

    Examples:
        >>> sde, t = sdes.psld(gamma=0.01), jnp.full(1, 0.5)
        >>> look = sdes.estimate(sde, t)
        >>> [round(float(v), 1) for v in look.white[0]]  # least squares hears both variables alike,
        [0.8, -0.6]
        >>> heard = sdes.heard_by_drift(sde, t, look)[0]  # the drift hardly hears that of the data
        >>> bool(abs(heard[0]) < 0.01 * abs(heard[1]))
        True
    """
    turned = linalg.matmul(jnp.swapaxes(look.kernel.inverse_transpose, 1, 2), sde.diffusion(t))
    noise = linalg.matmul(turned, jnp.swapaxes(turned, 1, 2))
    trace = jnp.trace(noise, axis1=1, axis2=2)[:, None]
    return linalg.apply(noise, look.white) / jnp.where(trace > 0, trace, 1.0) + _LEAST_HEARD * look.white


def noise_level(sde: SDE, t: Times) -> PerExample:
    """sigma(t) of the module's docstring, same shape and dtype as t (batch,). std / mean for k = 1.

    Examples:
        >>> sde = sdes.vp(beta_min=2.0, beta_max=2.0)
        >>> round(float(sdes.noise_level(sde, jnp.ones(1))[0]), 2)  # std / mean: sqrt(e^2 - 1)
        2.53
    """
    kernel = sde.transition(t, "hsm")
    return _in_white(kernel.mean[:, :, 0], kernel.inverse_transpose)[1]


def _in_white(mean: Vectors, inverse: Matrices) -> tuple[Vectors, PerExample]:
    """L^-1 m, (batch, k), and one over its length, the noise level, of m and L^-T."""
    white = linalg.apply(jnp.swapaxes(inverse, 1, 2), mean)
    return white, 1 / jnp.sqrt(jnp.sum(white**2, axis=1))


def time_at_noise_level(sde: SDE, sigma: Times) -> PerExample:
    """The t in [EARLIEST, 1] at which the process has noise level sigma; the nearer end if there is none.

    By bisection of log t, so for any process, inside jit too. Its derivative is that of the inverse function.

    Args:
        sde: the process.
        sigma: (batch,) positive.

    Returns:
        (batch,), of the dtype of sigma.

    Examples:
        >>> sde = sdes.ve(sigma_min=0.01, sigma_max=100.0)
        >>> round(float(sdes.time_at_noise_level(sde, jnp.ones(1))[0]), 3)
        0.5
    """
    check_time(sigma, name="sigma")
    kind = jnp.asarray(sigma).dtype
    sigma = jnp.asarray(sigma, jnp.result_type(kind, jnp.float32))

    def excess(log_t):
        return noise_level(sde, jnp.exp(log_t)) - sigma

    def bisect(excess, first):
        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            above = excess(middle) >= 0
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        return jax.lax.fori_loop(0, _BISECTIONS[str(sigma.dtype)], halve, (first, jnp.zeros_like(first)))[1]

    def divide(slope, value):  # of each by its own
        rate = slope(jnp.ones_like(value))
        return jnp.where(rate > 0, value / jnp.where(rate > 0, rate, 1.0), 0.0)

    first = jnp.full_like(sigma, np.log(EARLIEST))
    log_t = jax.lax.custom_root(excess, first, bisect, divide)
    inside = (log_t > first + 1e-5) & (log_t < 0)  # at an end the time does not change with sigma
    return jnp.exp(jnp.where(inside, log_t, jax.lax.stop_gradient(log_t))).astype(kind)
