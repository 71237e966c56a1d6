"""A linear SDE whose coefficients change in time, dz = A(t) z dt + G(t) dw, tabulated: transitions right in float32.

[0, 1] is cut into pieces on which A and G are polynomials of x in [-1, 1]. Of each is kept the fundamental matrix Y,
Y(0) = 1, as a power series. Within a piece

    Phi(x', x) = Y(x') Y(x)^-1 = 1 + (x' - x) Y[x', x] Y(x)^-1,

Y[x', x] the divided difference, which is formed without a difference: so what is small is right relative to its own
size. The covariance that the piece adds is kept as columns, of a Gauss-Legendre rule, and never formed; over whole
pieces there are tables, of single ones and of runs of 2, 4, 8, ... of them, all in float64 on the host. So a transition
over any times is two partial pieces and at most two runs of each length, and no difference of covariances.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Computed, Times
from sgmjax.sdes import linalg

DEGREE = 10  # of A and G on a piece
ORDER = 14  # of the fundamental matrix
NODES = 6  # of the Gauss-Legendre rule of a part of a piece
FIRST = 1e-11  # end of the first piece; the next ones grow by RATIO
RATIO = 1.5
STRENGTH = 0.5  # largest |A| dt over a piece
FINEST = 1e-5  # shortest piece, relative to its time, into which coefficients that change fast are cut
MOST = 4096  # pieces
TOLERANCE = 1e-9  # of the polynomials, relative to the largest entry on the piece

_X, _W = np.polynomial.legendre.leggauss(NODES)
UNIT_NODES, UNIT_WEIGHTS = (_X + 1) / 2, _W / 2  # on [0, 1]
_POINTS = np.cos(np.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))  # Chebyshev's
_BETWEEN = np.linspace(-0.97, 0.98, 9)  # where the polynomials are looked at


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A and G on the pieces of [0, 1], n of them: a power of 2.

    Attributes:
        edges: (n + 1,), numbers of float32.
        drift, noise: power series in x, (n, DEGREE + 1, k, k) both.
    """

    edges: Any
    drift: Any
    noise: Any


@dataclasses.dataclass(frozen=True)
class Table:
    """Transitions of dz = A z dt + G dw, upwards in time, or downwards of the process that runs so.

    Attributes:
        pieces: A and G; downwards, z changes by -A z for each unit of time that is gone back.
        fundamental: Y, (n, ORDER + 1, k, k).
        mean, factor: Phi and the covariance's factor over runs of 1, 2, 4, ... pieces, one after another,
            (2 n - 1, k, k).
        down: the direction; static.
    """

    pieces: Pieces
    fundamental: Any
    mean: Any
    factor: Any
    down: bool


jax.tree_util.register_dataclass(Pieces, ["edges", "drift", "noise"], [])
jax.tree_util.register_dataclass(Table, ["pieces", "fundamental", "mean", "factor"], ["down"])


# ---------------------------------------------------------------------------------------------------------- on the host
def cut(A: Callable[[float], np.ndarray], G: Callable[[float], np.ndarray]) -> Pieces:
    """The pieces of two matrix functions of t in [0, 1], each (k, k), float64.

    Raises:
        InputError: a value that is not finite; a function that changes faster than any piece.
    """
    known: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    def at(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for t in times.ravel():
            if t not in known:
                pair = A(float(t)), G(float(t))
                for name, value in zip("fg", pair):
                    if not np.isfinite(value).all():
                        raise InputError(
                            f"{name}({t:.6g}) is not finite: the process must have a rate on all of [0, 1]"
                        )
                known[t] = pair
        found = [known[t] for t in times.ravel()]
        return tuple(np.stack(one).reshape(*times.shape, *one[0].shape) for one in zip(*found))  # type: ignore

    count = math.ceil(math.log(1 / FIRST) / math.log(RATIO))
    edges = np.concatenate([[0.0], np.geomspace(FIRST, 1.0, count + 1)])
    edges = edges.astype(np.float32).astype(np.float64)
    good = np.zeros(len(edges) - 1, bool)
    while not good.all():
        low, width = edges[:-1][~good], np.diff(edges)[~good]
        checks = at(low[:, None] + width[:, None] * (1 + _BETWEEN) / 2)
        strong = np.linalg.norm(checks[0], axis=(2, 3)).max(axis=1) * width > STRENGTH
        split = strong
        for value, found in zip(_series(at(low[:, None] + width[:, None] * (1 + _POINTS) / 2)), checks):
            error = np.abs(_value(value[:, None], _BETWEEN[None]) - found).max(axis=(1, 2, 3))
            split = split | (error > TOLERANCE * np.abs(found).max(axis=(1, 2, 3)))
        split &= low > 0
        if (short := split & (width < FINEST * low)).any() or (split.any() and len(edges) > MOST):
            t = low[short if short.any() else split][0]
            raise InputError(f"f or g changes too fast at t = {t:.6g}: they must be smooth functions on [0, 1]")
        marks = np.flatnonzero(~good)
        good[marks[~split]] = True
        middles = (edges[marks[split]] + edges[marks[split] + 1]) / 2
        good = np.insert(good, marks[split], False)
        edges = np.insert(edges, marks[split] + 1, middles.astype(np.float32).astype(np.float64))
    while len(edges) - 1 & len(edges) - 2:  # to a power of 2, the widest first
        widest = int(np.argmax(np.diff(np.log(edges[1:])))) + 1
        middle = float(np.float32((edges[widest] + edges[widest + 1]) / 2))
        edges = np.insert(edges, widest + 1, middle)
    drift, noise = _series(at(edges[:-1, None] + np.diff(edges)[:, None] * (1 + _POINTS) / 2))
    return Pieces(edges, drift, noise)


def _series(values: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Power series in x of values at _POINTS: (n, DEGREE + 1, k, k) each, the points in the second axis."""
    chebyshev = np.linalg.inv(np.polynomial.chebyshev.chebvander(_POINTS, DEGREE))
    convert = np.zeros((DEGREE + 1, DEGREE + 1))
    for m in range(DEGREE + 1):
        power = np.polynomial.chebyshev.cheb2poly(np.eye(DEGREE + 1)[m])
        convert[: len(power), m] = power
    return [np.einsum("pm,nm...->np...", convert @ chebyshev, value) for value in values]


def _value(series: Any, x: Any) -> Any:
    """sum_m series[..., m, :, :] x^m by Horner's rule. series (..., m, k, k), x (...) -> (..., k, k)."""
    x, total = x[..., None, None], 0.0
    for m in range(series.shape[-3] - 1, -1, -1):
        total = total * x + series[..., m, :, :]
    return total


def tabulate(pieces: Pieces, drift: np.ndarray | None = None, *, down: bool = False) -> Table:
    """The table of pieces, float64; `drift`: another power series for A, (n, m, k, k)."""
    if drift is not None:
        pieces = dataclasses.replace(pieces, drift=drift)
    n, _, k, _ = pieces.noise.shape
    width = np.diff(pieces.edges)[:, None, None]
    fundamental = np.zeros((n, ORDER + 1, k, k))
    fundamental[:, 0] = np.eye(k)
    for m in range(ORDER):  # (m + 1) Y_{m+1} = dt/dx sum_j A_j Y_{m-j}
        terms = [pieces.drift[:, j] @ fundamental[:, m - j] for j in range(min(m, pieces.drift.shape[1] - 1) + 1)]
        fundamental[:, m + 1] = width / 2 * sum(terms) / (m + 1)
    series = Table(pieces, fundamental, None, None, down)
    low, high = -np.ones(n), np.ones(n)
    mean, columns = _part(np, series, np.arange(n), *((high, low) if down else (low, high)))
    means, factors = [mean], [linalg.triangular_on_host(columns)]
    while len(means[-1]) > 1:
        E, L = means[-1], factors[-1]
        first, then = (1, 0) if down else (0, 1)
        E, L = [v.reshape(-1, 2, k, k) for v in (E, L)]
        means.append(E[:, then] @ E[:, first])
        factors.append(linalg.triangular_on_host(np.concatenate([E[:, then] @ L[:, first], L[:, then]], axis=2)))
    return Table(pieces, fundamental, np.concatenate(means), np.concatenate(factors), down)


# ------------------------------------------------------------------------------------------------------- of both kinds
def _part(xp: Any, table: Table, which: Any, x: Any, to: Any) -> tuple[Any, Any]:
    """Phi from x to `to` in the pieces `which`, all (batch,), and columns C of its covariance C C^T.

    (batch, k, k) and (batch, k, k * NODES).
    """
    series, noise, edges = (xp.asarray(v, x.dtype) for v in (table.fundamental, table.pieces.noise, table.pieces.edges))
    series, noise, width = series[which], noise[which], edges[which + 1] - edges[which]
    nodes, weights = xp.asarray(UNIT_NODES, x.dtype), xp.asarray(UNIT_WEIGHTS, x.dtype)
    starts = x[:, None] + (to - x)[:, None] * xp.concatenate([xp.zeros_like(nodes[:1]), nodes])[None]  # x, and nodes
    flows = _flow(xp, series[:, None], starts, to[:, None])
    spread = xp.sqrt(xp.abs(to - x)[:, None] * width[:, None] / 2 * weights[None])[..., None, None]
    columns = _product(flows[:, 1:], _value(noise[:, None], starts[:, 1:])) * spread
    columns = xp.moveaxis(columns, 1, 2)
    return flows[:, 0], columns.reshape(*columns.shape[:2], -1)


def _flow(xp: Any, series: Any, x: Any, to: Any) -> Any:
    """1 + (x' - x) Y[x', x] Y(x)^-1, x' = `to`, of the series of Y. (...) -> (..., k, k)."""
    x, to = x[..., None, None] + xp.zeros_like(series[..., 0, :, :]), to[..., None, None]
    value = slope = series[..., -1, :, :] + xp.zeros_like(x)
    for m in range(series.shape[-3] - 2, 0, -1):  # Horner's rule for Y(x) / x, and of its quotient by (x' - x)
        value = value * x + series[..., m, :, :]
        slope = slope * to + value
    value = value * x + series[..., 0, :, :]
    one = xp.asarray(np.eye(x.shape[-1]), x.dtype).reshape((1,) * (x.ndim - 2) + x.shape[-2:])
    return one + (to - x) * _product(slope, _inverse(xp, value))


def _product(a: Any, b: Any) -> Any:
    """Of k x k matrices, by hand: exact float32 on every backend, and NumPy too."""
    return sum(a[..., :, j, None] * b[..., None, j, :] for j in range(a.shape[-1]))


def _inverse(xp: Any, matrix: Any) -> Any:
    """Of matrices near 1 (|A| dt is at most STRENGTH), by elimination without pivots. (..., k, k)."""
    k = matrix.shape[-1]
    rows = [xp.concatenate([matrix[..., i, :], xp.zeros_like(matrix[..., i, :])], axis=-1) for i in range(k)]
    unit = np.eye(2 * k)[k:]
    wide = (1,) * (matrix.ndim - 2) + (2 * k,)
    rows = [row + xp.asarray(unit[i], matrix.dtype).reshape(wide) for i, row in enumerate(rows)]
    for i in range(k):
        rows[i] = rows[i] / rows[i][..., i, None]
        for j in range(k):
            if j != i:
                rows[j] = rows[j] - rows[j][..., i, None] * rows[i]
    return xp.stack([row[..., k:] for row in rows], axis=-2)


# ----------------------------------------------------------------------------------------------------------- in a trace
def place(pieces: Pieces, t: Times, *, above: bool = False) -> tuple[Computed, Computed]:
    """The piece that t lies in, (batch,) int32, and x there, (batch,); at an edge the one below it, or `above` it.

    So what is added since the piece's start has a derivative at every t > 0: a factor grows as a root at its start.
    """
    edges = jnp.asarray(pieces.edges, t.dtype)
    n = edges.shape[0] - 1
    side = "right" if above else "left"
    which = jnp.clip(jnp.searchsorted(edges, jax.lax.stop_gradient(t), side=side) - 1, 0, n - 1)
    return which, jnp.asarray(2 * (t - edges[which]) / (edges[which + 1] - edges[which]) - 1)


@jax.jit
def coefficient(pieces: Pieces, series: Any, t: Times) -> Computed:
    """A or G at t, (batch, k, k)."""
    which, x = place(pieces, t)
    return _value(jnp.asarray(series, t.dtype)[which], x)


@jax.jit
def from_start(table: Table, starts: tuple[Any, Any], t: Times, initial: Any = None) -> tuple[Computed, Computed]:
    """Phi and the covariance's factor from 0 up to t, (batch, k, k) both.

    Args:
        table: upwards.
        starts: Phi and the factor from 0 to each edge but the last, (n, k, k).
        t: (batch,).
        initial: (k, k), a factor of the covariance at 0, or None.
    """
    which, x = place(table.pieces, t)
    mean, factor = (jnp.asarray(v, t.dtype)[which] for v in starts)
    part, columns = _part(jnp, table, which, jnp.full_like(x, -1), x)
    mean = _product(part, mean)
    columns = [_product(part, factor), columns]
    if initial is not None:
        columns.append(_product(mean, jnp.asarray(initial, t.dtype)[None]))
    return mean, linalg.triangular_factor(jnp.concatenate(columns, axis=-1))


def starts(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """For `from_start`, in float64."""
    n, k = len(table.pieces.edges) - 1, table.mean.shape[-1]
    means, factors = [np.eye(k)], [np.zeros((k, k))]
    for E, L in zip(table.mean[: n - 1], table.factor[: n - 1]):
        means.append(E @ means[-1])
        factors.append(linalg.triangular_on_host(np.concatenate([E @ factors[-1], L], axis=1)))
    return np.stack(means), np.stack(factors)


@jax.jit
def between(table: Table, start: Times, end: Times) -> tuple[Computed, Computed]:
    """Phi and the covariance's factor from one time to another, in the table's direction; (batch, k, k) both."""
    dtype = start.dtype
    low, high = (end, start) if table.down else (start, end)
    n = table.pieces.edges.shape[0] - 1
    (i, x), (j, y) = place(table.pieces, low, above=True), place(table.pieces, high)
    j, y = jnp.maximum(i, j), jnp.where(j < i, x, y)  # no time at all, at an edge
    same = i == j
    bottom, top = jnp.full_like(x, -1), jnp.ones_like(x)
    if table.down:
        first = _part(jnp, table, j, y, jnp.where(same, x, bottom))
        last = _part(jnp, table, i, jnp.where(same, x, top), x)
    else:
        first = _part(jnp, table, i, x, jnp.where(same, y, top))
        last = _part(jnp, table, j, jnp.where(same, y, bottom), y)
    means, factors = jnp.asarray(table.mean, dtype), jnp.asarray(table.factor, dtype)
    levels = n.bit_length()
    offsets = jnp.asarray(np.cumsum([0] + [n >> level for level in range(levels - 1)]))
    k = means.shape[-1]
    unit = (jnp.broadcast_to(jnp.eye(k, dtype=dtype), (len(x), k, k)), jnp.zeros((len(x), k, k), dtype))

    def join(then: Any, before: Any) -> Any:
        """`before` and `then` one after the other."""
        columns = jnp.concatenate([_product(then[0], before[1]), then[1]], axis=-1)
        return _product(then[0], before[0]), linalg.triangular_factor(columns)

    def level(index: Any, carry: Any) -> Any:
        """The runs of 2^index pieces at either end of those that lie whole between the times."""
        lower, upper, a, b = carry  # the runs [a, b) of this length are left
        take_lower, take_upper = (a % 2 == 1) & (a < b), (b % 2 == 1) & (a < b)

        def run(which: Any) -> Any:
            at = offsets[index] + jnp.clip(which, 0, means.shape[0] - 1 - offsets[index])
            return means[at], factors[at]

        def choose(take: Any, new: Any, old: Any) -> Any:
            return jax.tree.map(lambda p, q: jnp.where(take[:, None, None], p, q), new, old)

        new_lower = join(lower, run(a)) if table.down else join(run(a), lower)
        new_upper = join(run(b - 1), upper) if table.down else join(upper, run(b - 1))
        lower, upper = choose(take_lower, new_lower, lower), choose(take_upper, new_upper, upper)
        return lower, upper, (a + take_lower) // 2, (b - take_upper) // 2

    lower, upper, _, _ = jax.lax.fori_loop(0, levels, level, (unit, unit, i + 1, jnp.maximum(j, i + 1)))
    whole = join(lower, upper) if table.down else join(upper, lower)
    return join(last, join(whole, first))
