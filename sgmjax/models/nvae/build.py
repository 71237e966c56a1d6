"""An NVAE from a section of a configuration, checked."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from sgmjax._inputs import InputError
from sgmjax.models import distributions
from sgmjax.models.nvae.cells import CELLS
from sgmjax.models.nvae.network import NVAE


def build_nvae(vae_config: Any, *, image_size: int, channels: int, dtype: Any = jnp.float32) -> NVAE:
    """The VAE that a `vae` section of a configuration describes.

    Args:
      vae_config: the section, or an `NVAE`.
      image_size: side of the data.
      channels: of the data.
      dtype: type of the arithmetic, float32 or bfloat16.

    Raises:
      ValueError: one line naming the key and the fix, for settings that no network can have.

    Examples:
      >>> settings = models.NVAE(groups_per_scale=2, latents_per_group=4)
      >>> vae = models.build_nvae(settings, image_size=32, channels=3)
      >>> vae.latent_shapes  # 2 groups of 4 channels, at half the side
      ((16, 16, 8),)
    """
    given = {"image_size": image_size, "channels": channels, "dtype": jnp.dtype(dtype)}
    module = vae_config.clone(**given) if isinstance(vae_config, NVAE) else vae_config.build(**given)
    _check(module)
    return module


def _check(m: NVAE) -> None:
    if m.cells not in CELLS:
        raise InputError(f"vae.cells: '{m.cells}' is unknown; choose one of {', '.join(CELLS)}")
    if m.progressive_input not in ("none", "input_skip"):
        raise InputError(f"vae.progressive_input: '{m.progressive_input}' is unknown; choose one of none, input_skip")
    if len(m.ch_mult) != m.num_blocks + m.num_scales:
        raise InputError(
            f"vae.ch_mult: {m.num_blocks} blocks and {m.num_scales} scales need {m.num_blocks + m.num_scales} "
            f"multipliers; got {m.ch_mult}"
        )
    counts = ("num_scales", "groups_per_scale", "latents_per_group", "preprocess_cells", "encoder_cells")
    for name in (*counts, "postprocess_cells", "decoder_cells", "encoder_channels", "decoder_channels"):
        if getattr(m, name) < 1:
            raise InputError(f"vae.{name}: {getattr(m, name)} must be positive")
    if m.num_blocks < 0 or m.pad < 0 or m.num_flows < 0:
        raise InputError("vae.num_blocks, vae.pad and vae.num_flows must not be negative")
    halvings = 2 ** (m.num_blocks + m.num_scales - 1)
    if m.padded_size % halvings:
        raise InputError(
            f"vae.pad: side {m.image_size} + 2 * {m.pad} must be a multiple of {halvings}, because {m.num_blocks} "
            f"blocks and {m.num_scales} scales halve it; set vae.pad or data.image_size"
        )
    for multiplier in m.ch_mult:
        if m.encoder_channels * multiplier < 4:
            raise InputError(f"vae.encoder_channels: {m.encoder_channels} is too small; use 4 or more")
    if m.num_bits != 8 and m.decoder in ("bin", "normal"):
        raise InputError(f"vae.num_bits: the decoder '{m.decoder}' has no levels, so {m.num_bits} bits mean nothing")
    if not 1 <= m.num_bits <= 8:
        raise InputError(f"vae.num_bits: {m.num_bits} must be from 1 to 8")
    distributions.decoder_channels(m.decoder, m.channels, m.num_mixtures)
