"""The settings of a run: their names, types, ranges and defaults.

Import them from `sgmjax.training.config`, which also holds the readers and writers. A range is part of the type
(`PositiveInt`, `Fraction`, ...) and is checked by the reader.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, dataclass_transform

from sgmjax._ranges import (
    COUNT,
    COUNT_OR_ZERO,
    FRACTION,
    NON_NEGATIVE,
    OPEN_UNIT,
    POSITIVE,
    SEED,
    SIDE,
    TOLERANCE,
)
from sgmjax.objectives.time_law import Mode
from sgmjax.objectives.weighting import Weighting

PATH = object()  # marks a setting that is a path: `~` in it is the home folder
UserPath = Annotated[str, PATH]

PositiveInt = Annotated[int, COUNT]
NonNegativeInt = Annotated[int, COUNT_OR_ZERO]
PositiveFloat = Annotated[float, POSITIVE]
NonNegativeFloat = Annotated[float, NON_NEGATIVE]
Fraction = Annotated[float, FRACTION]
OpenUnit = Annotated[float, OPEN_UNIT]
Tolerance = Annotated[float, TOLERANCE]
Seed = Annotated[int, SEED]
Side = Annotated[int, SIDE]
Matrix = tuple[tuple[float, ...], ...]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _section(cls):
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


# --------------------------------------------------------------------------------------------------------------- data
@_section
class DataConfig:
    """What is trained on.

    `name`: `digits` (scikit-learn, embedded), a 2-D set of `sgmjax.data.toy`, `folder`, `npz` (arrays), or any TFDS
    image set.
    """

    name: str = "digits"
    data_dir: UserPath | None = None  # TFDS directory (default ~/tensorflow_datasets); for `folder` the image folder
    path: UserPath | None = None  # for `npz`: the file, with arrays x, labels, and perhaps x_test, labels_test
    split: str = "train"
    eval_split: str | None = "test"  # held-out data; None: no evaluation loss. `digits` holds out its own split.
    image_size: Side | None = None  # square; None keeps the size of the data (which must then be one size)
    # Images of more than 8 bits: the values (low, high) that become 0 and 255. None: all images have 8 bits.
    range: tuple[int, ...] | None = None
    flip: bool = False  # random horizontal flips, training only
    centered: bool = True  # True: network sees [-1, 1]; False: [0, 1]
    uniform_dequantization: bool = False  # train on (x + u) / 256, u uniform: the density that bits/dim are about
    # Grey images as binary ones, each pixel on with the probability of its value: drawn once, or anew at every use.
    binarize: Literal["none", "static", "dynamic"] = "none"
    in_memory: bool | None = None  # None: held in memory when it fits memory_limit_gb
    memory_limit_gb: NonNegativeFloat = 2.0
    num_samples: PositiveInt = 50_000  # size of generated 2-D sets


# ---------------------------------------------------------------------------------------------------------- processes
@_section
class VPConfig:
    name: Literal["vp"] = "vp"
    beta_min: NonNegativeFloat = 0.1
    beta_max: PositiveFloat = 20.0
    sigma2_0: Fraction = 0.0  # variance of the kernel at t = 0 (LSGM)


@_section
class GeometricVPConfig:
    """VP whose variance grows geometrically (Vahdat et al. 2021): sigma2_min (max / min)^t - sigma2_min + sigma2_0."""

    name: Literal["geometric_vp"] = "geometric_vp"
    sigma2_min: OpenUnit = 3e-5
    sigma2_max: OpenUnit = 0.999
    sigma2_0: Fraction | None = None  # None: sigma2_min


@_section
class SubVPConfig:
    name: Literal["subvp"] = "subvp"
    beta_min: NonNegativeFloat = 0.1
    beta_max: PositiveFloat = 20.0
    sigma2_0: Fraction = 0.0  # as of vp


@_section
class VEConfig:
    name: Literal["ve"] = "ve"
    sigma_min: PositiveFloat = 0.01
    sigma_max: PositiveFloat = 50.0
    sigma2_0: NonNegativeFloat | None = None  # variance of the kernel at t = 0; None: sigma_min^2
    # Noise levels at equal steps of time: of a constant ratio, or equally spaced (NCSNv2's setting of that name).
    sigma_dist: Literal["geometric", "uniform"] = "geometric"


@_section
class CLDConfig:
    """Dockhorn et al. 2022, their convention of beta (twice that of PSLD). kappa is the paper's gamma."""

    name: Literal["cld"] = "cld"
    beta_min: NonNegativeFloat = 4.0
    beta_max: PositiveFloat = 4.0
    m_inv: PositiveFloat = 4.0
    kappa: NonNegativeFloat = 0.04
    numerical_eps: NonNegativeFloat = 0.0


@_section
class PSLDConfig:
    """Pandey & Mandt 2023. m_inv is fixed by critical damping, (gamma - nu)^2 / 4."""

    name: Literal["psld"] = "psld"
    beta_min: NonNegativeFloat = 8.0
    beta_max: PositiveFloat = 8.0
    gamma: NonNegativeFloat = 0.01
    nu: NonNegativeFloat = 4.01
    kappa: NonNegativeFloat = 0.04
    factor: Literal["auto", "lower", "upper"] = "auto"
    numerical_eps: NonNegativeFloat = 0.0


@_section
class ThirdOrderConfig:
    name: Literal["third_order"] = "third_order"
    beta_min: NonNegativeFloat = 4.0
    beta_max: PositiveFloat = 4.0
    m_inv: PositiveFloat = 4.0
    gamma: PositiveFloat | None = None  # None: critical damping
    xi: PositiveFloat | None = None
    kappa: NonNegativeFloat = 0.04
    numerical_eps: NonNegativeFloat = 0.0


@_section
class RecipeConfig:
    """Any process of the complete recipe: F = -(D + Q) Sigma_inf^-1, G G^T = 2 D; matrices as nested tuples, k x k."""

    name: Literal["recipe"] = "recipe"
    D: Matrix = ()
    Q: Matrix = ()
    Sigma_inf: Matrix | None = None  # None: identity
    Sigma_0: Matrix | None = None  # (k-1) x (k-1) law of the auxiliaries at t = 0
    beta_min: NonNegativeFloat = 4.0
    beta_max: PositiveFloat = 4.0
    numerical_eps: NonNegativeFloat = 0.0


SDEConfig = (
    VPConfig | GeometricVPConfig | SubVPConfig | VEConfig | CLDConfig | PSLDConfig | ThirdOrderConfig | RecipeConfig
)
SDES: dict[str, type] = {
    "vp": VPConfig,
    "geometric_vp": GeometricVPConfig,
    "subvp": SubVPConfig,
    "ve": VEConfig,
    "cld": CLDConfig,
    "psld": PSLDConfig,
    "third_order": ThirdOrderConfig,
    "recipe": RecipeConfig,
}


# ----------------------------------------------------------------------------------------------------------- networks
@_section
class NCSNppConfig:
    """NCSN++ and DDPM++ (Song et al. 2021), with the switches of the official code under the same names."""

    name: Literal["ncsnpp"] = "ncsnpp"
    nf: PositiveInt = 128
    ch_mult: tuple[PositiveInt, ...] = (1, 2, 2, 2)
    num_res_blocks: PositiveInt = 4
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: Fraction = 0.1
    resamp_with_conv: bool = True
    conditional: bool = True
    fir: bool = False
    fir_kernel: tuple[int, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    resblock_type: Literal["biggan", "ddpm"] = "biggan"
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "none"
    progressive_combine: Literal["sum", "cat"] = "sum"
    embedding_type: Literal["positional", "fourier"] = "positional"
    init_scale: NonNegativeFloat = 0.0
    fourier_scale: PositiveFloat = 16.0
    embedding_dim: PositiveInt | None = None  # size of the time embedding; None: nf, and 2 nf with Fourier features
    embedding_scale: PositiveFloat = 1.0  # factor of time before the positional embedding; 1000 for LSGM's priors
    fourier_log: bool = True  # Fourier features of the logarithm of time; LSGM's are of time itself
    scale_by_sigma: bool = False
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    num_classes: PositiveInt | None = None  # class conditioning
    remat: bool = False  # recompute residual blocks in the backward pass: less memory, more time


@_section
class DDPMConfig:
    """The network of Ho et al. 2020 as in score_sde."""

    name: Literal["ddpm"] = "ddpm"
    nf: PositiveInt = 128
    ch_mult: tuple[PositiveInt, ...] = (1, 2, 2, 2)
    num_res_blocks: PositiveInt = 2
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: Fraction = 0.1
    resamp_with_conv: bool = True
    conditional: bool = True
    scale_by_sigma: bool = False
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    num_classes: PositiveInt | None = None


@_section
class NCSNConfig:
    """NCSN (Song & Ermon 2019), told the index of the noise level by its norms."""

    name: Literal["ncsn"] = "ncsn"
    variant: Literal["standard", "deeper", "deepest"] = "standard"  # for images up to 64, up to 128, of 256
    ngf: PositiveInt = 128
    num_levels: PositiveInt = 10
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "elu"
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time


@_section
class NCSNv2Config:
    """NCSNv2 (Song & Ermon 2020): unconditional, the output divided by sigma."""

    name: Literal["ncsnv2"] = "ncsnv2"
    variant: Literal["standard", "deeper", "deepest"] = "standard"  # for images up to 64, up to 128, of 256
    ngf: PositiveInt = 128
    scale_by_sigma: bool = True
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "elu"
    remat: bool = False


@_section
class MLPConfig:
    """Residual MLP for vectors (2-D sets); signals and volumes are flattened."""

    name: Literal["mlp"] = "mlp"
    width: PositiveInt = 128
    depth: PositiveInt = 4
    num_classes: PositiveInt | None = None


@_section
class UNet1dConfig:
    """A small U-Net for signals (T, C): NCSN++ with convolutions along time. T is a multiple of 2^(levels - 1)."""

    name: Literal["unet1d"] = "unet1d"
    nf: PositiveInt = 64
    ch_mult: tuple[PositiveInt, ...] = (1, 2, 2)
    num_res_blocks: PositiveInt = 2
    attn_resolutions: tuple[PositiveInt, ...] = ()  # lengths, T halved once per entry of ch_mult after the first
    dropout: Fraction = 0.0
    embedding_type: Literal["positional", "fourier"] = "fourier"
    fourier_scale: PositiveFloat = 16.0
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    num_classes: PositiveInt | None = None
    remat: bool = False


@_section
class CLDToyMLPConfig:
    """The `mlp` of CLD's toy experiments."""

    name: Literal["cld_toy_mlp"] = "cld_toy_mlp"
    hidden_dim: PositiveInt = 128


@_section
class CLDToyResNetConfig:
    """The `resnet` of CLD's toy experiments."""

    name: Literal["cld_toy_resnet"] = "cld_toy_resnet"
    hidden_dim: PositiveInt = 64
    num_hidden_layers: PositiveInt = 20


@_section
class NCSNppClassifierConfig:
    """A classifier of noised images for guidance: the encoder of NCSN++, trained by cross entropy."""

    name: Literal["ncsnpp_classifier"] = "ncsnpp_classifier"
    nf: PositiveInt = 128
    ch_mult: tuple[PositiveInt, ...] = (1, 2, 2, 2)
    num_res_blocks: PositiveInt = 2
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: Fraction = 0.1
    resamp_with_conv: bool = True
    conditional: bool = True
    fir: bool = False
    fir_kernel: tuple[int, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    resblock_type: Literal["biggan", "ddpm"] = "biggan"
    progressive_input: Literal["none", "input_skip", "residual"] = "none"
    progressive_combine: Literal["sum", "cat"] = "sum"
    embedding_type: Literal["positional", "fourier"] = "positional"
    init_scale: NonNegativeFloat = 0.0
    fourier_scale: PositiveFloat = 16.0
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    remat: bool = False


@_section
class MLPClassifierConfig:
    """A classifier of noised vectors for guidance, trained by cross entropy."""

    name: Literal["mlp_classifier"] = "mlp_classifier"
    width: PositiveInt = 128
    depth: PositiveInt = 4


ModelConfig = (
    NCSNppConfig
    | DDPMConfig
    | NCSNConfig
    | NCSNv2Config
    | MLPConfig
    | UNet1dConfig
    | CLDToyMLPConfig
    | CLDToyResNetConfig
    | NCSNppClassifierConfig
    | MLPClassifierConfig
)
MODELS: dict[str, type] = {
    "ncsnpp": NCSNppConfig,
    "ddpm": DDPMConfig,
    "ncsn": NCSNConfig,
    "ncsnv2": NCSNv2Config,
    "mlp": MLPConfig,
    "unet1d": UNet1dConfig,
    "cld_toy_mlp": CLDToyMLPConfig,
    "cld_toy_resnet": CLDToyResNetConfig,
    "ncsnpp_classifier": NCSNppClassifierConfig,
    "mlp_classifier": MLPClassifierConfig,
}
CLASSIFIERS = ("ncsnpp_classifier", "mlp_classifier")  # they learn the class of the noised data, not its score


# ---------------------------------------------------------------------------------------------------------------- VAE
@_section
class NVAEConfig:
    """NVAE, the VAE of LSGM (Vahdat et al. 2021), and the terms of its own objective.

    The defaults are those of the published CIFAR-10 run with the best FID. In brackets: the official option.
    """

    pad: NonNegativeInt = 0  # black pixels on each side; 2 for 28 x 28 images
    encoder_channels: PositiveInt = 128  # [num_channels_enc]
    decoder_channels: PositiveInt = 128  # [num_channels_dec]
    ch_mult: tuple[PositiveInt, ...] = (1, 2)  # for each resolution: num_blocks + num_scales of them [channel_mult]
    num_scales: PositiveInt = 1  # resolutions with latent variables; a prior models the coarsest [num_latent_scales]
    groups_per_scale: PositiveInt = 20  # [num_groups_per_scale]
    latents_per_group: PositiveInt = 9  # channels [num_latent_per_group]
    num_blocks: PositiveInt = (
        1  # halvings before the first latent scale [num_preprocess_blocks, num_postprocess_blocks]
    )
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
    remat: bool = False  # recompute groups in the backward pass: less memory, more time
    # KL coefficient: kl_min for a share of the steps, then linear to kl_max during another share [kl_*].
    kl_min: NonNegativeFloat = 1e-4
    kl_max: NonNegativeFloat = 0.7
    kl_const_portion: NonNegativeFloat = 1e-4
    kl_anneal_portion: NonNegativeFloat = 1.0
    # Balances the groups while the coefficient is below 1.
    kl_balance: Literal["none", "equal", "linear", "sqrt", "square"] = "square"
    spectral_weight: NonNegativeFloat = 0.01  # of spectral and batch-norm regularisation [weight_decay_norm]


# ---------------------------------------------------------------------------------------------- objective and sampling
class Options(dict):
    """Settings by name, of something whose settings are not known here. Hashable: not to be changed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted((name, repr(value)) for name, value in self.items())))


@_section
class ObjectiveConfig:
    matching: Literal["hsm", "dsm"] = "hsm"
    weighting: Weighting = "simple"
    anneal_power: float = 2.0  # of "annealed": sigma^anneal_power on the squared error of the score (NCSN, NCSNv2)
    parameterization: Literal["eps", "mixed", "score"] = "eps"  # what the network's output is
    # What the network is given for time: t, t * 999, sigma(t), the index of the nearest of num_levels noise levels.
    time_conditioning: Literal["t", "t999", "sigma", "level"] = "t"
    # "levels": at num_levels noise levels from sde.sigma_max to sde.sigma_min, by sde.sigma_dist, as NCSN and NCSNv2.
    time_sampling: Literal["uniform", "importance", "levels"] = "uniform"
    num_levels: PositiveInt | None = None  # `python -m sgmjax.noise_levels` recommends one
    t_min: Fraction = 1e-5  # 0 only for a latent prior whose process has sigma2_0 > 0
    reduce: Literal["mean", "sum", "half_sum"] = "mean"  # over event dimensions; always the mean over the batch
    # Share of the training examples whose class is hidden from the network (model.num_classes), so that it also learns
    # the score of all classes together: for classifier-free guidance.
    label_dropout: Fraction = 0.0


@_section
class OptimizerConfig:
    name: Literal["adam", "adamw", "adamax"] = "adam"
    learning_rate: PositiveFloat = 2e-4
    # After the warmup the learning rate falls by half a cosine to this at the end of the run; None: it stays.
    learning_rate_min: NonNegativeFloat | None = None
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 100  # linear from 0; published runs: 5000
    grad_clip: PositiveFloat | None = 1.0  # global norm
    ema_decay: Fraction = 0.9999
    # True: min(decay, (1 + n) / (10 + n)) after n steps, as score_sde and CLD, which fits a run of any length.
    ema_warmup: bool = True


@_section
class LatentConfig:
    """LSGM (Vahdat et al. 2021): how the VAE of section `vae` and the prior in its latent space are trained.

    The prior is what the sections `sde`, `model`, `objective` (t_min and the network's time) and `optimizer` say, for
    latent variables of the coarsest scale. In brackets: the official option.
    """

    # Of train.steps, the first ones train the VAE alone, with a normal prior; the others both, end to end.
    vae_steps: NonNegativeInt = 0
    vae_from: UserPath | None = None  # run folder whose VAE is the beginning [vae_checkpoint]
    vae_optimizer: OptimizerConfig = OptimizerConfig(
        name="adamax", learning_rate=1e-2, learning_rate_min=1e-4, eps=1e-3, weight_decay=3e-4, warmup_steps=1000,
        grad_clip=None, ema_decay=0.0, ema_warmup=False,
    )  # fmt: skip
    # From here on: the second stage.
    train_vae: bool = True  # False: frozen, only the prior is trained
    vae_finetune: OptimizerConfig = OptimizerConfig(
        name="adamw", learning_rate=1e-4, learning_rate_min=1e-5, eps=1e-3, weight_decay=3e-4, warmup_steps=1000,
        grad_clip=None, ema_decay=0.0, ema_warmup=False,
    )  # fmt: skip
    p_weighting: Mode = "ll_iw"  # of the prior's objective [iw_sample_p]
    q_weighting: Literal["reweight_p_samples", "ll_uniform", "ll_iw"] = "reweight_p_samples"  # of the VAE's
    q_ema: bool = False  # the VAE sees the prior's averaged parameters [update_q_ema]
    mixing_logit_init: float = -6.0
    drop_inactive: bool = False  # leave latent channels that the VAE does not use to the normal prior
    # KL coefficient in this stage, as of `vae`; 1 and 1: the bound itself [kl_*_vada, cont_kl_anneal].
    kl_min: NonNegativeFloat = 0.7
    kl_max: NonNegativeFloat = 1.0
    kl_const_portion: NonNegativeFloat = 0.0
    kl_anneal_portion: NonNegativeFloat = 0.1
    kl_balance: Literal["none", "equal", "linear", "sqrt", "square"] = "none"
    vae_spectral_weight: NonNegativeFloat = 0.01  # [weight_decay_norm_vae]
    prior_spectral_weight: NonNegativeFloat = 0.0  # [weight_decay_norm_dae]
    prior_spectral_convolutions: bool = True  # False: norm gains only, as published for CIFAR-10 [custom_conv_dae]


@_section
class TrainConfig:
    steps: PositiveInt = 1000
    batch_size: PositiveInt = 128  # over all devices and processes
    grad_accumulation: PositiveInt = 1  # microbatches a step
    steps_per_dispatch: PositiveInt = 1  # optimiser steps a jitted call
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    fsdp: PositiveInt = 1  # devices over which parameters are split; the rest is data parallel
    log_every: PositiveInt = 50
    eval_every: NonNegativeInt = 1000  # here and below 0 means: only at the end
    eval_batches: PositiveInt | None = 8  # None: all held-out data
    sample_every: NonNegativeInt = 1000
    checkpoint_every: NonNegativeInt = 1000
    keep_checkpoints: PositiveInt = 2
    max_bad_steps: PositiveInt = 20  # consecutive non-finite steps before the run stops


@_section
class SamplingConfig:
    """How samples are drawn. `options` are the sampler's own settings, {"snr": 0.16}: its function's keyword arguments.

    On the command line: `--config.sampling.sampler=pc --config.sampling.options.snr=0.2`.
    """

    sampler: str = "sscs"  # a name of `sgmjax.samplers.SAMPLERS`; docs/samplers.md helps to choose
    options: Options = Options()
    steps: PositiveInt = 50  # network evaluations, the denoising one included
    # "score_sde" is that of the official program, for `pc`: with its discrete noise levels, one for each step.
    # "levels" are noise levels by sde.sigma_dist, from VE's sigma_max down to sigma_min itself (t = 0): for
    # `annealed_langevin`, which takes options.steps_per_level of the `steps` at each of its (steps - denoise) /
    # steps_per_level levels.
    grid: Literal["uniform", "quadratic", "power", "rho", "logsnr", "score_sde", "levels"] = "quadratic"
    rho: PositiveFloat = 7.0  # of grid "rho"
    power: PositiveFloat = 2.0  # of grid "power"
    t_min: OpenUnit = 1e-3
    # True: by the reverse SDE's drift; see `samplers.common.denoise_step`. "x_mean": pc's last step without its noise.
    denoise: bool | Literal["sde", "ode", "tweedie", "x_mean"] = True
    rtol: Tolerance | None = None  # of adaptive samplers; None: the sampler's own
    atol: Tolerance | None = None
    grid_images: PositiveInt = 64  # in samples/step_<n>.png
    num: PositiveInt = 1000  # in samples/final.npz
    batch_size: PositiveInt = 500


@_section
class Config:
    seed: Seed = 0
    data: DataConfig = DataConfig()
    sde: SDEConfig = PSLDConfig()
    model: ModelConfig = NCSNppConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()
    vae: NVAEConfig | None = None  # given: the model is an LSGM, `model` its prior
    latent: LatentConfig = LatentConfig()
