"""From a network to the score function: the one place that knows channel layout and parameterisation.

A network here is a function `network(x, cond) -> out` of plain arrays, x (batch, ..., k C) with the phase variables
side by side in the channels (all data channels first, then all momentum channels), out (batch, ..., r C) for the r
variables that receive noise. Everything else in the library speaks of

    eps_fn(z, t)   -> (batch, r, *event)   prediction of the noised variables' eps
    score_fn(z, t) -> (batch, k, *event)   score, zero for variables without noise
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp

from sgmjax.sdes import SDE, linalg
from sgmjax.sdes.base import Matching

Network: TypeAlias = Callable[..., Any]  # (x, cond) -> out
EpsFn: TypeAlias = Callable[..., Any]  # (z, t) -> (batch, r, *event)
ScoreFn: TypeAlias = Callable[..., Any]  # (z, t) -> (batch, k, *event)
Parameterization = Literal["eps", "mixed", "score"]
TimeConditioning = Literal["t", "t999", "sigma", "level"]


def to_channels(z):
    """(batch, k, *space, C) -> (batch, *space, k C), phase-major."""
    moved = jnp.moveaxis(z, 1, -2)
    return moved.reshape(*moved.shape[:-2], moved.shape[-2] * moved.shape[-1])


def from_channels(x, k: int):
    """Inverse of `to_channels`."""
    if x.shape[-1] % k:
        raise ValueError(f"the network returned {x.shape[-1]} channels, which {k} phase variables cannot share.")
    split = x.reshape(*x.shape[:-1], k, x.shape[-1] // k)
    return jnp.moveaxis(split, -2, 1)


def condition(sde: SDE, t, time_conditioning: TimeConditioning, num_levels: int | None = None):
    """What the network is given for time, (batch,).

    "t"; "t999": 999 t (score_sde's VP); "sigma": sigma(t) (score_sde's VE, NCSNv2); "level": the index of the nearest
    of `num_levels` noise levels, int32, 0 for the largest (NCSN, whose norms have parameters for each level).
    """
    if time_conditioning == "t":
        return t
    if time_conditioning == "t999":
        return 999 * t
    if time_conditioning == "sigma":
        return sde.transition(t).factor[:, 0, 0]
    if time_conditioning == "level":
        if num_levels is None:
            raise ValueError("time_conditioning 'level' needs num_levels, the number of noise levels.")
        return jnp.round((1 - t) * (num_levels - 1)).astype(jnp.int32)
    raise ValueError(f"time_conditioning must be 't', 't999', 'sigma' or 'level', not {time_conditioning!r}.")


def gaussian_variance(sde: SDE, t):
    """Marginal variance (batch, k) of each variable used by the mixed score.

    The auxiliaries' is that of the HSM kernel (x_0 a point), the data variable's assumes data of unit variance: the
    choices of the CLD code for CLD and for VP.
    """
    kernel = sde.transition(t, "hsm")
    variance = jnp.sum(kernel.factor**2, axis=-1)
    return variance.at[:, 0].add(kernel.mean[:, 0, 0] ** 2)


def eps_from_network(
    network: Network,
    sde: SDE,
    *,
    parameterization: Parameterization = "eps",
    time_conditioning: TimeConditioning = "t",
    num_levels: int | None = None,
    matching: Matching = "hsm",
) -> EpsFn:
    """The eps prediction of a network.

    Args:
        network: see the module's docstring.
        sde: the process.
        parameterization: what the network's output is. "eps": eps itself. "mixed": the residual over the score of a
            Gaussian, score = -z / variance - L^-T out (Dockhorn et al. 2022, sec. 3.3; Vahdat et al. 2021). "score":
            the score of the noised variables (score_sde's VE networks, whose last layer divides by sigma).
        time_conditioning, num_levels: see `condition`.
        matching: the kernel the prediction refers to.

    Returns:
        eps_fn(z, t) -> (batch, r, *event).
    """
    if parameterization not in ("eps", "mixed", "score"):
        raise ValueError(f"parameterization must be 'eps', 'mixed' or 'score', not {parameterization!r}.")
    if parameterization == "mixed" and sde.frame is not None:
        raise ValueError("mixed score needs the noised variables to come last: use parameterization='eps'.")

    def eps_fn(z, t):
        out = network(to_channels(z), condition(sde, t, time_conditioning, num_levels))
        out = from_channels(out, sde.num_noised).astype(z.dtype)
        if out.shape != (z.shape[0], sde.num_noised, *z.shape[2:]):
            raise ValueError(
                f"the network returned {out.shape} for a state {z.shape}: its output channels must be "
                f"{sde.num_noised} (noised variables) x {z.shape[-1]}."
            )
        if parameterization == "eps":
            return out
        kernel = sde.transition(t, matching)
        if parameterization == "score":
            return kernel.restrict(kernel.eps(sde.expand(out)))
        variance = gaussian_variance(sde, t)
        gaussian = z / linalg.expand_to(variance, z.ndim)
        # eps = -L^T score over the noised block, which is closed under L^T
        gaussian = sde.expand(sde.restrict(gaussian))
        return out + kernel.restrict(-kernel.eps(gaussian))

    return eps_fn


def score_from_eps(eps_fn: EpsFn, sde: SDE, *, matching: Matching = "hsm") -> ScoreFn:
    """score_fn(z, t) = -L_t^-T eps_fn(z, t), zero for variables without noise.

    Official codes sample with the HSM covariance also after DSM training (PSLD); pass matching="hsm" for that.
    """

    def score_fn(z, t):
        return sde.transition(t, matching).score(eps_fn(z, t))

    return score_fn


def score_from_network(network: Network, sde: SDE, *, matching: Matching = "hsm", **kwargs) -> ScoreFn:
    """`eps_from_network` and `score_from_eps` in one: what most samplers' callers want."""
    return score_from_eps(eps_from_network(network, sde, matching=matching, **kwargs), sde, matching=matching)
