"""Inpainting and colourisation: a part of the data is given, the sampler fills in the rest.

`inpaint` and `colorize` make a `Constraint`, which every fixed-grid sampler takes:

    samplers.sscs(key, score_fn, sde, shape, times=times, constraint=inpaint(sde, x0, mask))

After each step the known part of the state is replaced by a draw of z_t given the known x_0, from the kernel of hybrid
score matching (so an element's auxiliaries are replaced with its data variable), and after the last one by x_0 itself:

    z <- (1 - m) z + m (E_t (x_0, 0, ...) + L_t eps).

Colourisation is the same in rotated channels, of which the grey one is known.

How good it is: the score given the noised known part is not the score given the known part, and the replacements are
drawn anew at every step, so even with the exact score and many steps the rest follows the wrong law: it depends too
little on what is known. `repeats` goes back up and takes stretches of the grid several times, as RePaint does; the law
tends to the right one as they grow. Measured on two unit Gaussian pixels of correlation 0.9, one known to be 1.5, so
that the other is N(1.35, 0.19), with the exact score and SSCS of 50 steps:

    PSLD   repeats 1: N(0.92, 0.33)    4: N(1.08, 0.26)    8: N(1.17, 0.25)
    VP (EM, 100 steps)   1: N(0.93, 0.32)    4: N(1.27, 0.22)    8: N(1.31, 0.20)

Reference: Song et al. 2021, sec. 5 and app. I.2 (imputation, colourisation); Lugmayr et al. 2022, alg. 1 (`repeats`);
Pandey & Mandt 2023, app. (inpainting in phase space).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real, Shaped

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Data, Shape, State, States, Times
from sgmjax.samplers.common import Constraint
from sgmjax.sdes import SDE, linalg


def inpaint(
    sde: SDE,
    x0: Real[AnyArray, " *data"],
    mask: Sequence[Any] | Shaped[AnyArray, " ..."],
    *,
    repeats: int = 1,
    jump: int = 10,
    lagging: bool = False,
    basis: Real[AnyArray, "C C"] | None = None,
) -> Constraint:
    """The constraint that data are known where `mask` is 1.

    With `denoise` on (or a grid that ends at 0) the known part of the samples is x_0 exactly; a run that stops at t > 0
    returns it with the noise of t, like the rest.

    Args:
        sde: the process.
        x0: (batch, *event) or (*event); only its known part matters.
        mask: 0 or 1, of any shape that broadcasts to x0 by trailing axes, as (H, W, 1).
        repeats, jump: times each stretch of `jump` steps is taken; see `Constraint`. Multiplies the NFE.
        lagging: as in the codes of score_sde and PSLD; see `Constraint`.
        basis: None, or an orthogonal (C, C) whose columns are directions of the last axis: the mask then refers to the
            components in these directions.

    Raises:
        ValueError: shapes that do not fit; a mask with other values; a basis that is not orthogonal.

    Examples:
        >>> sde, times = sdes.psld(), samplers.time_grid("quadratic", 5)
        >>> constraint = samplers.inpaint(sde, jnp.array([0.5, 0.0]), [1, 0])  # the first of two numbers is known
        >>> samples, _ = samplers.sscs(
        ...     jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times, constraint=constraint)
        >>> samples[:, 0].tolist()
        [0.5, 0.5, 0.5]
    """
    x0, mask = jnp.asarray(x0), jnp.asarray(mask)
    check_mask(mask, x0.shape)
    if repeats < 1 or jump < 1:
        raise InputError(f"repeats = {repeats}, jump = {jump}: both are at least 1.")
    if basis is not None:
        basis = check_basis(basis, x0.shape[-1])

    def project(z, t, noises):
        event = z.shape[2:]
        if x0.shape not in (event, (z.shape[0], *event)):
            raise InputError(f"the known data have shape {x0.shape}, the samples {(z.shape[0], *event)}.")
        known = jnp.broadcast_to(x0.astype(z.dtype), (z.shape[0], *event))
        where = jnp.broadcast_to(
            mask.astype(z.dtype).reshape((1,) * (len(event) + 1 - mask.ndim) + mask.shape), known.shape
        )
        if basis is not None:
            known = turn(known, basis)
        given = draw_given(sde, known, t, noises[0])
        if basis is None:
            return jnp.where(where[:, None] > 0, given, z)
        # the rest is kept by adding the change of the known part: rotating it to and fro would only add rounding
        change = where[:, None] * (given - turn(z, basis))
        return z + turn(change, basis.T)

    return Constraint(project, draws=1, repeats=repeats, jump=jump, lagging=lagging)


def colorize(sde: SDE, grey: Real[AnyArray, "*data 3"], **options: Any) -> Constraint:
    """The constraint that the grey part of colour images is known.

    Args:
        sde: the process.
        grey: (batch, H, W, 3) or (H, W, 3): images of which only the mean over the colours matters.
        options: `repeats`, `jump`, `lagging`: as `inpaint`.

    Returns:
        A constraint under which each sample has, at every pixel, the mean colour of `grey`.

    Examples:
        >>> sde, times = sdes.vp(), samplers.time_grid("quadratic", 3)
        >>> constraint = samplers.colorize(sde, jnp.full((1, 2, 3), 0.25))  # images of 1 x 2 pixels
        >>> samples, _ = samplers.em(
        ...     jax.random.key(0), lambda z, t: -z, sde, (1, 1, 2, 3), times=times, constraint=constraint)
        >>> np.asarray(samples.mean(axis=-1)).round(3).tolist()
        [[[0.25, 0.25]]]
    """
    if jnp.ndim(grey) < 1 or jnp.shape(grey)[-1] != 3:
        raise InputError(f"grey has shape {jnp.shape(grey)}: colourisation needs three colours on the last axis.")
    return inpaint(sde, grey, np.array([1.0, 0.0, 0.0]), basis=grey_basis(), **options)


def grey_basis() -> Float[np.ndarray, "3 3"]:
    """(3, 3) orthogonal; the first column is grey, (1, 1, 1) / sqrt 3, the others span the colours."""
    return np.stack([np.ones(3) / 3**0.5, np.array([-2, 1, 1]) / 6**0.5, np.array([0, 1, -1]) / 2**0.5], axis=1)


def draw_given(sde: SDE, x0: Data, t: Times, noise: State) -> States:
    """A draw of z_t given x_0, whose data variable is x_0 itself at t = 0.

    (VE's kernel, as published, has standard deviation sigma_min at t = 0.)

    Args:
        x0: (batch, *event). t: (batch,). noise: (batch, k, *event) standard normal.
    """
    z0 = sde.augment(x0)
    z = sde.transition(t, "hsm").perturb(z0, noise)
    return z.at[:, 0].set(jnp.where(linalg.expand_to(t, x0.ndim) > 0, z[:, 0], x0))


def turn(x: AnyArray, basis: AnyArray) -> jax.Array:
    """Components of the last axis along the columns of `basis` (C, C): x_c b_cj summed over c, exactly in float32."""
    basis = jnp.asarray(basis, x.dtype)
    parts = [jnp.sum(x * basis[:, j].reshape((1,) * (x.ndim - 1) + (-1,)), axis=-1) for j in range(basis.shape[1])]
    return jnp.stack(parts, axis=-1)


def check_mask(mask: AnyArray, shape: Shape) -> None:
    """Raise ValueError for a mask that does not fit data of this shape or has values other than 0 and 1."""
    fits = mask.ndim <= len(shape) and all(m in (1, n) for m, n in zip(mask.shape[::-1], shape[::-1], strict=False))
    if not fits:
        raise InputError(f"mask has shape {mask.shape}, which does not broadcast to the data's {tuple(shape)}.")
    if linalg.is_concrete(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
        raise InputError("mask must be 1 where the data are known and 0 elsewhere.")


def check_basis(basis: AnyArray, size: int) -> np.ndarray:
    """The basis in float64, or ValueError."""
    basis = np.asarray(basis, np.float64)
    if basis.shape != (size, size) or not np.allclose(basis.T @ basis, np.eye(size), atol=1e-5):
        raise InputError(f"basis must be an orthogonal {size} x {size} matrix.")
    return basis
