"""Convolutions in the form that the backend computes fastest, for `nn.Conv(conv_general_dilated=convolve)`.

GPUs and TPUs are given `lax.conv_general_dilated`. XLA's CPU backend takes longer for that than PyTorch: half as long
again for the convolution itself, three times as long for the gradient of a 3 x 3 kernel, and thirty times for that of
a 1 x 1 kernel over a large image. On a CPU a 1 x 1 kernel is therefore a matrix product, a 3 x 3 kernel that moves
pixel by pixel is Winograd's algorithm, and a kernel for each channel a sum of shifted products. JAX derives the
gradients of these, which are of the same kind. Figures in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from sgmjax._types import AnyArray

# Multiplications below which a 3 x 3 convolution stays as it is: Winograd's sixteen products take a second to compile.
WORTHWHILE = 1e8

CONVOLVED = "convolved"  # `checkpoint_name` of what comes out, for policies of what is kept for the backward pass

_native = contextvars.ContextVar("native", default=False)
_mapped = contextvars.ContextVar("mapped", default=1)


@contextlib.contextmanager
def _within(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def native() -> contextlib.AbstractContextManager[None]:
    """Programs traced inside call `lax.conv_general_dilated` on every backend, to count operations or to compare."""
    return _within(_native, True)


def mapped(count: int) -> contextlib.AbstractContextManager[None]:
    """Programs traced inside are mapped over so many examples (`jax.vmap`), which a convolution of one cannot see."""
    return _within(_mapped, count)


def convolve(
    x: AnyArray, kernel: AnyArray, strides: Sequence[int], padding: str | Sequence[tuple[int, int]], **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated` of the same arguments, channels last.

    Args:
      x: (batch, *space, C).
      kernel: (*window, C / groups, F).
      strides: of the window.
      padding: 'SAME', 'VALID', or pixels before and after on each axis.
      options: as there; `dimension_numbers` are those of channels last.

    Returns:
      (batch, *space', F).
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    form = None if _native.get() or jax.default_backend() != "cpu" else _form(x, kernel, tuple(strides), options)
    if form is None:
        return checkpoint_name(lax.conv_general_dilated(x, kernel, strides, padding, **options), CONVOLVED)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, padding)
    return checkpoint_name(form(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel), CONVOLVED)


def _form(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], options: dict[str, Any]) -> Any:
    """The function (padded x, kernel) that is faster on a CPU than XLA's own convolution, or None."""
    window, (channels, features) = kernel.shape[:-2], kernel.shape[-2:]
    dilations = (options.get("lhs_dilation"), options.get("rhs_dilation"))
    if any(d != 1 for dilation in dilations for d in dilation or ()):
        return None
    if any(options.get(name) is not None for name in ("precision", "preferred_element_type")):
        return None
    if options.get("feature_group_count", 1) > 1:
        each = channels == 1 and features == x.shape[-1] and len(window) == 2
        return functools.partial(depthwise, strides=strides) if each else None
    if set(window) == {1}:
        return functools.partial(pointwise, strides=strides)
    multiplications = _mapped.get() * math.prod(x.shape) * math.prod(window) * features
    exact = x.dtype in (jnp.float32, jnp.float64)  # its sums and differences would round bfloat16 once more
    if window == (3, 3) and set(strides) == {1} and exact and multiplications >= WORTHWHILE:
        return winograd
    return None


def pointwise(x: jax.Array, kernel: jax.Array, *, strides: Sequence[int]) -> jax.Array:
    """A kernel of one pixel, (1, ..., 1, C, F), as a product of matrices."""
    x = x[(slice(None), *(slice(None, None, stride) for stride in strides))]
    return jnp.matmul(x, kernel.reshape(kernel.shape[-2:]))


def depthwise(x: jax.Array, kernel: jax.Array, *, strides: Sequence[int]) -> jax.Array:
    """A kernel for each channel, (h, w, 1, C), as a sum of shifted products.

    XLA's CPU backend takes 25 times as long for the gradient of the convolution with as many groups as channels. Sums
    are of float32 at least, as there, those of the gradients too.
    """
    (h, w), (down, right) = kernel.shape[:2], strides
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    rows, columns = x.shape[1] - h + 1, x.shape[2] - w + 1
    parts = [
        x[:, i : i + rows : down, j : j + columns : right] * kernel[None, i, j : j + 1]
        for i in range(h)
        for j in range(w)
    ]
    return functools.reduce(jnp.add, parts).astype(x.dtype)


@jax.jit  # traced once for each shape: without, half of the time to trace a network
def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A kernel of 3 x 3 pixels, (3, 3, C, F), by F(2 x 2, 3 x 3): 16 multiplications for 4 outputs instead of 36.

    The image is cut into tiles of 4 x 4 that overlap by two. Tiles d and kernel g are transformed, multiplied pixel by
    pixel of the tile, all tiles in one matrix product of the channels, and transformed back:

        y = A^T [(G g G^T) * (B^T d B)] A

    The transforms of tiles and outputs are sums and differences, that of the kernel has halves: in float32 the result
    is within 3e-6 of the largest output of the exact one, XLA's own within 1e-6.

    Reference: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", section 4.1.
    """
    size = [n - 2 for n in x.shape[1:3]]
    tiles = [math.ceil(n / 2) for n in size]
    x = jnp.pad(x, ((0, 0), *((0, n % 2) for n in size), (0, 0)))  # to whole tiles
    elements = [[kernel[i, j] for j in range(3)] for i in range(3)]
    data, weights = _transform(_tiles(x, *tiles), _data), _transform(elements, _weights)
    products = [
        [jnp.matmul(d.reshape(-1, d.shape[-1]), w).reshape(*d.shape[:-1], -1) for d, w in zip(*rows, strict=True)]
        for rows in zip(data, weights, strict=True)
    ]
    out = _transform(products, _outputs)
    out = jnp.stack([jnp.stack(row, axis=3) for row in out], axis=2)  # (batch, tiles, 2, tiles, 2, F)
    out = out.reshape(x.shape[0], 2 * tiles[0], 2 * tiles[1], -1)
    return out[:, : size[0], : size[1]] / _one(kernel)


def _one(kernel: jax.Array) -> jax.Array:
    """1, but not for the compiler.

    In the gradient sixteen small programs read what is divided by it. XLA's CPU backend would compute the gradient of
    all that follows in each of them; what contains a division it computes once. (An `optimization_barrier` is gone by
    then.)
    """
    return jnp.maximum(jnp.minimum(lax.stop_gradient(kernel[0, 0, 0, 0]), 1.0), 1.0)


def _tiles(x: jax.Array, rows: int, columns: int) -> list[list[jax.Array]]:
    """[4][4] arrays (batch, rows, columns, C): that pixel of every tile."""
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(batch, rows + 1, 2, columns + 1, 2, channels)
    out: list[list[Any]] = [[None] * 4 for _ in range(4)]
    for i, half in enumerate(lax.split(x, (1, 1), axis=2)):  # whose transpose is one concatenation
        for j, quarter in enumerate(lax.split(half, (1, 1), axis=4)):
            quarter = quarter.reshape(batch, rows + 1, columns + 1, channels)
            for m in range(2):
                for n in range(2):
                    out[2 * m + i][2 * n + j] = quarter[:, m : m + rows, n : n + columns]
    return out


def _transform(values: list[list[jax.Array]], along: Any) -> list[list[jax.Array]]:
    """`along` applied to the columns of a table of arrays, then to the rows of what comes out."""
    columns = [along(list(column)) for column in zip(*values, strict=True)]
    return [along(list(row)) for row in zip(*columns, strict=True)]


def _data(d: list[jax.Array]) -> list[jax.Array]:
    """B^T of Lavin and Gray."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _weights(g: list[jax.Array]) -> list[jax.Array]:
    """G."""
    ends, middle = 0.5 * (g[0] + g[2]), 0.5 * g[1]
    return [g[0], ends + middle, ends - middle, g[2]]


def _outputs(m: list[jax.Array]) -> list[jax.Array]:
    """A^T."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
