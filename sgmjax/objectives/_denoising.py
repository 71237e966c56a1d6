"""Learning a denoiser: the squared error of x_0 given y = x_0 + sigma n, for no process or every one.

What a denoiser is for a process is in `sdes.estimate`: y is all that a state of any linear process tells of x_0, so a
loss over noise levels is the loss of all of them.

Reference: Karras et al. 2022, eq. (2) and sec. 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sgmjax._inputs import check_network_range
from sgmjax._types import Data, Key, PerExample, Times
from sgmjax.objectives.sigma_law import SigmaLaw, check_sigma_law
from sgmjax.objectives.time_law import at_least_float32
from sgmjax.objectives.weighting import Reduce, reduced
from sgmjax.sdes import Denoiser, linalg


def denoising_loss(
    denoiser: Denoiser | Callable[[Any, Any], Any],
    x0: Data,
    sigma: Times,
    noise: Data,
    *,
    weight: Callable[[Any], Any] | None = None,
    reduce: Reduce = "mean",
) -> PerExample:
    """weight(sigma) |D(x_0 + sigma n; sigma) - x_0|^2 for given noise: the deterministic part of `denoising`.

    Args:
        denoiser: D, a `sdes.Denoiser` or a function (y, sigma) -> x_0.
        x0: (batch, *event) data.
        sigma: (batch,) positive.
        noise: n, (batch, *event) standard normal.
        weight: of the noise levels, (batch,) -> (batch,); None: one.
        reduce: over the event.

    Returns:
        (batch,) losses.

    Raises:
        InputError: an unknown reduce; a denoiser that returns another shape than that of y.

    Examples:
        >>> nothing_done = sdes.Denoiser(lambda y, sigma: y)
        >>> x0, sigma, noise = jnp.zeros((1, 3)), jnp.full(1, 2.0), jnp.ones((1, 3))
        >>> objectives.denoising_loss(nothing_done, x0, sigma, noise).tolist()  # sigma^2, the mean of |sigma n|^2
        [4.0]
    """
    y = x0 + linalg.expand_to(sigma, noise.ndim) * noise
    known = denoiser if isinstance(denoiser, Denoiser) else Denoiser(denoiser)
    error = (known(y, sigma) - x0) ** 2
    loss = jnp.sum(error.reshape(error.shape[0], -1), axis=1)
    if weight is not None:
        loss = weight(sigma) * loss
    return reduced(loss, error.size // error.shape[0], reduce)


def denoising(
    key: Key, denoiser: Denoiser | Callable[[Any, Any], Any], x0: Data, *, sigma_law: SigmaLaw, **kwargs: Any
) -> PerExample:
    """Draw noise levels and noise and return the (batch,) losses, the weights of the levels included.

    Args:
        key: typed PRNG key.
        denoiser, x0 and the keyword arguments: see `denoising_loss`.
        sigma_law: how noise levels are drawn: `log_normal()`, `log_uniform(...)`, `of_process(...)`.

    Raises:
        InputError: x0 of whole numbers, as images are stored; a sigma_law that is none.

    Examples:
        >>> ring = exact.ring()
        >>> x0, _ = ring.sample(jax.random.key(0), 8)
        >>> law = objectives.log_normal()
        >>> losses = objectives.denoising(jax.random.key(1), ring.denoiser(), x0, sigma_law=law)
        >>> losses.shape
        (8,)
    """
    check_network_range(x0)
    check_sigma_law(sigma_law)
    x0 = x0.astype(at_least_float32(x0.dtype))
    sigma_key, noise_key = jax.random.split(key)
    sigma, weight = sigma_law.draw(sigma_key, x0.shape[0], x0.dtype)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
    return weight * denoising_loss(denoiser, x0, sigma, noise, **kwargs)
