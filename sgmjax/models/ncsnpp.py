"""NCSN++ and DDPM++, and the noise-conditional classifier made of its encoder.

One module with the switches of the official codes of score-SDE, CLD and PSLD, which differ in few places; here they
are fields: the number of output channels (CLD and PSLD take the whole phase-space state and predict some rows of it),
`centered` (score-SDE maps data in [0, 1] to [-1, 1] inside), `scale_by_sigma` (score-SDE's VE networks). NCSN++ is
fir=True with progressive_input='residual' (and 'output_skip' / 'input_skip' for large images); DDPM++ is fir=False,
progressive_input='none', embedding_type='positional'.

Combinations that the official code offers but cannot run (progressive='residual'; resblock_type='ddpm' with
fir=True or as published; output_skip without FIR) run here, with the meaning that the original JAX code and StyleGAN2
give them.

Reference: Song et al. 2021, "Score-based generative modeling through SDEs", appendix H.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int

from sgmjax._inputs import InputError, check_labels
from sgmjax._ranges import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from sgmjax._types import Cond, Inputs, Outputs
from sgmjax.models import layers
from sgmjax.models.layers import Nonlinearity, Width


def noise_table(sigma_min: float, sigma_max: float, num_scales: int) -> np.ndarray:
    """score-SDE's discrete noise levels, geometric and descending, (num_scales,) float64."""
    return np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), num_scales))


def label_or_none(labels: jax.Array | None, num_classes: int, batch: int) -> jax.Array:
    """The labels, or the index `num_classes` ("no class") for every example.

    Raises:
        InputError: labels that are not (batch,) integers 0 ... num_classes.
    """
    if labels is None:
        return jnp.full((batch,), num_classes, jnp.int32)
    check_labels(labels, num_classes + 1, f"labels, where {num_classes} is no class,", length=batch)
    return jnp.asarray(labels)


class _Encoder(nn.Module):
    """Fields and the first half, shared by the score network and the classifier."""

    nf: Width = 128
    ch_mult: tuple[PositiveInt, ...] = (1, 2, 2, 2)
    num_res_blocks: PositiveInt = 4
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: Fraction = 0.1
    resamp_with_conv: bool = True
    conditional: bool = True
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    resblock_type: Literal["biggan", "ddpm"] = "biggan"
    progressive_input: Literal["none", "input_skip", "residual"] = "none"
    progressive_combine: Literal["sum", "cat"] = "sum"
    embedding_type: Literal["positional", "fourier"] = "positional"
    init_scale: NonNegativeFloat = 0.0
    fourier_scale: PositiveFloat = 16.0
    embedding_dim: Width | None = None  # size of the time embedding; None: nf, and 2 nf with Fourier features
    embedding_scale: PositiveFloat = 1.0  # factor of the conditioning before a positional embedding; LSGM takes 1000
    fourier_log: bool = True  # Fourier features of log cond; LSGM's are of cond itself
    nonlinearity: Nonlinearity = "swish"
    remat: layers.Remat = False  # of residual blocks: less memory, more time
    centered: bool = True
    dtype: Any = jnp.float32

    @property
    def takes_log(self) -> bool:
        """Whether the network takes the logarithm of its time."""
        return self.embedding_type == "fourier" and self.fourier_log

    @property
    def _wide(self) -> Any:
        """Type of embeddings and of the output: float32, whatever the compute type (float64 if that was asked for)."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def _block(self, features: int, name: str, train: bool, resample: str = "none") -> nn.Module:
        common = {
            "features": features,
            "act": layers.activation(self.nonlinearity),
            "dropout": self.dropout,
            "skip_rescale": self.skip_rescale,
            "init_scale": self.init_scale,
            "train": train,
            "dtype": self.dtype,
            "name": name,
        }
        if self.resblock_type == "ddpm":
            return layers.remat(layers.ResnetBlockDDPM, self.remat)(**common)
        cls = layers.remat(layers.ResnetBlockBigGAN, self.remat)
        return cls(resample=resample, fir=self.fir, fir_kernel=self.fir_kernel, **common)

    def _attention(self, name: str) -> nn.Module:
        return layers.AttnBlock(skip_rescale=self.skip_rescale, init_scale=self.init_scale, dtype=self.dtype, name=name)

    def _resampler(self, cls: type[nn.Module], name: str, features: int | None = None, with_conv: bool = True):
        return cls(
            features=features,
            with_conv=with_conv,
            fir=self.fir,
            fir_kernel=self.fir_kernel,
            dtype=self.dtype,
            name=name,
        )

    def _resize(self, x: jax.Array, how: str) -> jax.Array:
        return layers.resize(x, how, self.fir_kernel if self.fir else None)

    def _embed(
        self, cond: jax.Array, labels: jax.Array | None, num_classes: int | None = None, labels_at: str = "embedding"
    ) -> jax.Array | None:
        """Embedding of the conditioning and of the class, (batch, 4 nf) or 4 embedding_dim; None: unconditional."""
        act = layers.activation(self.nonlinearity)
        temb, width = None, 4 * (self.embedding_dim or self.nf)
        if self.embedding_type == "fourier":
            count = self.nf if self.embedding_dim is None else self.embedding_dim // 2
            features = layers.FourierEmbedding(count, self.fourier_scale, log=self.fourier_log, name="fourier")(cond)
        else:
            features = layers.timestep_embedding(self.embedding_scale * cond, self.embedding_dim or self.nf)
        if num_classes is not None and labels_at == "features":
            labels, wide = label_or_none(labels, num_classes, cond.shape[0]), features.shape[-1]
            features = features + nn.Embed(num_classes + 1, wide, dtype=self._wide, name="label_embed")(labels)
        if self.conditional:
            temb = layers.dense(width, name="time_dense_0", dtype=self._wide)(features)
            temb = layers.dense(width, name="time_dense_1", dtype=self._wide)(act(temb))
        if num_classes is not None and labels_at == "embedding":
            labels = label_or_none(labels, num_classes, cond.shape[0])
            table = nn.Embed(num_classes + 1, width, dtype=self._wide, name="label_embed")
            temb = table(labels) if temb is None else temb + table(labels)
        elif num_classes is None and labels is not None:
            raise InputError("labels were given to a network without classes; set model.num_classes")
        return temb

    def _encode(self, x: jax.Array, temb: jax.Array | None, train: bool) -> tuple[jax.Array, list[jax.Array]]:
        """x (B, *space, C) -> bottom features after the middle blocks, and the skip connections, finest first."""
        layers.check_sides(x.shape[1:-1], len(self.ch_mult))
        pyramid = x
        h = layers.conv3x3(self.nf, name="conv_in", dtype=self.dtype, axes=layers.spatial_axes(x))(x)
        hs = [h]
        last = len(self.ch_mult) - 1
        for level, mult in enumerate(self.ch_mult):
            for i in range(self.num_res_blocks):
                h = self._block(self.nf * mult, f"down_{level}_block_{i}", train)(h, temb)
                if h.shape[1] in self.attn_resolutions:
                    h = self._attention(f"down_{level}_attn_{i}")(h)
                hs.append(h)
            if level == last:
                break
            if self.resblock_type == "ddpm":
                h = self._resampler(layers.Downsample, f"down_{level}_resample", None, self.resamp_with_conv)(h)
            else:
                h = self._block(h.shape[-1], f"down_{level}_resample", train, "down")(h, temb)
            if self.progressive_input == "input_skip":
                pyramid = self._resize(pyramid, "down")
                h = layers.Combine(self.progressive_combine, dtype=self.dtype, name=f"down_{level}_combine")(pyramid, h)
            elif self.progressive_input == "residual":
                pyramid = self._resampler(layers.Downsample, f"down_{level}_pyramid", h.shape[-1])(pyramid)
                h = pyramid = (pyramid + h) / layers.SQRT2 if self.skip_rescale else pyramid + h
            hs.append(h)
        c = h.shape[-1]
        h = self._block(c, "mid_block_0", train)(h, temb)
        h = self._attention("mid_attn")(h)
        return self._block(c, "mid_block_1", train)(h, temb), hs


class NCSNpp(_Encoder):
    """The score network: a U-Net of residual blocks with attention, conditioned on noise level and class.

    Fields are the switches of the official codes under their names, `num_classes` for class conditioning, and

      out_channels: channels of the output (the rows that receive noise times the image channels).
      centered: False if the data are in [0, 1]; they are then mapped to [-1, 1] inside.
      labels_at: what the class's embedding is added to: the embedding, or the features it is made of, as EDM does.
      dtype: type of the arithmetic; parameters, embeddings, norm statistics, softmax and output are float32.
      sigma_min, sigma_max, num_scales: the table of discrete noise levels in which the integer `cond` is looked up by
        `scale_by_sigma` when the embedding is positional (score-SDE's discrete VE networks). Not used otherwise.

    Called as `module.apply({"params": p}, x, cond, train=False, labels=None, rngs={"dropout": key})`:

      x: (B, H, W, C), or with any number of spatial axes; each side divisible by 2^(levels - 1). `attn_resolutions` are
        lengths of the first of them.
      cond: (B,), what the official network receives: sigma or t > 0 (fourier, the log is taken inside), t in [0, 1] or
        0..999 (positional).
      labels: (B,) int32 in [0, num_classes], where num_classes stands for "no class" and is the default.

    Returns:
      (B, *space, out_channels), float32.
    """

    axes = (2, 3)

    out_channels: int = 3
    progressive: Literal["none", "output_skip", "residual"] = "none"
    scale_by_sigma: bool = False
    num_classes: PositiveInt | None = None
    labels_at: Literal["embedding", "features"] = "embedding"
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000

    def _sigma(self, cond: jax.Array) -> jax.Array:
        if self.embedding_type == "fourier":
            return cond
        table = noise_table(self.sigma_min, self.sigma_max, self.num_scales)
        return jnp.asarray(table, self._wide)[cond.astype(jnp.int32)]

    def _to_output(self, h: jax.Array, name: str) -> jax.Array:
        act = layers.activation(self.nonlinearity)
        h = act(layers.group_norm(h.shape[-1], name=f"{name}_norm", dtype=self.dtype)(h))
        options = {"dtype": self.dtype, "init_scale": self.init_scale, "axes": layers.spatial_axes(h)}
        return layers.conv3x3(self.out_channels, name=f"{name}_conv", **options)(h)

    @nn.compact
    def __call__(
        self, x: Inputs, cond: Cond, *, train: bool = False, labels: Int[jax.Array, " batch"] | None = None
    ) -> Outputs:
        act = layers.activation(self.nonlinearity)
        cond = cond.astype(self._wide)
        temb = self._embed(cond, labels, self.num_classes, self.labels_at)
        x = (x if self.centered else 2.0 * x - 1.0).astype(self.dtype)
        h, hs = self._encode(x, temb, train)

        pyramid = None
        for level in reversed(range(len(self.ch_mult))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, hs.pop()], axis=-1)
                h = self._block(self.nf * self.ch_mult[level], f"up_{level}_block_{i}", train)(h, temb)
            if h.shape[1] in self.attn_resolutions:
                h = self._attention(f"up_{level}_attn")(h)
            if self.progressive == "output_skip":
                out = self._to_output(h, f"up_{level}_out")
                pyramid = out if pyramid is None else self._resize(pyramid, "up") + out
            elif self.progressive == "residual":
                if pyramid is None:
                    norm = layers.group_norm(h.shape[-1], name=f"up_{level}_pyramid_norm", dtype=self.dtype)
                    axes = layers.spatial_axes(h)
                    conv = layers.conv3x3(h.shape[-1], name=f"up_{level}_pyramid_conv", dtype=self.dtype, axes=axes)
                    pyramid = conv(act(norm(h)))
                else:
                    pyramid = self._resampler(layers.Upsample, f"up_{level}_pyramid", h.shape[-1])(pyramid)
                    h = pyramid = (pyramid + h) / layers.SQRT2 if self.skip_rescale else pyramid + h
            if level != 0:
                if self.resblock_type == "ddpm":
                    h = self._resampler(layers.Upsample, f"up_{level}_resample", None, self.resamp_with_conv)(h)
                else:
                    h = self._block(h.shape[-1], f"up_{level}_resample", train, "up")(h, temb)
        assert not hs

        out = self._to_output(h, "out") if self.progressive != "output_skip" else pyramid
        assert out is not None
        out = out.astype(self._wide)
        return out / layers.over_space(self._sigma(cond), out) if self.scale_by_sigma else out


class NCSNppClassifier(_Encoder):
    """The classifier p(class | z_t, t) of PSLD's guided sampling: NCSN++'s encoder and one linear layer.

    Fields are those of `NCSNpp` that concern its encoder; `out_channels` is the number of classes. Inputs as there.

    Returns:
      Logits, (B, out_channels), float32.

    Reference: Pandey & Mandt 2023 (PSLD), class-conditional synthesis.
    """

    axes = (2, 1, 3)
    classifies = True

    out_channels: int = 10
    num_res_blocks: PositiveInt = 2

    @nn.compact
    def __call__(
        self, x: Inputs, cond: Cond, *, train: bool = False, labels: Int[jax.Array, " batch"] | None = None
    ) -> Float[jax.Array, "batch classes"]:
        temb = self._embed(cond.astype(self._wide), labels)
        x = (x if self.centered else 2.0 * x - 1.0).astype(self.dtype)
        h, _ = self._encode(x, temb, train)
        h = h.reshape(h.shape[0], -1).astype(self._wide)
        head = nn.Dense(
            self.out_channels,
            use_bias=False,
            kernel_init=layers.torch_default_init(),
            dtype=self._wide,
            name="head",
        )
        return head(h)
