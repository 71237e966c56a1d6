"""A small residual network of clean images whose last layer but one is a feature vector: for distances of our own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sgmjax._ranges import Fraction, PositiveInt
from sgmjax.models import layers
from sgmjax.models.convolution import convolve

GROUP_SIZE = 8  # channels of a group norm


class FeatureNet(nn.Module):
    """Tells the classes of clean images apart; its features are the means over space before the last layer.

    A convolution with stride 2 and, for each width, residual blocks with a halving before the second and later ones.

    Fields: `widths`, channels of each stage, multiples of 8, the last being the number of features; `num_res_blocks`
    of each stage; `dropout` of the features in training; `out_channels`, the number of classes; `centered`, accepted
    for uniformity.

    Called as x (B, H, W, C) -> features (B, widths[-1]) and logits (B, out_channels), float32.

    Reference: He et al. 2016, "Identity mappings in deep residual networks"; the use is ours.
    """

    axes = (2,)
    classifies = True
    sees_noise = False

    out_channels: int = 10
    widths: tuple[PositiveInt, ...] = (32, 64, 128)
    num_res_blocks: PositiveInt = 2
    dropout: Fraction = 0.2
    centered: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        def conv(features: int, stride: int, name: str, size: int = 3) -> nn.Conv:
            return nn.Conv(
                features,
                (size, size),
                stride,
                use_bias=False,
                dtype=self.dtype,
                conv_general_dilated=convolve,
                name=name,
            )

        def norm(name: str) -> nn.GroupNorm:
            return nn.GroupNorm(num_groups=None, group_size=GROUP_SIZE, dtype=self.dtype, name=name)

        h = conv(self.widths[0], 2, "conv_in")(x.astype(self.dtype))
        for stage, width in enumerate(self.widths):
            for block in range(self.num_res_blocks):
                name, stride = f"stage_{stage}_block_{block}", 2 if stage > 0 and block == 0 else 1
                r = nn.relu(norm(f"{name}_norm_0")(h))
                if stride > 1 or h.shape[-1] != width:
                    h = conv(width, stride, f"{name}_shortcut", size=1)(r)
                r = conv(width, stride, f"{name}_conv_0")(r)
                r = conv(width, 1, f"{name}_conv_1")(nn.relu(norm(f"{name}_norm_1")(r)))
                h = h + r
        h = nn.relu(norm("norm_out")(h)).astype(jnp.float32)
        features = jnp.mean(h, axis=(1, 2))
        kept = nn.Dropout(self.dropout, deterministic=not train)(features)
        return features, layers.dense(self.out_channels, name="classes", dtype=jnp.float32)(kept)
