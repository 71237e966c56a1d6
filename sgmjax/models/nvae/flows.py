"""Normalising-flow cells of NVAE's posterior: autoregressive shifts of the latent variables.

A cell maps z to `z - mu(z)` where mu at a position sees only positions before it: earlier pixels in raster order, and
at the same pixel earlier channels. The Jacobian is triangular with ones on its diagonal, so the log-determinant is
zero and log q(z | x) keeps its value. A pair of cells, the second in reversed raster order, lets every pixel see all.

Reference: Vahdat & Kautz 2020 (NVAE), section 3.4; the official program has shifts without scales.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sgmjax.models.nvae.cells import Conv

EXPANSION = 6


def causal_mask(
    size: int, inputs: int, outputs: int, *, depthwise: bool = False, strict: bool, mirror: bool
) -> np.ndarray:
    """Which weights of a convolution an autoregressive map may use.

    Args:
      size: side of the kernel, odd.
      inputs, outputs: channels, one a multiple of the other. Blocks of them belong to the same latent channel.
      depthwise: each channel is convolved by itself.
      strict: at the same pixel only earlier latent channels, not the channel itself.
      mirror: reversed raster order of the pixels (not of the channels).

    Returns:
      Zeros and ones, (size, size, inputs, outputs), or (size, size, 1, outputs) if `depthwise`.
    """
    latents = min(inputs, outputs)
    block_in, block_out = np.arange(inputs) * latents // inputs, np.arange(outputs) * latents // outputs
    before = np.less if strict else np.less_equal
    centre = np.full((1, outputs), not strict) if depthwise else before(block_in[:, None], block_out[None, :])
    mask = np.zeros((size * size, *centre.shape), np.float32)
    middle = size * size // 2
    mask[:middle] = 1.0
    mask[middle] = centre
    mask = mask.reshape(size, size, *centre.shape)
    return mask[::-1, ::-1].copy() if mirror else mask


class ShiftCell(nn.Module):
    """z (batch, h, w, L) -> z - mu(z), autoregressive in raster order, or the reverse if `mirror`."""

    mirror: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        latents = z.shape[-1]
        hidden = EXPANSION * latents
        masks = shift_masks(latents, self.mirror)
        h = Conv(hidden, 3, use_bias=False, mask=masks["lift"], dtype=self.dtype, name="lift")(z)
        depthwise = Conv(hidden, 5, groups=hidden, use_bias=False, mask=masks["mix"], dtype=self.dtype, name="mix")
        h = nn.elu(depthwise(nn.elu(h)))
        # A small shift at first keeps the flow near the identity.
        shift = Conv(latents, 1, mask=masks["shift"], init_scale=0.1, dtype=self.dtype, name="shift")(h)
        return z - shift.astype(z.dtype)


def shift_masks(latents: int, mirror: bool) -> dict[str, np.ndarray]:
    """Masks of a `ShiftCell`'s convolutions by their names."""
    hidden = EXPANSION * latents
    return {
        "lift": causal_mask(3, latents, hidden, strict=True, mirror=mirror),
        "mix": causal_mask(5, hidden, hidden, depthwise=True, strict=False, mirror=mirror),
        "shift": causal_mask(1, hidden, latents, strict=False, mirror=mirror),
    }


class FlowPair(nn.Module):
    """A shift in raster order and one in reversed raster order; log-determinant 0."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        z = ShiftCell(mirror=False, dtype=self.dtype, name="raster")(z)
        return ShiftCell(mirror=True, dtype=self.dtype, name="reversed")(z)


def mask_of(path: tuple[str, ...], kernel_shape: tuple[int, ...]) -> np.ndarray | None:
    """The mask of a kernel by its path in the tree of parameters, or None where there is none.

    Args:
      path: (..., "flow_0", "raster", "lift", "kernel").
      kernel_shape: (..., height, width, in, out).
    """
    if len(path) < 4 or not path[-4].startswith("flow_") or path[-3] not in ("raster", "reversed"):
        return None
    latents = {"lift": kernel_shape[-2], "mix": kernel_shape[-1] // EXPANSION, "shift": kernel_shape[-1]}[path[-2]]
    return shift_masks(latents, path[-3] == "reversed")[path[-2]]
