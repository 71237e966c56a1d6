"""Small dense linear algebra on the phase axis, accurate in float32.

Everything here works on stacks of k x k matrices with k the handful of phase-space variables. Products are written as
broadcast multiply and sum, never as `dot`: they fuse with their neighbours, and TPUs and TF32 GPUs would otherwise
round float32 inputs to 8 or 10 bits of mantissa.

The centre is `linear_transition`: the mean and the covariance factor of a linear SDE with constant coefficients after a
"time" B, for any k, right to a few float32 roundings from B = 1e-8 to stationarity.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.core import Tracer

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Computed, Numbers, Scalar, Times

# |F| h up to which a Taylor series of _ORDER terms and a Gauss-Legendre rule of _NODES nodes are exact to rounding.
_RADIUS = 1.0
_ORDER = {"float32": 11, "float64": 20}
_NODES = {"float32": 6, "float64": 11}


def matmul(a: AnyArray, b: AnyArray) -> Computed:
    """Product of (..., i, j) and (..., j, k) without dot: exact float32 arithmetic on every backend."""
    return jnp.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)


def conjugate(T: AnyArray, a: AnyArray) -> Computed:
    """T A T^T, for T (k, k) and A (..., k, k)."""
    T = jnp.asarray(T, a.dtype).reshape((1,) * (a.ndim - 2) + jnp.shape(T))
    return matmul(matmul(T, a), jnp.swapaxes(T, -1, -2))


def expand_to(v: Scalar | AnyArray, ndim: int) -> Computed:
    """Append singleton axes to `v` until it has `ndim` axes: the one broadcast helper."""
    return jnp.reshape(v, jnp.shape(v) + (1,) * (ndim - jnp.ndim(v)))


def apply(matrix: AnyArray, z: AnyArray) -> Computed:
    """Apply k x k matrices to the phase axis: (batch, i, j) or (i, j) on (batch, j, *event) -> (batch, i, *event)."""
    if jnp.ndim(matrix) == 2:
        matrix = matrix[None]
    rows, cols = matrix.shape[-2:]
    if z.ndim < 2 or z.shape[1] != cols:
        has = f"{z.shape[1]} phase variable{'s' * (z.shape[1] > 1)}" if z.ndim > 1 else "no axis of phase variables"
        raise InputError(f"a state of shape {z.shape} has {has} and the process {cols}; sde.augment(x0) makes states.")
    out = [
        sum(expand_to(matrix[:, i, j], z.ndim - 1) * z[:, j] for j in range(cols))  # unrolled: k is tiny
        for i in range(rows)
    ]
    return jnp.stack(out, axis=1)


def triangular_factor(a: AnyArray) -> Computed:
    """Lower triangular L with L L^T = A A^T, from the QR decomposition of A^T; A A^T itself is never formed.

    Rows are scaled to unit size first, so the accuracy does not depend on how different the variables' scales are.
    A zero row (a variable without noise) gives a zero row.

    Args:
        a: (..., k, m), any m >= 1.

    Returns:
        (..., k, k) with non-negative diagonal.
    """
    k = a.shape[-2]
    tiny = jnp.finfo(a.dtype).tiny
    scale = jnp.max(jnp.abs(a), axis=-1)
    scale = jnp.where(scale > 0, scale, 1.0)
    out = [[jnp.zeros(a.shape[:-2], a.dtype) for _ in range(k)] for _ in range(k)]
    directions: list = []
    for i in range(k):  # Gram-Schmidt on the rows, twice, so that the directions are orthogonal to rounding
        row = a[..., i, :] / scale[..., i, None]
        for _ in range(2 if directions else 0):
            for j, direction in enumerate(directions):
                along = jnp.sum(direction * row, axis=-1)
                row = row - along[..., None] * direction
                out[i][j] = out[i][j] + scale[..., i] * along
        square = jnp.sum(row * row, axis=-1)
        positive = square > tiny
        norm = jnp.sqrt(jnp.where(positive, square, 1.0))
        directions.append(jnp.where(positive[..., None], row / norm[..., None], 0.0))
        out[i][i] = jnp.where(positive, scale[..., i] * norm, 0.0)
    return jnp.stack([jnp.stack(row, axis=-1) for row in out], axis=-2)


def inverse_transpose(factor: AnyArray) -> Computed:
    """L^-T of a lower triangular factor, by substitution. (..., k, k) -> (..., k, k), upper triangular."""
    k = factor.shape[-1]
    zero, one = jnp.zeros(factor.shape[:-2], factor.dtype), jnp.ones(factor.shape[:-2], factor.dtype)
    inverse: list[list[Any]] = [[zero for _ in range(k)] for _ in range(k)]
    for c in range(k):
        for r in range(c, k):
            value = one if r == c else -sum(factor[..., r, m] * inverse[m][c] for m in range(c, r))
            inverse[r][c] = value / factor[..., r, r]
    return jnp.stack([jnp.stack([inverse[c][r] for c in range(k)], axis=-1) for r in range(k)], axis=-2)


def phi(x: AnyArray) -> Computed:
    """(e^x - 1) / x, with its limit 1 at 0."""
    small = jnp.abs(x) < 1e-4
    safe = jnp.where(small, 1.0, x)
    return jnp.where(small, 1.0 + x / 2 + x * x / 6, jnp.expm1(safe) / safe)


@dataclasses.dataclass(frozen=True)
class LinearDynamics:
    """`dz = F z dB + G dw`, with its mean and covariance factor at B = 0, step, 2 step, ..., rounded from float64.

    With the table a transition over any B is one product and one small QR, and its rounding error does not grow with
    B. (Squaring e^{F h} log2(B / h) times instead, in float32, leaves e^{F B} of a critically damped process with 1e-4
    relative error at the prior.)
    """

    F: Any  # (k, k)
    G: Any  # (k, r)
    step: Any = None  # (); None for k = 1, which has a closed form
    mean: Any = None  # (n + 1, k, k)
    factor: Any = None  # (n + 1, k, k), lower triangular
    powers: Any = None  # (m + 1, k, k), (F step)^j / j!: the Taylor series of e^{F x step}, |F| step <= 1
    forced: Any = None  # (m + 1, k, r), the same times G


jax.tree_util.register_dataclass(LinearDynamics, ["F", "G", "step", "mean", "factor", "powers", "forced"], [])


def linear_dynamics(F: AnyArray, G: AnyArray, B_max: Numbers, *, entries: int = 512) -> LinearDynamics:
    """Tabulate a linear SDE with constant coefficients up to B_max; float64 on the host when the inputs are concrete.

    Args:
        F: (k, k) drift matrix.
        G: (k, r) diffusion factor.
        B_max: largest elapsed time that will be asked for (positive scalar).
        entries: grid size; doubled until |F| B_max / entries <= 1 when the inputs are concrete.
    """
    if F.shape[0] == 1:
        return LinearDynamics(F=F, G=G)
    if is_concrete(F, G, B_max):
        F, G, B_max = (np.asarray(v, dtype=np.float64) for v in (F, G, B_max))
        while np.linalg.norm(F) * B_max > entries * _RADIUS:
            entries *= 2
        step = B_max / entries
        powers, forced = _taylor(np, F * step, G)
        e = scipy.linalg.expm(F * step)
        factor = _host_triangular_factor(_short_columns(np, forced, step, np.ones(1))[0])
        means, factors = [np.eye(len(F))], [np.zeros_like(F)]
        for _ in range(entries):
            means.append(e @ means[-1])
            factors.append(_host_triangular_factor(np.concatenate([factor, e @ factors[-1]], axis=1)))
        return LinearDynamics(
            F=F, G=G, step=step, mean=np.stack(means), factor=np.stack(factors), powers=powers, forced=forced
        )

    F, G, B_max = (jnp.asarray(v) for v in (F, G, B_max))
    step = B_max / entries
    powers, forced = _taylor(jnp, F * step, G)
    one = jnp.ones(1, F.dtype)
    e = _horner(powers, one)
    factor = triangular_factor(_short_columns(jnp, forced, step, one))

    def advance(carry, _):
        mean, total = carry
        joined = triangular_factor(jnp.concatenate([factor, matmul(e, total)], axis=-1))
        return (matmul(e, mean), joined), (mean[0], total[0])

    start = jnp.eye(F.shape[0], dtype=F.dtype)[None], jnp.zeros_like(factor)
    _, (means, factors) = jax.lax.scan(advance, start, None, length=entries + 1)
    return LinearDynamics(F=F, G=G, step=step, mean=means, factor=factors, powers=powers, forced=forced)


def _host_triangular_factor(a: np.ndarray) -> np.ndarray:
    """Lower triangular L with L L^T = A A^T for one matrix, by LAPACK's QR (signs of the columns are free)."""
    return np.asarray(np.linalg.qr(a.T, mode="r")).T


def triangular_on_host(a: np.ndarray) -> np.ndarray:
    """Lower triangular L with a positive diagonal and L L^T = A A^T, (..., k, m) -> (..., k, k)."""
    factor = np.swapaxes(np.linalg.qr(np.swapaxes(a, -1, -2), mode="r"), -1, -2)
    return factor * np.where(np.diagonal(factor, axis1=-2, axis2=-1) < 0, -1.0, 1.0)[..., None, :]


def is_concrete(*values: Any) -> bool:
    """Whether no value is a JAX tracer, so that numpy may look at it."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def _taylor(xp, A, G):
    """A^j / j! and A^j G / j! for j = 0, ..., as (m + 1, k, k) and (m + 1, k, r)."""
    powers = [xp.eye(A.shape[0], dtype=A.dtype)]
    for j in range(1, _order(A, len(A)) + 1):
        powers.append(xp.sum(A[:, :, None] * powers[-1][None], axis=1) / j)
    powers = xp.stack(powers)
    return powers, xp.sum(powers[..., None] * G[None, None], axis=2)


def _horner(coefficients, x) -> Any:
    """sum_j coefficients[j] x^j, from the small terms up. coefficients (m + 1, k, r), x (...) -> (..., k, r)."""
    order, shape = _order(x, coefficients.shape[1]), (1,) * x.ndim + coefficients.shape[1:]
    x, total = x[..., None, None], 0.0
    for j in range(order, -1, -1):
        total = total * x + coefficients[j].reshape(shape)
    return total


def _short_columns(xp, forced, step, x):
    """Columns A with A A^T = int_0^h e^{F s} G G^T e^{F^T s} ds, h = x step, x in [0, 1]. -> (..., k, r * nodes).

    Gauss-Legendre nodes s_i and weights w_i: the columns are sqrt(w_i) e^{F s_i} G. No covariance is formed. For more
    than four variables the columns are the parts of e^{F s} G along orthonormal polynomials, see `_moments`.
    """
    k = forced.shape[1]
    if _beyond(k):
        terms = _order(x, k) + 1
        moments = xp.asarray(_moments(k, terms), forced.dtype)[:, None, None]
        columns = _horner((forced[:terms, ..., None] * moments).reshape(terms, k, -1), x)
        return columns * xp.sqrt(x * step)[..., None, None]
    nodes, weights = np.polynomial.legendre.leggauss(_NODES[_kind(x)])
    nodes, weights = (xp.asarray(v, x.dtype) for v in ((nodes + 1) / 2, weights / 2))
    ones = (1,) * x.ndim
    flow = _horner(forced, x[..., None] * nodes.reshape(*ones, -1))  # (..., nodes, k, r)
    flow = flow * xp.sqrt(x[..., None] * weights.reshape(*ones, -1) * step)[..., None, None]
    flow = xp.moveaxis(flow, -3, -1)
    return flow.reshape(*flow.shape[:-2], flow.shape[-2] * flow.shape[-1])


@functools.lru_cache
def _moments(k: int, terms: int) -> np.ndarray:
    """The integrals over [0, 1] of s^m q_j, (terms, terms), of polynomials q_0, q_1, ... that are orthonormal there.

    They come from s^{k-1}, s^{k-2}, ..., 1, s^k, s^{k+1}, ...: along them the columns of what noise does to a chain of
    k variables in a short time are nearly triangular, and what is left of a row is no difference of large numbers.
    """
    exponents = [*range(k - 1, -1, -1), *range(k, terms)]
    nodes, weights = np.polynomial.legendre.leggauss(terms + 1)
    powers = np.sqrt(weights / 2)[:, None] * ((nodes + 1) / 2)[:, None] ** np.array(exponents)
    out = np.zeros((terms, terms))
    out[exponents] = np.asarray(np.linalg.qr(powers, mode="r")).T
    return out


def _beyond(k: int) -> int:
    """Terms and nodes more than those of few variables: noise reaches the farthest of a chain with the power k - 1."""
    return max(0, k - 4)


def _order(x, k: int) -> int:
    return _ORDER[_kind(x)] + _beyond(k)


def _kind(x) -> str:
    return "float64" if x.dtype == np.float64 else "float32"


@jax.jit
def linear_transition(dynamics: LinearDynamics, B: Times, initial: AnyArray | None = None) -> tuple[Computed, Computed]:
    """Mean matrix and covariance factor of `dz = F z dB + G dw` after a time B.

    E = e^{F B},  L L^T = int_0^B e^{F s} G G^T e^{F^T s} ds  (+ E X X^T E^T for an initial factor X).

    B = i step + r: the table gives the first part, a Taylor series and a Gauss-Legendre rule, both exact to rounding,
    the rest. Every covariance is kept as a factor and sums are taken by stacking columns and triangularising them (the
    square-root form of Kalman filtering), so only positive semi-definite terms are ever added and nothing cancels: the
    textbook Sigma_inf + E (Sigma_0 - Sigma_inf) E^T has no correct digit in float32 for CLD at t = 1e-4.

    Args:
        dynamics: from `linear_dynamics`.
        B: (batch,) elapsed time in [0, B_max]; its dtype is the precision of the result.
        initial: None or (k, m), a factor X of the covariance of the initial state.

    Returns:
        E (batch, k, k) and L (batch, k, k).
    """
    dtype = B.dtype
    F, G = jnp.asarray(dynamics.F, dtype), jnp.asarray(dynamics.G, dtype)
    initial = None if initial is None else jnp.asarray(initial, dtype)
    if F.shape[0] == 1:
        rate = F[0, 0]
        mean = jnp.exp(rate * B)
        variance = jnp.sum(G * G) * B * phi(2 * rate * B)
        if initial is not None:
            variance = variance + mean * mean * jnp.sum(initial**2)
        positive = variance > 0
        std = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)
        return mean[:, None, None], std[:, None, None]

    step = jnp.asarray(dynamics.step, dtype)
    last = dynamics.mean.shape[0] - 2  # the entry before B, so that the rest is above 0: its root has a derivative
    index = jax.lax.stop_gradient(jnp.clip(jnp.ceil(B / step) - 1, 0, last)).astype(jnp.int32)
    rest = jnp.maximum(B - index.astype(dtype) * step, 0.0) / step
    short = _horner(jnp.asarray(dynamics.powers, dtype), rest)
    mean = matmul(short, jnp.asarray(dynamics.mean, dtype)[index])
    columns = _short_columns(jnp, jnp.asarray(dynamics.forced, dtype), step, rest)
    parts = [matmul(short, jnp.asarray(dynamics.factor, dtype)[index]), columns]
    if initial is not None:
        parts.append(matmul(mean, initial[None]))
    return mean, triangular_factor(jnp.concatenate(parts, axis=-1))


def semidefinite_factor(matrix: AnyArray, tolerance: float = 1e-12) -> np.ndarray:
    """A lower triangular X with X X^T = matrix for a symmetric positive semi-definite k x k matrix (numpy, float64).

    Raises:
        ValueError: if the matrix is not positive semi-definite.
    """
    a = np.array(matrix, dtype=np.float64)
    k = a.shape[0]
    size = max(np.abs(a).max(), np.finfo(np.float64).tiny)
    out = np.zeros((k, k))
    for j in range(k):
        pivot = a[j, j]
        if pivot < -tolerance * size:
            raise InputError("matrix is not positive semi-definite")
        if pivot <= tolerance * size:
            if np.abs(a[j:, j]).max() > math.sqrt(tolerance) * size:
                raise InputError("matrix is not positive semi-definite")
            continue
        out[j:, j] = a[j:, j] / math.sqrt(pivot)
        a[j:, j:] -= np.outer(out[j:, j], out[j:, j])
    return out
