"""NVAE: a hierarchical VAE whose latent variables come in groups, on one or more scales, each group given the last.

A bottom-up encoder sees the image; a top-down decoder starts from a learned constant, and at each group the posterior
`q(eps_g | x, eps_<g)` is a normal of what the encoder saw and what the decoder has made so far. In LSGM's variant the
prior of every group is N(0, I), or a score-based prior for the coarsest scale; a convolution maps eps to what the
decoder reads.

The groups of one scale have the same shapes, so that each scale is one `scan` over its groups, with parameters stacked
along a leading axis: the program that XLA compiles does not grow with the number of groups.

Reference: Vahdat & Kautz 2020 (NVAE); Vahdat, Kreis & Kautz 2021 (LSGM), section 5 and appendix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from sgmjax._inputs import InputError, check_floats
from sgmjax._ranges import NonNegativeInt, PositiveFloat, PositiveInt
from sgmjax._types import Key, PerExample
from sgmjax.models import distributions
from sgmjax.models.layers import Remat, remat
from sgmjax.models.nvae.cells import BNSwishConv, Cell, Conv, wide
from sgmjax.models.nvae.groups import DecoderGroup, EncoderGroup

# Branch of a cell by architecture and place.
_BRANCHES = {
    "res_bnswish": {"encoder": "res_bnswish", "decoder": "res_bnswish", "post": "res_bnswish"},
    "res_bnswish2": {"encoder": "res_bnswish2", "decoder": "res_bnswish2", "post": "res_bnswish2"},
    "res_mbconv": {"encoder": "res_bnswish", "decoder": "mbconv6", "post": "mbconv3"},
}


class NVAEOutput(NamedTuple):
    """What encoding and decoding of a batch gives.

    Attributes:
      logits: parameters of the output distribution, (batch, H, W, parameters) of the padded image.
      eps: for each group, coarsest first, a sample of the posterior, (batch, h, w, latents). The prior acts on these.
      log_q: for each group the log-density of the posterior at eps, by element, nats.
    """

    logits: jax.Array
    eps: tuple[jax.Array, ...]
    log_q: tuple[jax.Array, ...]


class NVAE(nn.Module):
    """NVAE, the VAE of LSGM. The defaults are those of the published CIFAR-10 run with the best FID; in brackets the
    official option. Fields that no configuration sets:

      image_size: side of the (square) data.
      channels: of the data.
      dtype: type of the convolutions, float32 or bfloat16; norms' statistics, the posterior's parameters, log-densities
        and the output are float32.

    Build it with `build_nvae`, which checks the settings. With
    `variables = {"params": ..., "batch_stats": ...}`:

      module.init(key, x, key)                                     parameters and statistics
      module.apply(variables, x, key)                              `NVAEOutput`, evaluation
      module.apply(variables, x, key, train=True, mutable=["batch_stats"])     the same and the new statistics
      module.apply(variables, eps, key=key, method=NVAE.decode)    logits from latent variables

    `latent_shape`, `output_distribution`, `reconstruction_loss`, `concat_eps_per_scale`, `decompose_eps` and the other
    methods below need no parameters.
    """

    image_size: int = 32
    channels: int = 3
    pad: NonNegativeInt = 0  # black pixels on each side; 2 for 28 x 28 images
    encoder_channels: PositiveInt = 128  # [num_channels_enc]
    decoder_channels: PositiveInt = 128  # [num_channels_dec]
    ch_mult: tuple[PositiveInt, ...] = (1, 2)  # for each resolution: num_blocks + num_scales of them [channel_mult]
    num_scales: PositiveInt = 1  # resolutions with latent variables; a prior models the coarsest [num_latent_scales]
    groups_per_scale: PositiveInt = 20  # [num_groups_per_scale]
    latents_per_group: PositiveInt = 9  # channels [num_latent_per_group]
    num_blocks: NonNegativeInt = 1  # halvings before the first latent scale [num_preprocess_blocks, num_post...]
    preprocess_cells: PositiveInt = 2  # a block [num_preprocess_cells]
    postprocess_cells: PositiveInt = 2  # [num_postprocess_cells]
    encoder_cells: PositiveInt = 2  # a group [num_cell_per_cond_enc]
    decoder_cells: PositiveInt = 2  # [num_cell_per_cond_dec]
    cells: Literal["res_bnswish", "res_bnswish2", "res_mbconv"] = "res_bnswish"  # [arch_instance]
    squeeze_excite: bool = True  # [use_se]
    num_flows: NonNegativeInt = 0  # pairs of normalising-flow cells a group [num_nf]
    progressive_input: Literal["none", "input_skip"] = "none"  # [progressive_input_vae]
    log_sigma_bound: PositiveFloat = 5.0  # soft clamp of the posterior's log-sigma [log_sig_q_scale]
    # Bernoulli, discretised logistic, mixture of discretised logistics, normal [decoder_dist].
    decoder: Literal["bin", "dl", "dml", "normal"] = "dml"
    num_bits: PositiveInt = 8  # of the data, for dl and dml [num_x_bits]
    num_mixtures: PositiveInt = 10
    approximate_tails: bool = False  # the official program's approximate probabilities of dl and dml, for comparison
    remat: Remat = False  # of groups: less memory, more time
    dtype: Any = jnp.float32

    # ------------------------------------------------------------------------------------------- shapes, known before
    @property
    def padded_size(self) -> int:
        """Side of what the network sees."""
        return self.image_size + 2 * self.pad

    @property
    def num_groups(self) -> int:
        return self.num_scales * self.groups_per_scale

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(h, w, channels) of the latent variables of each scale, coarsest first, all groups of it together."""
        channels = self.groups_per_scale * self.latents_per_group
        sides = [self.padded_size // 2 ** (self.num_blocks + s) for s in reversed(range(self.num_scales))]
        return tuple((side, side, channels) for side in sides)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, channels) of the coarsest scale: what the score-based prior models."""
        return self.latent_shapes[0]

    @property
    def dimensions(self) -> int:
        """Of an image, without padding: what bits/dim are counted by."""
        return self.image_size**2 * self.channels

    def group_shapes(self, batch: int) -> tuple[tuple[int, int, int, int], ...]:
        """Shape of eps of each group, coarsest first."""
        latents = self.latents_per_group
        return tuple((batch, h, w, latents) for h, w, _ in self.latent_shapes for _ in range(self.groups_per_scale))

    def check_prior_shape(self, shape: Sequence[int]) -> None:
        """Refuses a prior for latent variables of another shape.

        Raises:
          ValueError: naming both shapes.
        """
        if tuple(shape) != self.latent_shape:
            raise InputError(
                f"the prior is for latent variables of shape {tuple(shape)} and this VAE's are {self.latent_shape} "
                f"(side {self.padded_size} / 2^{self.num_blocks + self.num_scales - 1}, {self.groups_per_scale} groups "
                f"of {self.latents_per_group})"
            )

    # --------------------------------------------------------------------------------------------------- latents, data
    def pad_images(self, x: Float[jax.Array, "batch H W C"]) -> Float[jax.Array, "batch padded padded C"]:
        """Images of side `image_size`, in [-1, 1], with a black border; padded ones are returned as they are.

        Raises:
          ValueError: for images of another shape.
        """
        check_floats(x, "x")
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise InputError(f"this VAE is for images (batch, H, W, {self.channels}); got shape {x.shape}")
        if x.shape[1:3] == (self.padded_size, self.padded_size):
            return x
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise InputError(f"this VAE is for images of side {self.image_size}; got shape {x.shape}")
        border = (self.pad, self.pad)
        return jnp.pad(x, ((0, 0), border, border, (0, 0)), constant_values=-1.0)

    def crop(self, x: Float[jax.Array, "batch H W ..."]) -> Float[jax.Array, "batch h w ..."]:
        """(batch, H, W, ...) without the border that `pad_images` makes."""
        return x[:, self.pad : x.shape[1] - self.pad, self.pad : x.shape[2] - self.pad]

    def noise(
        self, key: Key, batch: int, *, dtype: Any = jnp.float32
    ) -> tuple[Float[jax.Array, "batch _ _ latents"], ...]:
        """Standard normal noise for all groups."""
        shapes = self.group_shapes(batch)
        keys = jax.random.split(key, len(shapes))
        return tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))

    def concat_eps_per_scale(
        self, groups: Sequence[Float[jax.Array, "batch _ _ latents"]]
    ) -> tuple[Float[jax.Array, "batch _ _ channels"], ...]:
        """The groups of each scale joined along the channels, coarsest scale first."""
        n = self.groups_per_scale
        return tuple(jnp.concatenate(groups[i : i + n], axis=-1) for i in range(0, len(groups), n))

    def decompose_eps(
        self, latent: Float[jax.Array, "batch h w channels"]
    ) -> tuple[Float[jax.Array, "batch h w latents"], ...]:
        """One scale's latent variables, (batch, h, w, channels), to its groups: undoes `concat_eps_per_scale`."""
        if latent.shape[-1] != self.latent_shape[-1]:
            raise InputError(f"latent variables of shape {latent.shape} are not (batch, *{self.latent_shape})")
        return tuple(jnp.split(latent, self.groups_per_scale, axis=-1))

    # ---------------------------------------------------------------------------------------------- output distribution
    def output_distribution(self, logits: Float[jax.Array, "batch H W parameters"]) -> distributions.Decoder:
        """Distribution of the (padded) image."""
        return distributions.decoder_distribution(
            self.decoder,
            logits,
            num_bits=self.num_bits,
            num_mixtures=self.num_mixtures,
            approximate=self.approximate_tails,
        )

    def reconstruction_loss(
        self, logits: Float[jax.Array, "batch H W parameters"], x: Float[jax.Array, "batch side side C"]
    ) -> PerExample:
        """-log p(x | eps) of each image in nats, (batch,), without the border; x as for `__call__`."""
        x = self.crop(self.pad_images(x))
        if len(x) != len(logits):
            raise InputError(f"there are {len(x)} images and logits for {len(logits)}")
        return distributions.reconstruction_loss(self.output_distribution(self.crop(logits)), x)

    def mean_image(self, logits: Float[jax.Array, "batch H W parameters"]) -> Float[jax.Array, "batch h w C"]:
        """The picture to show: the distribution's mean in [-1, 1], without the border."""
        return jnp.clip(self.output_distribution(self.crop(logits)).mean(), -1.0, 1.0)

    # --------------------------------------------------------------------------------------------------------- network
    def __call__(
        self,
        x: Float[jax.Array, "batch H W C"],
        key: Key | None = None,
        *,
        noise: Sequence[Float[jax.Array, "batch _ _ latents"]] | None = None,
        train: bool = False,
    ) -> NVAEOutput:
        """Encodes and decodes.

        Args:
          x: (batch, H, W, C) in [-1, 1], of side `image_size`, or already padded.
          key: draws the posterior's noise; or give
          noise: standard normal noise for each group, shapes as `group_shapes`.
          train: whether batch norm uses the batch's statistics.

        Raises:
          ValueError: for shapes that do not fit, or without key and noise.
        """
        x = self.pad_images(x)
        if noise is None:
            if key is None:
                raise InputError("NVAE needs a key, or the noise of each group")
            noise = self.noise(key, x.shape[0], dtype=wide(self.dtype))
        self._check_groups(noise, x.shape[0], "noise")
        logits, drawn = self._run(x, noise, None, train)
        return NVAEOutput(logits, tuple(eps for eps, _ in drawn), tuple(log_q for _, log_q in drawn))

    def decode(
        self,
        eps: Sequence[Float[jax.Array, "batch _ _ latents"]] | Float[jax.Array, "batch h w channels"] | None = None,
        *,
        key: Key | None = None,
        batch: int | None = None,
        temperature: float = 1.0,
        train: bool = False,
    ) -> Float[jax.Array, "batch H W parameters"]:
        """Parameters of the output distribution from latent variables.

        Args:
          eps: groups, coarsest first, all or the first few of them; or the latent variables of the coarsest scale as
            one array (batch, *latent_shape); or None.
          key: draws the groups that eps does not have from N(0, temperature^2).
          batch: number of images if eps is None.
          temperature: of what is drawn; of eps that is given nothing is changed.
          train: batch statistics instead of the running ones.

        Returns:
          logits, (batch, H, W, parameters).

        Raises:
          ValueError: for shapes that do not fit, or groups that nothing tells.
        """
        if eps is None:
            groups: list[jax.Array] = []
        elif isinstance(eps, Sequence):
            groups = list(eps)
        else:
            groups = list(self.decompose_eps(eps))
        size = groups[0].shape[0] if groups else batch
        if size is None:
            raise InputError("decode needs latent variables, or the number of images as batch")
        if len(groups) < self.num_groups:
            if key is None:
                raise InputError(
                    f"{len(groups)} of {self.num_groups} groups are given: decode needs a key for the rest"
                )
            drawn = self.noise(key, size, dtype=wide(self.dtype))
            groups += [temperature * e for e in drawn[len(groups) :]]
        self._check_groups(groups, size, "latent variables")
        return self._run(None, None, groups, train)[0]

    def _check_groups(self, groups: Sequence[jax.Array], batch: int, what: str) -> None:
        expected = self.group_shapes(batch)
        shapes = tuple(tuple(g.shape) for g in groups)
        if len(shapes) != len(expected):
            raise InputError(f"this VAE has {len(expected)} groups; got {what} of {len(shapes)}")
        for i, (shape, wanted) in enumerate(zip(shapes, expected, strict=True)):
            if shape != wanted:
                raise InputError(f"{what} of group {i} must have shape {wanted}; got {shape}")

    @nn.compact
    def _run(
        self,
        x: jax.Array | None,
        noise: Sequence[jax.Array] | None,
        eps: Sequence[jax.Array] | None,
        train: bool,
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        """Logits, and (eps, log_q) of each group if x is given rather than eps."""
        common = {"train": train, "squeeze_excite": self.squeeze_excite, "dtype": self.dtype}
        branches = _BRANCHES[self.cells]
        encoded = None if x is None else self._encode(x, common, branches["encoder"])
        drawn: list[tuple[jax.Array, jax.Array]] = []
        n = self.groups_per_scale
        batch = (noise if eps is None else eps)[0].shape[0]  # type: ignore[index]
        level = len(self.ch_mult) - 1

        side = self.latent_shape[0]
        constant_shape = (side, side, self.decoder_channels * self.ch_mult[-1])
        h = self.param("initial_state", nn.initializers.uniform(1.0), constant_shape)
        h = jnp.broadcast_to(h.astype(self.dtype)[None], (batch, *constant_shape))
        for scale in range(self.num_scales):
            features = self.decoder_channels * self.ch_mult[level]
            settings = {
                "features": features,
                "encoder_features": self.encoder_channels * self.ch_mult[level],
                "cells": self.decoder_cells,
                "branch": branches["decoder"],
                "latents": self.latents_per_group,
                "num_flows": self.num_flows,
                "log_sigma_bound": self.log_sigma_bound,
                "common": common,
            }
            # (encoded, noise, eps) of the groups, stacked; of the coarsest scale the first group is by itself.
            inputs = tuple(
                None if part is None else jnp.stack([part[i] for i in range(scale * n, (scale + 1) * n)])
                for part in (None, noise, eps)
            )
            inputs = (None if encoded is None else encoded[scale], *inputs[1:])
            start = 0
            if scale == 0:
                group = remat(DecoderGroup, self.remat)(first=True, name="decoder_0_first", **settings)
                h, found = group(h, jax.tree.map(lambda a: a[0], inputs))
                drawn += [] if found is None else [found]
                start = 1
            if n > start:
                group = self._scan(DecoderGroup, n - start)(first=False, name=f"decoder_{scale}", **settings)
                h, found = group(h, jax.tree.map(lambda a, start=start: a[start:], inputs))
                drawn += [] if found is None else [(found[0][i], found[1][i]) for i in range(n - start)]
            if scale < self.num_scales - 1:
                level -= 1
                features = self.decoder_channels * self.ch_mult[level]
                up = Cell(features, branches["decoder"], resample="up", name=f"decoder_{scale}_up", **common)
                h = up(h)
        for block in range(self.num_blocks):
            for i in range(self.postprocess_cells):
                level -= i == 0
                features = self.decoder_channels * self.ch_mult[level]
                resample = "up" if i == 0 else "none"
                name = f"post_{block}_{i}"
                h = Cell(features, branches["post"], resample=resample, name=name, **common)(h)
        outputs = distributions.decoder_channels(self.decoder, self.channels, self.num_mixtures)
        # In float32: bfloat16 cannot tell neighbouring levels of an 8-bit image apart.
        return Conv(outputs, dtype=wide(self.dtype), name="output")(nn.elu(h)), drawn

    def _scan(self, cls: type[nn.Module], length: int) -> Any:
        axes: dict[Any, Any] = {"params": 0, "batch_stats": 0}
        # Within a scan remat needs no barrier against common-subexpression elimination.
        cls = remat(cls, self.remat, prevent_cse=False)
        # Inside a loop XLA's CPU backend takes some 60 times as long for the gradient of a convolution.
        unroll = length if jax.default_backend() == "cpu" else 1
        return nn.scan(cls, variable_axes=axes, split_rngs={"params": True}, length=length, unroll=unroll)

    def _encode(self, x: jax.Array, common: dict[str, Any], branch: str) -> list[jax.Array]:
        """Features for each scale, coarsest first: (groups, batch, h, w, C), in the order in which they are decoded."""
        h = Conv(self.encoder_channels, dtype=self.dtype, name="stem")(x)
        level = 0
        for block in range(self.num_blocks):
            for i in range(self.preprocess_cells):
                last = i == self.preprocess_cells - 1
                level += last
                features = self.encoder_channels * self.ch_mult[level]
                name = f"pre_{block}_{i}"
                h = Cell(features, branch, resample="down" if last else "none", name=name, **common)(h)
        pyramid = h
        scales = []
        for scale in range(self.num_scales):
            features = self.encoder_channels * self.ch_mult[level]
            name = f"encoder_{scale}"
            groups = self._scan(EncoderGroup, self.groups_per_scale)
            h, every = groups(features, self.encoder_cells, branch, common, name=name)(h, None)
            scales.append(every[::-1])
            if scale == self.num_scales - 1:
                break
            level += 1
            features = self.encoder_channels * self.ch_mult[level]
            h = Cell(features, branch, resample="down", name=f"{name}_down", **common)(h)
            if self.progressive_input == "input_skip":
                settings = {"train": common["train"], "resample": "down", "dtype": self.dtype}
                pyramid = BNSwishConv(features, name=f"{name}_input", **settings)(pyramid)
                h = h + pyramid
        return scales[::-1]
