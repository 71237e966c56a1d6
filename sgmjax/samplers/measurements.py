"""What was measured of the data: y = A(x_0) + noise_std n. `posterior` samples given it.

    m = measurement(super_resolution(4), y, noise_std=0.05)          # A of one example, y (*measured) or (batch, ...)
    m = measurement(lambda x: jnp.abs(jnp.fft.fft2(x[..., 0])), y, noise_std=0.1)   # any function

The operators here are linear; each returns a function of one example. What is asked of A is that JAX can differentiate
it: the adjoint of a linear one, and the linearisation of others, are found so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real, Shaped

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Data, Shape
from sgmjax.sdes import linalg

Operator = Callable[[Any], Any]  # of one example (*event) -> (*measured)


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """See `measurement`.

    Attributes:
        operator: A, of one example.
        value: y, (*measured) or (batch, *measured).
        noise_std: of the noise in y; 0: none.
    """

    operator: Operator
    value: Any
    noise_std: Any

    def of(self, x: Data) -> jax.Array:
        """A of every example. (batch, *event) -> (batch, *measured).

        Raises:
            InputError: an operator that does not give what was measured.
        """
        found = jax.vmap(self.operator)(x)
        self.values(found.shape)
        return found

    def values(self, shape: Shape) -> jax.Array:
        """y for a batch; shape: (batch, *measured), what the operator gives.

        Raises:
            InputError: a y of another shape.
        """
        y = jnp.asarray(self.value)
        if y.shape not in (tuple(shape[1:]), tuple(shape)):
            raise InputError(
                f"the measurement has shape {y.shape}, and the operator gives {tuple(shape[1:])} of an example "
                f"(with a batch {tuple(shape)}): give one of them"
            )
        return jnp.broadcast_to(y, shape)

    def is_linear(self, event: Shape) -> bool:
        """Whether A is, tried on two examples. event: shape of an example."""
        with jax.ensure_compile_time_eval():
            a, b = np.random.default_rng(0).standard_normal((2, *event)).astype(np.float32)
            apart, together = 2.0 * self.operator(a) + self.operator(b), self.operator(2.0 * a + b)
            return bool(jnp.max(jnp.abs(apart - together)) <= 1e-3 * (1e-6 + jnp.max(jnp.abs(apart))))


def measurement(operator: Operator, value: Real[AnyArray, " *measured"], noise_std: Any = 0.0) -> Measurement:
    """A measurement of the data.

    Args:
        operator: A, a function of one example (*event) -> (*measured), differentiable by JAX.
        value: y, (*measured) for all samples, or (batch, *measured).
        noise_std: standard deviation of the noise in y, in its units: a number, or one for each value, (*measured);
            0: none (not with every method).

    Raises:
        InputError: a value that is not finite, a negative deviation.

    Examples:
        >>> m = samplers.measurement(samplers.measurements.super_resolution(2), jnp.zeros((2, 2, 1)), noise_std=0.1)
        >>> m.of(jnp.ones((3, 4, 4, 1))).shape  # of three images
        (3, 2, 2, 1)
        >>> samplers.measurement(lambda x: jnp.abs(x), jnp.ones(2)).is_linear((2,))
        False
    """
    if not callable(operator):
        raise InputError(f"operator: must be a function of one example, not {operator!r}")
    if linalg.is_concrete(value) and not np.isfinite(np.asarray(value)).all():
        raise InputError("the measurement has values that are not finite")
    if linalg.is_concrete(noise_std) and not (np.isfinite(noise_std).all() and np.all(np.asarray(noise_std) >= 0)):
        raise InputError(f"noise_std = {noise_std}: must be 0 or positive, and finite")
    return Measurement(operator, value, noise_std)


# ---- operators


def inpainting(mask: Shaped[AnyArray, " ..."]) -> Operator:
    """Of an example what is known: where mask is 1. mask: of a shape that broadcasts by trailing axes, as (H, W, 1).

    Examples:
        >>> operator = samplers.measurements.inpainting(np.array([1, 0, 1]))
        >>> operator(jnp.array([1.0, 2.0, 3.0])).tolist()
        [1.0, 3.0]
    """
    known = np.asarray(mask)
    if not np.isin(known, (0, 1)).all():
        raise InputError("inpainting: the mask must be 0 or 1 everywhere")

    def operator(x):
        if known.ndim > x.ndim:
            raise InputError(f"inpainting: the mask has shape {known.shape}, an example {x.shape}")
        where = np.broadcast_to(known.reshape((1,) * (x.ndim - known.ndim) + known.shape), x.shape)
        return x.reshape(-1)[np.flatnonzero(where)]

    return operator


def colorization() -> Operator:
    """The grey part: the mean of the channels. (*space, C) -> (*space).

    Examples:
        >>> operator = samplers.measurements.colorization()
        >>> operator(jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])).tolist()  # of two pixels
        [2.0, 0.0]
    """
    return lambda x: jnp.mean(x, axis=-1)


def super_resolution(factor: int) -> Operator:
    """Means over squares (intervals, cubes) of `factor` elements a side. (*space, C) -> (*space / factor, C).

    Examples:
        >>> operator = samplers.measurements.super_resolution(2)
        >>> operator(jnp.array([[1.0], [3.0], [0.0], [1.0]])).tolist()  # of an interval; images are (H, W, C)
        [[2.0], [0.5]]
    """
    if factor != int(factor) or factor < 1:
        raise InputError(f"super_resolution: factor = {factor}: must be a whole number from 1 on")
    factor = int(factor)

    def operator(x):
        space = x.shape[:-1]
        if any(size % factor for size in space):
            raise InputError(f"super_resolution: factor = {factor} does not divide the example's shape {space}")
        blocks = [part for size in space for part in (size // factor, factor)]
        return jnp.mean(x.reshape(*blocks, x.shape[-1]), axis=tuple(range(1, 2 * len(space), 2)))

    return operator


def blur(std: float, *, radius: int | None = None) -> Operator:
    """A Gaussian blur of standard deviation `std` elements, edges repeated. (*space, C) -> (*space, C).

    radius: where the kernel is cut, default three deviations.

    Examples:
        >>> operator = samplers.measurements.blur(1.0, radius=1)
        >>> np.asarray(operator(jnp.array([[0.0], [1.0], [0.0]])), float).round(2).tolist()  # as e^(-1/2), 1, e^(-1/2)
        [[0.27], [0.45], [0.27]]
    """
    if not std > 0:
        raise InputError(f"blur: std = {std}: must be positive")
    reach = int(np.ceil(3 * std)) if radius is None else int(radius)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std) ** 2)
    weights = weights / weights.sum()

    def operator(x):
        for axis in range(x.ndim - 1):
            pad = [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)]
            wide = jnp.pad(x, pad, mode="edge")
            parts = [jax.lax.slice_in_dim(wide, i, i + x.shape[axis], axis=axis) for i in range(len(weights))]
            x = jnp.tensordot(jnp.asarray(weights, wide.dtype), jnp.stack(parts), 1)
        return x

    return operator


def fourier(mask: Shaped[AnyArray, " ..."]) -> Operator:
    """The Fourier coefficients where mask is 1, of every channel. (*space, C) -> (2, known coefficients, C), real.

    The transform is unitary, zero frequency first; the first axis has real and imaginary parts. mask: (*space).

    Examples:
        >>> operator = samplers.measurements.fourier(np.array([1, 0, 0, 0]))  # the lowest frequency
        >>> found = operator(jnp.ones((4, 1)))
        >>> found.shape, round(float(found[0, 0, 0]), 3)  # the real part is 4 / sqrt(4)
        ((2, 1, 1), 2.0)
    """
    known = np.asarray(mask)
    if not np.isin(known, (0, 1)).all():
        raise InputError("fourier: the mask must be 0 or 1 everywhere")
    where = np.flatnonzero(known)

    def operator(x):
        if x.shape[:-1] != known.shape:
            raise InputError(f"fourier: the mask has shape {known.shape}, an example {x.shape[:-1]} and channels")
        found = jnp.fft.fftn(x, axes=tuple(range(x.ndim - 1)), norm="ortho")
        found = found.reshape(-1, x.shape[-1])[where]
        return jnp.stack([found.real, found.imag])

    return operator


def matrix(A: Float[AnyArray, "measured size"] | Sequence[Any]) -> Operator:
    """A matrix on the numbers of an example in order. (*event) -> (measured,).

    Examples:
        >>> operator = samplers.measurements.matrix([[1.0, 1.0], [0.0, 2.0]])
        >>> operator(jnp.array([3.0, 4.0])).tolist()
        [7.0, 8.0]
    """
    rows = np.asarray(A)
    if rows.ndim != 2:
        raise InputError(f"matrix: A has shape {rows.shape}: give (measured, size of an example)")

    def operator(x):
        if x.size != rows.shape[1]:
            raise InputError(f"matrix: A has {rows.shape[1]} columns, an example {x.size} numbers")
        return jnp.matmul(jnp.asarray(rows, x.dtype), x.reshape(-1), precision=jax.lax.Precision.HIGHEST)

    return operator
