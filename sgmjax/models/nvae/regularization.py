"""Spectral regularisation of convolutions and of batch-norm gains, by power iteration carried from step to step.

LSGM adds `lambda (sum_i sigma_i + sum_j max|gamma_j|)` to its losses, sigma_i being the largest singular value of the
i-th convolution's (weight-normalised, masked) kernel as a matrix (outputs, inputs x height x width), and gamma_j the
gains of the j-th norm layer. The singular vectors are estimates, improved by a few iterations a step:

    state = init_spectral(key, params)
    total, state = spectral_norm(params, state)              # inside the loss, state as auxiliary output
    total = total + norm_gain(params)

Kernels of equal size are treated together, as one batched product. For the VAE give all of `params`. For a prior
network `select` chooses the layers by their path: LSGM's official program counts all 3 x 3 and 1 x 1 convolutions
(`nn.Conv` here, but neither linear maps of channels nor FIR resampling), or, with its `custom_conv_dae` (the published
CIFAR-10 runs "best FID" and "balanced"), none: `select=lambda path: False`. Norm gains count in any case.

Reference: Vahdat & Kautz 2020 (NVAE), section 3.3; Yoshida & Miyato 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from sgmjax._inputs import InputError
from sgmjax.models.nvae.cells import normalize_kernel
from sgmjax.models.nvae.flows import mask_of

Select = Callable[[tuple[str, ...]], bool]
SpectralState = dict[str, dict[str, jax.Array]]
ITERATIONS = 4
FIRST_ITERATIONS = 40


def kernel_matrices(params: Any, select: Select | None = None) -> dict[str, jax.Array]:
    """Convolution kernels as matrices, those of equal size stacked.

    Args:
      params: a tree of parameters. Every leaf `kernel` of four or more axes, the last four (height, width, in, out), is
        a convolution; axes before them are a stack. One beside it called `log_weight_norm` is applied.
      select: by the path of the kernel, whether it counts; None: all.

    Returns:
      Stacks (n, out, in * height * width), by "out x columns".
    """
    flat: dict[Any, Any] = traverse_util.flatten_dict(dict(params))
    stacks: dict[str, list[jax.Array]] = {}
    for path in sorted(flat):
        kernel = flat[path]
        if path[-1] != "kernel" or kernel.ndim < 4 or not (select is None or select(path)):
            continue
        log_norm = flat.get((*path[:-1], "log_weight_norm"))
        if log_norm is not None:
            kernel = normalize_kernel(kernel, log_norm, mask_of(path, kernel.shape))
        outputs = kernel.shape[-1]
        columns = kernel.shape[-4] * kernel.shape[-3] * kernel.shape[-2]
        matrices = jnp.swapaxes(kernel.reshape(-1, columns, outputs), 1, 2)
        stacks.setdefault(f"{outputs}x{columns}", []).append(matrices)
    return {size: jnp.concatenate(parts) for size, parts in stacks.items()}


def _unit(v: jax.Array) -> jax.Array:
    return v / jnp.maximum(jnp.linalg.norm(v, axis=-1, keepdims=True), 1e-3)


def _times(w: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("nrc,nc->nr", w, v, precision=jax.lax.Precision.HIGHEST)


def _power(w: jax.Array, u: jax.Array, v: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    transposed = jnp.swapaxes(w, 1, 2)

    def step(_, vectors):
        v = _unit(_times(transposed, vectors[0]))
        return _unit(_times(w, v)), v

    return jax.lax.fori_loop(0, iterations, step, (u, v))


def init_spectral(
    key: jax.Array, params: Any, *, select: Select | None = None, iterations: int = FIRST_ITERATIONS
) -> SpectralState:
    """Singular vectors for each stack of `kernel_matrices`, after `iterations` from random ones.

    Returns:
      {"out x columns": {"u": (n, out), "v": (n, columns)}}, unit vectors; a pytree to keep in the training state.
    """
    state: SpectralState = {}
    matrices = kernel_matrices(params, select)
    for (size, w), k in zip(matrices.items(), jax.random.split(key, len(matrices)), strict=True) if matrices else ():
        key_u, key_v = jax.random.split(k)
        u = _unit(jax.random.normal(key_u, w.shape[:2], w.dtype))
        v = _unit(jax.random.normal(key_v, (w.shape[0], w.shape[2]), w.dtype))
        u, v = _power(w, u, v, iterations)
        state[size] = {"u": u, "v": v}
    return state


def spectral_norm(
    params: Any, state: SpectralState, *, select: Select | None = None, iterations: int = ITERATIONS
) -> tuple[jax.Array, SpectralState]:
    """Sum of the largest singular values, u^T W v, and the improved vectors.

    Args:
      params, select: as for `init_spectral`.
      state: from it, or from the last call.
      iterations: of the power method in this call; the official program takes 4.

    Returns:
      The sum, a scalar; its gradient with respect to params holds the vectors fixed. The new state, without gradient.

    Raises:
      ValueError: if the state is of other kernels.
    """
    matrices = kernel_matrices(params, select)
    total = jnp.zeros(())
    new: SpectralState = {}
    if set(matrices) != set(state):
        raise InputError(f"the spectral state has kernels {sorted(state)} and the parameters {sorted(matrices)}")
    for size, w in matrices.items():
        if state[size]["u"].shape[0] != w.shape[0]:
            raise InputError(f"the spectral state has {state[size]['u'].shape[0]} kernels {size}, not {w.shape[0]}")
        u, v = _power(jax.lax.stop_gradient(w), state[size]["u"], state[size]["v"], iterations)
        u, v = jax.lax.stop_gradient(u), jax.lax.stop_gradient(v)
        total = total + jnp.sum(u * _times(w, v))
        new[size] = {"u": u, "v": v}
    return total, new


def norm_gain(params: Any) -> jax.Array:
    """Sum over all norm layers of their largest gain in absolute value; a scalar.

    A norm layer is a leaf `scale`, its last axis the channels, axes before it a stack.
    """
    flat: dict[Any, Any] = traverse_util.flatten_dict(dict(params))
    gains = [jnp.sum(jnp.max(jnp.abs(leaf), axis=-1)) for path, leaf in flat.items() if path[-1] == "scale"]
    return jnp.sum(jnp.stack(gains)) if gains else jnp.zeros(())
