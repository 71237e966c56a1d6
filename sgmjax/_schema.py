"""The settings of a run: their names, types, ranges and defaults.

Import them from `sgmjax.config`, which also holds the readers and writers. A range is part of the type
(`PositiveInt`, `Fraction`, ...) and is checked by the reader.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, dataclass_transform

from sgmjax import models, sdes
from sgmjax._ranges import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
)
from sgmjax.data.settings import DataSettings as DataConfig
from sgmjax.objectives.time_law import Mode
from sgmjax.objectives.weighting import Weighting
from sgmjax.samplers.plan import Plan
from sgmjax.spec import Section, Table, UserPath

# Sections by name: their settings are those of the constructor of that name.
SDE = Table("sde", sdes.PROCESSES, default="psld", given=sdes.GIVEN)
MODEL = Table("model", models.NETWORKS, default="ncsnpp", given=models.GIVEN)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _section(cls):
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


# ---------------------------------------------------------------------------------------------------------------- VAE
@_section
class VAETraining:
    """The terms of the VAE's own objective, in section `vae` beside what the network is (`models.NVAE`)."""

    # KL coefficient: kl_min for a share of the steps, then linear to kl_max during another share [kl_*].
    kl_min: NonNegativeFloat = 1e-4
    kl_max: NonNegativeFloat = 0.7
    kl_const_portion: NonNegativeFloat = 1e-4
    kl_anneal_portion: NonNegativeFloat = 1.0
    # Balances the groups while the coefficient is below 1.
    kl_balance: Literal["none", "equal", "linear", "sqrt", "square"] = "square"
    spectral_weight: NonNegativeFloat = 0.01  # of spectral and batch-norm regularisation [weight_decay_norm]


VAE = Table(
    "vae", {"nvae": models.NVAE}, "nvae", frozenset({"image_size", "channels", "dtype", "parent"}), also=(VAETraining,)
)


# ---------------------------------------------------------------------------------------------- objective and sampling
@_section
class ObjectiveConfig:
    matching: Literal["hsm", "dsm"] = "hsm"
    weighting: Weighting = "simple"
    anneal_power: float = 2.0  # of "annealed": sigma^anneal_power on the squared error of the score (NCSN, NCSNv2)
    # What the network's output is. "edm", "x0", "v", "flow": of a denoiser of x_0 + sigma n, which is trained without a
    # process, has the data's channels in and out, and samples with any (`sgmjax.preconditioning`).
    parameterization: Literal["eps", "mixed", "score", "edm", "x0", "v", "flow"] = "eps"
    # What the network is given for time: t, t * 999, sigma(t), the index of the nearest of num_levels noise levels; of
    # a denoiser: sigma, log(sigma) / 4, and for t that of the straight path, sigma / (1 + sigma).
    time_conditioning: Literal["t", "t999", "sigma", "level", "log_sigma"] = "t"
    # "levels": at num_levels noise levels from sde.sigma_max to sde.sigma_min, by sde.sigma_dist, as NCSN and NCSNv2.
    # Of a denoiser: "log_normal", or "uniform", the noise levels of the process at uniform times.
    time_sampling: Literal["uniform", "importance", "levels", "log_normal"] = "uniform"
    log_sigma_mean: float = -1.2  # of "log_normal"; -1.2 and 1.2 are EDM's
    log_sigma_std: PositiveFloat = 1.2
    sigma_data: PositiveFloat = 0.5  # of "edm": standard deviation of the data; EDM's 0.5 is for images in [-1, 1]
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
class LoopSettings:
    """How the steps of a run are taken; none of it is about what is learnt. What `fit` takes as `settings`."""

    batch_size: PositiveInt = 128  # over all devices and processes
    grad_accumulation: PositiveInt = 1  # microbatches a step
    steps_per_dispatch: PositiveInt = 1  # optimiser steps a jitted call; divides all other counts of steps
    fsdp: PositiveInt = 1  # devices over which parameters are split; the rest is data parallel
    log_every: PositiveInt = 50
    checkpoint_every: NonNegativeInt = 1000  # here and below 0 means: only at the end
    keep_checkpoints: PositiveInt = 2
    max_bad_steps: PositiveInt = 20  # consecutive non-finite steps before the run stops


@_section
class TrainConfig(LoopSettings):
    steps: PositiveInt = 1000
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    eval_every: NonNegativeInt = 1000
    eval_batches: PositiveInt | None = 8  # None: all held-out data
    sample_every: NonNegativeInt = 1000
    metrics: tuple[str, ...] = ()  # of `python -m sgmjax.evaluate`: bpd, fid, ...
    metrics_every: NonNegativeInt = 0
    metrics_features: str = "inception"  # of fid, fd, kid, ...: a name, or the run of a feature network
    keep_best: str | None = None  # a number measured on the way, eval_loss, fid, ...: its best parameters are kept


@_section
class SamplingConfig(Plan):
    """How samples are drawn. `options` are the sampler's own settings, {"snr": 0.16}: its function's keyword arguments.

    On the command line: `--config.sampling.sampler=pc --config.sampling.options.snr=0.2`.
    """

    grid_images: PositiveInt = 64  # in samples/step_<n>.png
    num: PositiveInt = 1000  # in samples/final.npz
    batch_size: PositiveInt = 500


@_section
class Config:
    seed: Seed = 0
    data: DataConfig = DataConfig()
    sde: Annotated[Section, SDE] = SDE.read({})
    model: Annotated[Section, MODEL] = MODEL.read({})
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()
    vae: Annotated[Section, VAE] | None = None  # given: the model is an LSGM, `model` its prior
    latent: LatentConfig = LatentConfig()
