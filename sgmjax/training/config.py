"""The typed configuration of a run, and the one door through which configs enter.

A config file returns `complete({...})`: plain nested dictionaries, validated and filled with the defaults below. The
library itself only ever sees the frozen dataclasses. Every wrong key, type or value is a `ConfigError` that names the
key and the fix, raised before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


class ConfigError(ValueError):
    """A setting that cannot work. The message is one line: the key, what is wrong, and the fix."""


def _section(cls):
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


# --------------------------------------------------------------------------------------------------------------- data
@_section
class DataConfig:
    """What is trained on.

    `name`: `digits` (scikit-learn, embedded), a 2-D set of `sgmjax.data.toy`, `folder`, or any TFDS image set.
    """

    name: str = "digits"
    data_dir: str | None = None  # TFDS directory (default: ~/tensorflow_datasets) or, for `folder`, the image folder
    split: str = "train"
    eval_split: str | None = "test"  # held-out data; None: no evaluation loss. `digits` holds out its own split.
    image_size: int | None = None  # square; None keeps the size of the data (which must then be one size)
    flip: bool = False  # random horizontal flips, training only
    centered: bool = True  # True: network sees [-1, 1]; False: [0, 1]
    in_memory: bool | None = None  # None: held in memory when it fits memory_limit_gb
    memory_limit_gb: float = 2.0
    num_samples: int = 50_000  # size of generated 2-D sets


# ---------------------------------------------------------------------------------------------------------- processes
@_section
class VPConfig:
    name: Literal["vp"] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0


@_section
class SubVPConfig:
    name: Literal["subvp"] = "subvp"
    beta_min: float = 0.1
    beta_max: float = 20.0


@_section
class VEConfig:
    name: Literal["ve"] = "ve"
    sigma_min: float = 0.01
    sigma_max: float = 50.0


@_section
class CLDConfig:
    """Dockhorn et al. 2022, their convention of beta (twice that of PSLD). kappa is the paper's gamma."""

    name: Literal["cld"] = "cld"
    beta_min: float = 4.0
    beta_max: float = 4.0
    m_inv: float = 4.0
    kappa: float = 0.04
    numerical_eps: float = 0.0


@_section
class PSLDConfig:
    """Pandey & Mandt 2023. m_inv is fixed by critical damping, (gamma - nu)^2 / 4."""

    name: Literal["psld"] = "psld"
    beta_min: float = 8.0
    beta_max: float = 8.0
    gamma: float = 0.01
    nu: float = 4.01
    kappa: float = 0.04
    factor: Literal["auto", "lower", "upper"] = "auto"
    numerical_eps: float = 0.0


@_section
class ThirdOrderConfig:
    name: Literal["third_order"] = "third_order"
    beta_min: float = 4.0
    beta_max: float = 4.0
    m_inv: float = 4.0
    gamma: float | None = None  # None: critical damping
    xi: float | None = None
    kappa: float = 0.04
    numerical_eps: float = 0.0


@_section
class RecipeConfig:
    """Any process of the complete recipe: F = -(D + Q) Sigma_inf^-1, G G^T = 2 D; matrices as nested tuples, k x k."""

    name: Literal["recipe"] = "recipe"
    D: tuple[tuple[float, ...], ...] = ()
    Q: tuple[tuple[float, ...], ...] = ()
    Sigma_inf: tuple[tuple[float, ...], ...] | None = None  # None: identity
    Sigma_0: tuple[tuple[float, ...], ...] | None = None  # (k-1) x (k-1) law of the auxiliaries at t = 0
    beta_min: float = 4.0
    beta_max: float = 4.0
    numerical_eps: float = 0.0


SDES: dict[str, type] = {
    "vp": VPConfig,
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
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
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
    init_scale: float = 0.0
    fourier_scale: float = 16.0
    scale_by_sigma: bool = False
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    num_classes: int | None = None  # class conditioning
    remat: bool = False  # recompute residual blocks in the backward pass: less memory, more time


@_section
class DDPMConfig:
    """The network of Ho et al. 2020 as in score_sde."""

    name: Literal["ddpm"] = "ddpm"
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    resamp_with_conv: bool = True
    conditional: bool = True
    scale_by_sigma: bool = False
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "swish"
    num_classes: int | None = None


@_section
class MLPConfig:
    """Residual MLP for vectors (2-D sets)."""

    name: Literal["mlp"] = "mlp"
    width: int = 128
    depth: int = 4
    num_classes: int | None = None


MODELS: dict[str, type] = {"ncsnpp": NCSNppConfig, "ddpm": DDPMConfig, "mlp": MLPConfig}


# ---------------------------------------------------------------------------------------------- objective and sampling
@_section
class ObjectiveConfig:
    matching: Literal["hsm", "dsm"] = "hsm"
    weighting: Literal["simple", "likelihood", "reweightedv1", "reweightedv2"] = "simple"
    parameterization: Literal["eps", "mixed", "score"] = "eps"  # what the network's output is
    # What the network is given for time: t, t * 999, sigma(t).
    time_conditioning: Literal["t", "t999", "sigma"] = "t"
    time_sampling: Literal["uniform", "importance"] = "uniform"
    t_min: float = 1e-5
    reduce: Literal["mean", "sum"] = "mean"  # over event dimensions; always the mean over the batch


@_section
class OptimizerConfig:
    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 5000  # linear from 0
    grad_clip: float | None = 1.0  # global norm
    ema_decay: float = 0.9999
    ema_warmup: bool = False  # True: min(decay, (1 + n) / (10 + n)), as score_sde and CLD


@_section
class TrainConfig:
    steps: int = 1000
    batch_size: int = 128  # over all devices and processes
    grad_accumulation: int = 1  # microbatches a step
    steps_per_dispatch: int = 1  # optimiser steps a jitted call
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    fsdp: int = 1  # devices over which parameters are split; the rest is data parallel
    log_every: int = 50
    eval_every: int = 1000
    eval_batches: int | None = 8  # None: all held-out data
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    max_bad_steps: int = 20  # consecutive non-finite steps before the run stops


@_section
class SamplingConfig:
    sampler: str = "sscs"  # em | sscs | ode
    steps: int = 50  # network evaluations, the denoising one included
    grid: Literal["uniform", "quadratic"] = "quadratic"
    t_min: float = 1e-3
    denoise: bool = True
    rtol: float = 1e-5  # adaptive samplers
    atol: float = 1e-5
    grid_images: int = 64  # in samples/step_<n>.png
    num: int = 1000  # in samples/final.npz
    batch_size: int = 500


@_section
class Config:
    seed: int = 0
    data: DataConfig = DataConfig()
    sde: Any = PSLDConfig()
    model: Any = NCSNppConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()


_UNIONS = {"sde": SDES, "model": MODELS}
