"""From a network to a denoiser D(y; sigma), y = x_0 + sigma n: how its output is scaled, how it is told of sigma.

    D(y; sigma) = c_skip y + c_out F(c_in y; c_noise),      n_hat = (y - D) / sigma = a y + b F,

F the network, of C channels in and out whatever the process. Each parameterisation is what F predicts, in the state in
which F sees the data:

    "edm"    Karras et al. 2022, table 1: data of standard deviation sigma_data; F and its input have unit variance.
    "x0"     the data themselves, from the variance preserving state y / sqrt(1 + sigma^2).
    "v"      alpha n - s x_0 from the same state alpha x_0 + s n, alpha^2 = 1 / (1 + sigma^2) (Salimans & Ho 2022).
    "flow"   n - x_0, the velocity of the straight path (1 - t) x_0 + t n, t = sigma / (1 + sigma) (Lipman et al. 2023;
             Liu et al. 2023), from its state y / (1 + sigma).

n_hat is never formed by the difference, so that a score made of it is right in float32 at the smallest sigma; but for
"x0", whose network knows it to no more than rounding / sigma.

The loss that goes with each is the mean square error of F: of D with the weight 1 / c_out^2, which for "edm" is the
paper's, for "v" 1 + 1 / sigma^2 ("SNR + 1"), for "flow" that of the velocity, for "x0" one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Float

from sgmjax._inputs import InputError, check_floats
from sgmjax._types import AnyArray, Network, PerExample, Times
from sgmjax.sdes import Denoiser, linalg

Prediction = Literal["edm", "x0", "v", "flow"]
SigmaConditioning = Literal["log_sigma", "t", "t999", "sigma"]


class Scales(NamedTuple):
    """The numbers of the module's docstring at some noise levels, (batch,) each.

    Attributes:
        c_in, c_skip, c_out: of D.
        noise_skip, noise_out: a and b, of n_hat.
    """

    c_in: PerExample
    c_skip: PerExample
    c_out: PerExample
    noise_skip: PerExample
    noise_out: PerExample


def _edm(sigma: Any, sigma_data: float) -> Scales:
    total = jnp.sqrt(sigma**2 + sigma_data**2)
    share = sigma / total
    return Scales(1 / total, (sigma_data / total) ** 2, share * sigma_data, share / total, -sigma_data / total)


def _x0(sigma: Any, sigma_data: float) -> Scales:
    zero, one = jnp.zeros_like(sigma), jnp.ones_like(sigma)
    return Scales(1 / jnp.sqrt(1 + sigma**2), zero, one, 1 / sigma, -1 / sigma)


def _v(sigma: Any, sigma_data: float) -> Scales:
    alpha = 1 / jnp.sqrt(1 + sigma**2)
    return Scales(alpha, alpha**2, -sigma * alpha, sigma * alpha**2, alpha)


def _flow(sigma: Any, sigma_data: float) -> Scales:
    data = 1 / (1 + sigma)
    return Scales(data, data, -sigma * data, data, data)


_SCALES: dict[str, Callable[[Any, float], Scales]] = {"edm": _edm, "x0": _x0, "v": _v, "flow": _flow}


def scales(parameterization: Prediction, sigma: Times, *, sigma_data: float = 0.5) -> Scales:
    """The numbers of a parameterisation. sigma: (batch,), positive; sigma_data: of "edm".

    Raises:
        InputError: an unknown parameterisation.

    Examples:
        >>> from sgmjax import preconditioning
        >>> found = preconditioning.scales("flow", jnp.ones(1))
        >>> float(found.c_in[0]), float(found.c_skip[0]), float(found.c_out[0])
        (0.5, 0.5, -0.5)
    """
    if parameterization not in _SCALES:
        raise InputError(f"parameterization must be one of {', '.join(map(repr, _SCALES))}, not {parameterization!r}.")
    return _SCALES[parameterization](jnp.asarray(sigma), sigma_data)


def condition(sigma: Times, time_conditioning: SigmaConditioning) -> Float[AnyArray, " batch"]:
    """What the network is given for the noise level, (batch,): EDM's log(sigma) / 4, or sigma itself, or a time.

    "t" is that of the straight path, sigma / (1 + sigma), whatever process samples; "t999" is 999 times that.

    Raises:
        InputError: an unknown conditioning.

    Examples:
        >>> from sgmjax import preconditioning
        >>> [preconditioning.condition(jnp.ones(1), name).tolist() for name in ("log_sigma", "t", "t999")]
        [[0.0], [0.5], [499.5]]
    """
    if time_conditioning == "log_sigma":
        return jnp.log(sigma) / 4
    if time_conditioning == "sigma":
        return jnp.asarray(sigma)
    if time_conditioning in ("t", "t999"):
        return (999 if time_conditioning == "t999" else 1) * (sigma / (1 + sigma))
    names = ", ".join(map(repr, get_args(SigmaConditioning)))
    raise InputError(f"time_conditioning of a denoiser must be one of {names}, not {time_conditioning!r}.")


def denoiser_from_network(
    network: Network,
    *,
    parameterization: Prediction = "edm",
    time_conditioning: SigmaConditioning = "log_sigma",
    sigma_data: float = 0.5,
) -> Denoiser:
    """The denoiser that a network is.

    Args:
        network: (x, cond) -> out; x and out (batch, *space, C), cond (batch,).
        parameterization: what `out` is; see the module's docstring.
        time_conditioning: see `condition`.
        sigma_data: standard deviation of the data, of "edm".

    Raises:
        InputError: an unknown word; a sigma_data that is not positive; when the denoiser is asked, an output that has
            not the shape of y.

    Examples:
        >>> from sgmjax import preconditioning
        >>> denoiser = preconditioning.denoiser_from_network(lambda x, cond: jnp.zeros_like(x), sigma_data=0.5)
        >>> x0 = denoiser(jnp.array([[2.0, 4.0]]), jnp.full(1, 0.5))  # c_skip y, half of y where sigma = sigma_data
        >>> [round(float(x), 3) for x in x0[0]]
        [1.0, 2.0]
    """
    scales(parameterization, jnp.ones(1), sigma_data=sigma_data)
    condition(jnp.ones(1), time_conditioning)
    if linalg.is_concrete(sigma_data) and not sigma_data > 0:
        raise InputError(f"sigma_data = {sigma_data:g}: the standard deviation of the data must be positive.")

    def of(y, sigma, skip: str, out: str):
        y = jnp.asarray(y)
        check_floats(y, "y")
        known = scales(parameterization, sigma, sigma_data=sigma_data)._asdict()
        wide = {name: linalg.expand_to(value, y.ndim).astype(y.dtype) for name, value in known.items()}
        predicted = network(wide["c_in"] * y, condition(sigma, time_conditioning)).astype(y.dtype)
        if predicted.shape != y.shape:
            raise InputError(
                f"the network returned {predicted.shape} for data of shape {y.shape}: a denoiser's network has as many "
                "channels as the data, whatever the process"
            )
        return wide[skip] * y + wide[out] * predicted

    return Denoiser(
        lambda y, sigma: of(y, sigma, "c_skip", "c_out"), noise=lambda y, sigma: of(y, sigma, "noise_skip", "noise_out")
    )
