"""The network of DDPM, as the score-SDE code has it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Int

from sgmjax._inputs import InputError
from sgmjax._ranges import Fraction, PositiveInt
from sgmjax._types import Cond, Inputs, Outputs
from sgmjax.models import layers
from sgmjax.models.layers import Nonlinearity, Width
from sgmjax.models.ncsnpp import label_or_none, noise_table


class DDPM(nn.Module):
    """U-Net of DDPM: positional embedding, GroupNorm of 32 groups, no rescaling of residual sums.

    Fields are as for `NCSNpp`; the table of discrete noise levels (`sigma_min`, `sigma_max`, `num_scales`) is what
    `scale_by_sigma` looks `cond` up in. Called as `NCSNpp` is; `cond` (B,) is an index or a time scaled to 0..999.

    Returns:
      (B, H, W, out_channels), float32.

    Reference: Ho et al. 2020, "Denoising diffusion probabilistic models", appendix B.
    """

    axes = (2,)

    out_channels: int = 3
    nf: Width = 128
    ch_mult: tuple[PositiveInt, ...] = (1, 2, 2, 2)
    num_res_blocks: PositiveInt = 2
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: Fraction = 0.1
    resamp_with_conv: bool = True
    conditional: bool = True
    scale_by_sigma: bool = False
    nonlinearity: Nonlinearity = "swish"
    num_classes: PositiveInt | None = None
    remat: layers.Remat = False  # of residual blocks: less memory, more time
    centered: bool = True
    dtype: Any = jnp.float32
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000

    @nn.compact
    def __call__(
        self, x: Inputs, cond: Cond, *, train: bool = False, labels: Int[jax.Array, " batch"] | None = None
    ) -> Outputs:
        act = layers.activation(self.nonlinearity)
        layers.check_sides(x.shape[1:-1], len(self.ch_mult))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        common = {"norm": "ddpm", "dtype": self.dtype}

        def block(features: int, name: str) -> nn.Module:
            cls = layers.remat(layers.ResnetBlockDDPM, self.remat)
            return cls(features, act=act, dropout=self.dropout, train=train, name=name, **common)

        temb = None
        if self.conditional:
            temb = layers.timestep_embedding(cond.astype(wide), self.nf)
            temb = layers.dense(4 * self.nf, name="time_dense_0", dtype=wide)(temb)
            temb = layers.dense(4 * self.nf, name="time_dense_1", dtype=wide)(act(temb))
        if self.num_classes is not None:
            labels = label_or_none(labels, self.num_classes, x.shape[0])
            table = nn.Embed(self.num_classes + 1, 4 * self.nf, dtype=wide, name="label_embed")
            temb = table(labels) if temb is None else temb + table(labels)
        elif labels is not None:
            raise InputError("labels were given to a network without classes; set model.num_classes")

        x = (x if self.centered else 2.0 * x - 1.0).astype(self.dtype)
        h = layers.conv3x3(self.nf, name="conv_in", dtype=self.dtype)(x)
        hs = [h]
        last = len(self.ch_mult) - 1
        for level, mult in enumerate(self.ch_mult):
            for i in range(self.num_res_blocks):
                h = block(self.nf * mult, f"down_{level}_block_{i}")(h, temb)
                if h.shape[1] in self.attn_resolutions:
                    h = layers.AttnBlock(name=f"down_{level}_attn_{i}", **common)(h)
                hs.append(h)
            if level != last:
                name = f"down_{level}_resample"
                h = layers.Downsample(with_conv=self.resamp_with_conv, dtype=self.dtype, name=name)(h)
                hs.append(h)

        c = h.shape[-1]
        h = block(c, "mid_block_0")(h, temb)
        h = layers.AttnBlock(name="mid_attn", **common)(h)
        h = block(c, "mid_block_1")(h, temb)

        for level in reversed(range(len(self.ch_mult))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, hs.pop()], axis=-1)
                h = block(self.nf * self.ch_mult[level], f"up_{level}_block_{i}")(h, temb)
            if h.shape[1] in self.attn_resolutions:
                h = layers.AttnBlock(name=f"up_{level}_attn", **common)(h)
            if level != 0:
                name = f"up_{level}_resample"
                h = layers.Upsample(with_conv=self.resamp_with_conv, dtype=self.dtype, name=name)(h)
        assert not hs

        h = act(layers.group_norm(h.shape[-1], name="out_norm", **common)(h))
        out = layers.conv3x3(self.out_channels, name="out_conv", dtype=self.dtype, init_scale=0.0)(h).astype(wide)
        if self.scale_by_sigma:
            table = jnp.asarray(noise_table(self.sigma_min, self.sigma_max, self.num_scales), wide)
            out = out / table[cond.astype(jnp.int32)][:, None, None, None]
        return out
