"""NCSN and NCSNv2, the score networks of annealed Langevin dynamics.

Both are RefineNets: stages of residual blocks, the later ones dilated rather than smaller, and one refining block for
each stage on the way back. NCSN is told the noise level by its norms. NCSNv2 is not told at all (technique 3 of the
2020 paper): the network is unconditional, and the score is

    s(x, sigma) = f(x) / sigma,

so that one network serves any noise level, in a table or between its rows. The `deeper` and `deepest` variants are
those for images from 96 to 128 and of 256 pixels.

Reference: Song & Ermon 2019, "Generative modeling by estimating gradients of the data distribution"; Song & Ermon 2020,
"Improved techniques for training score-based generative models", section 3.3 and appendix B.1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Int

from sgmjax._inputs import InputError
from sgmjax._ranges import MAX_COUNT, PositiveInt, Range
from sgmjax._types import Cond, Inputs, Outputs
from sgmjax.models import layers
from sgmjax.models.layers import Nonlinearity, Remat
from sgmjax.models.refinenet import InstanceNormPlus, RefineBlock, ResidualBlock, conv

# For each stage its channels in units of ngf and its dilation. From the second stage on, a stage that is not dilated
# starts by halving the side.
VARIANTS: dict[str, tuple[tuple[int, int], ...]] = {
    "standard": ((1, 1), (2, 1), (2, 2), (2, 4)),
    "deeper": ((1, 1), (2, 1), (2, 1), (4, 2), (4, 4)),
    "deepest": ((1, 1), (2, 1), (2, 1), (2, 1), (4, 2), (4, 4)),
}


def check_image_size(variant: str, image_size: int) -> None:
    """That images of this side pass through the network.

    Raises:
      ValueError: one line, if they cannot be halved as often as the variant does, or end as one pixel, which an
        instance norm cannot normalise.
    """
    halvings = sum(dilation == 1 for _, dilation in VARIANTS[variant][1:])
    factor, what = 2**halvings, f"'{variant}' halves the image {halvings} times"
    if image_size % factor:
        raise InputError(f"{what}: the image size must be a multiple of {factor}; got {image_size}")
    if image_size < 2 * factor:
        raise InputError(f"{what}: the image size must be at least {2 * factor}; got {image_size}")


class _RefineNet(nn.Module):
    """The RefineNet from the image to the last convolution, shared by NCSN and NCSNv2."""

    axes = (2,)

    out_channels: int = 3
    variant: Literal["standard", "deeper", "deepest"] = "standard"  # for images up to 64, up to 128, of 256
    ngf: Annotated[int, Range("2 or more, since InstanceNorm++ compares channels", lambda v: v >= 2, MAX_COUNT)] = 128
    nonlinearity: Nonlinearity = "elu"
    remat: Remat = False  # of blocks: less memory, more time
    centered: bool = True
    dtype: Any = jnp.float32

    def _refine_net(self, x: jax.Array, level: jax.Array | None, num_levels: int | None) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, out_channels), float32."""
        act = layers.activation(self.nonlinearity)
        residual, refine = layers.remat(ResidualBlock, self.remat), layers.remat(RefineBlock, self.remat)
        norm = {"num_levels": num_levels, "dtype": self.dtype}
        stages = VARIANTS[self.variant]

        x = (x if self.centered else 2.0 * x - 1.0).astype(self.dtype)
        h: Any = conv(self.ngf, x.shape[-1], name="conv_in", dtype=self.dtype)(x)
        features = []
        for i, (mult, dilation) in enumerate(stages, 1):
            for block in (1, 2):
                transition = i > 1 and block == 1
                name = f"stage_{i}_block_{block}"
                h = residual(self.ngf * mult, act, transition=transition, dilation=dilation, name=name, **norm)(
                    h, level
                )
            features.append(h)

        h = None
        for i in range(len(stages), 0, -1):
            # A block returns as many channels as the next finer stage has; the coarsest keeps its own.
            coarsest = h is None
            width = self.ngf * stages[i - 1 if coarsest else max(i - 2, 0)][0]
            inputs = features[i - 1 :] if coarsest else [features[i - 1], h]
            h = refine(width, act, last=i == 1, name=f"refine_{i}", **norm)(inputs, level)

        h = act(InstanceNormPlus(name="out_norm", **norm)(h, level))
        out = conv(self.out_channels, self.ngf, name="conv_out", dtype=self.dtype)(h)
        return out.astype(jnp.promote_types(self.dtype, jnp.float32))


class NCSNv2(_RefineNet):
    """The unconditional network, divided by sigma.

    Fields:

      variant: standard, deeper or deepest; ngf: features of the first stage.
      out_channels: channels of the output.
      centered: False if the data are in [0, 1]; they are then mapped to [-1, 1] inside.
      dtype: type of the arithmetic; parameters, norm statistics and output are float32.

    Called as `NCSNpp` is, `module.apply({"params": p}, x, cond)`:

      x: (B, H, W, C). The standard network halves the side once, deeper twice, deepest three times.
      cond: (B,), sigma > 0, by which the output is divided; not looked at if `scale_by_sigma` is False.

    Returns:
      (B, H, W, out_channels), float32: the score with `scale_by_sigma`, sigma times the score without.
    """

    scale_by_sigma: bool = True

    @nn.compact
    def __call__(
        self, x: Inputs, cond: Cond, *, train: bool = False, labels: Int[jax.Array, " batch"] | None = None
    ) -> Outputs:
        del train  # it has neither dropout nor batch statistics
        _refuse_labels(labels)
        out = self._refine_net(x, None, None)
        return out / cond.astype(out.dtype)[:, None, None, None] if self.scale_by_sigma else out


class NCSN(_RefineNet):
    """The network of 2019, whose norms have scales and shifts of their own for each of `num_levels` noise levels.

    Fields are as for `NCSNv2`, and `num_levels`. Called as that is, but

      cond: (B,), the index of the noise level, 0 ... num_levels - 1, integers or whole floats. The official order is
        from the largest level to the smallest.

    Returns:
      (B, H, W, out_channels), float32: the score.
    """

    num_levels: PositiveInt = 10

    @nn.compact
    def __call__(
        self, x: Inputs, cond: Cond, *, train: bool = False, labels: Int[jax.Array, " batch"] | None = None
    ) -> Outputs:
        del train
        _refuse_labels(labels)
        level = cond if jnp.issubdtype(cond.dtype, jnp.integer) else jnp.round(cond).astype(jnp.int32)
        return self._refine_net(x, level, self.num_levels)


def _refuse_labels(labels: jax.Array | None) -> None:
    if labels is not None:
        raise InputError("labels were given to a network without classes; NCSN and NCSNv2 have none")
