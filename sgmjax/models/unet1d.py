"""A small U-Net for signals: NCSN++'s residual blocks, norms and time embedding, with convolutions along time."""

from __future__ import annotations

from typing import Literal

from sgmjax._ranges import Fraction, PositiveInt
from sgmjax.models.layers import Width
from sgmjax.models.ncsnpp import NCSNpp


class UNet1d(NCSNpp):
    """The score network of signals, (B, T, C) -> (B, T, out_channels), conditioned on noise level and class.

    It is `NCSNpp` on one spatial axis, of a size that trains on a laptop. The embedding of the logarithm of time suits
    whatever stands for time (t, 999 t, sigma). Attention acts at the coarsest level in any case, T / 2^(levels - 1)
    steps, which long signals need many levels for.

    Fields are those of `NCSNpp`. T must be a multiple of 2^(levels - 1).
    """

    axes = (1,)

    nf: Width = 64
    ch_mult: tuple[PositiveInt, ...] = (1, 2, 2)
    num_res_blocks: PositiveInt = 2
    attn_resolutions: tuple[PositiveInt, ...] = ()  # lengths, T halved once per entry of ch_mult after the first
    dropout: Fraction = 0.0
    embedding_type: Literal["positional", "fourier"] = "fourier"
