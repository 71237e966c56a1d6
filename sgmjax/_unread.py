"""Settings that nothing reads: setting one is a mistake, and the run would be another than its author believes.

What is set is what differs from its default. Whether the values that are read fit together is for `config.check` and
`tasks.build`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from sgmjax import models
from sgmjax._schema import Config, DataConfig, LatentConfig, ObjectiveConfig, SamplingConfig
from sgmjax.data.pipeline import SOURCES, TFDS
from sgmjax.preconditioning import Prediction
from sgmjax.samplers import registry
from sgmjax.spec import Section, fields

Rule = tuple[str, Iterable[str], str]  # section, its settings, why they (<value>) are not read, and what to do


def unread(config: Config) -> dict[str, str]:
    """What is set in vain, by path: {"sampling.rtol": "sampling.rtol: 0.1 means nothing for ..., leave it out"}.

    Examples:
        >>> from sgmjax import config
        >>> list(config.unread(config.parse({"sampling": {"sampler": "em", "rtol": 0.1}})))
        ['sampling.rtol']
    """
    found = {}
    for section, keys, why in _rules(config):
        settings = getattr(config, section)
        for key in keys:
            value = getattr(settings, key)
            if value != fields(settings)[key].default:
                found.setdefault(f"{section}.{key}", f"{section}.{key}: {why.replace('<value>', repr(value))}")
    return found


def without(config: Config, paths: Iterable[str]) -> Config:
    """The config with the settings of these paths at their defaults."""
    for path in paths:
        section, key = path.split(".")
        settings = getattr(config, section)
        default = {key: fields(settings)[key].default}
        settings = (
            settings.replace(**default) if isinstance(settings, Section) else dataclasses.replace(settings, **default)
        )
        config = dataclasses.replace(config, **{section: settings})
    return config


def _rules(config: Config) -> Iterator[Rule]:
    yield from _data(config.data)
    yield from _sampling(config.sampling)
    yield from _metrics(config.train)
    yield from _network(config.model)
    if config.vae is not None:
        yield from _vae(config.vae)
        yield from _with_a_vae(config.latent)
    else:
        everything = [field.name for field in dataclasses.fields(LatentConfig)]
        yield "latent", everything, "is of the training of a VAE; without a section vae leave it out"
        if config.data.binarize == "dynamic":
            yield "data", ["binarize"], "<value> is drawn by the training of a VAE; use 'static', or add a section vae"
        if models.classifies(config.model):
            yield from _classifier(models.sees_noise(config.model))
        else:
            yield from _objective(config.objective)


def _data(data: DataConfig) -> Iterator[Rule]:
    source = SOURCES.get(data.name, TFDS)
    of_sources = {key for one in (*SOURCES.values(), TFDS) for key in one.reads} - {"path"}
    why = f"<value> means nothing for {source.what} (data.name={data.name!r}); leave it out"
    yield "data", sorted(of_sources - {*source.reads}), why
    if "path" not in source.reads:
        yield "data", ["path"], f"is read with data.name='npz', and data.name is {data.name!r}; set that too"
    if source.holds_out and data.eval_split is not None:
        yield "data", ["eval_split"], f"<value> is no part of {source.what}, {source.holds_out}; use that, or None"


def _metrics(train: Any) -> Iterator[Rule]:
    if not train.metrics:
        yield "train", ["metrics_every", "metrics_features"], "is of train.metrics, and there are none; set those too"


def _sampling(sampling: Any) -> Iterator[Rule]:
    name = sampling.sampler
    if name not in registry.SAMPLERS:
        return
    if registry.is_adaptive(name):
        why = f"<value> means nothing for sampler {name!r}, which chooses its own steps; set rtol and atol"
        yield "sampling", ["steps", "grid", "times", "weights", "rho", "power"], why
        return
    why = f"<value> means nothing for sampler {name!r}, which steps on a grid; set steps, or take sampler 'ode'"
    yield "sampling", ["rtol", "atol"], why
    if sampling.grid != "tuned":
        yield (
            "sampling",
            ["times", "weights"],
            f"are of grid 'tuned', and sampling.grid is {sampling.grid!r}; set that too",
        )
    for key in {"rho", "power"} - {sampling.grid}:
        yield "sampling", [key], f"is of grid {key!r}, and sampling.grid is {sampling.grid!r}; set that too"


def _network(model: Section) -> Iterator[Rule]:
    """Of the names that several networks share; what `models.build` refuses is not repeated."""
    for key, switch, needed in (
        ("fourier_scale", "embedding_type", "fourier"),
        ("fir_kernel", "fir", True),
        ("progressive_combine", "progressive_input", "input_skip"),
        ("resamp_with_conv", "resblock_type", "ddpm"),
    ):
        value = model.settings.get(switch, needed)  # a network without the switch reads it always
        if key in model.settings and value != needed:
            why = f"is of model.{switch}={needed!r}, and it is {value!r}; set that too, or leave it out"
            yield "model", [key], why
    if not model.settings.get("conditional", True):
        keys = {"embedding_scale", "fourier_scale", "fourier_log"}
        if not model.settings.get("scale_by_sigma"):  # which divides by the time, in the embedding's units
            keys.add("embedding_type")
            why = "is told to a network with model.conditional, and that is False; leave it out"
            yield "objective", ["time_conditioning"], why
        if not model.settings.get("num_classes"):  # whose embedding is as wide
            keys.add("embedding_dim")
        why = "is of the embedding of the time, and model.conditional is False; leave it out"
        yield "model", sorted(keys & set(model.settings)), why


def _vae(vae: Section) -> Iterator[Rule]:
    decoder = vae.settings["decoder"]
    if decoder != "dml":
        yield "vae", ["num_mixtures"], f"is of decoder 'dml', and vae.decoder is {decoder!r}; leave it out"
    if decoder not in ("dl", "dml"):
        why = f"is of decoders 'dl' and 'dml', and vae.decoder is {decoder!r}; leave it out"
        yield "vae", ["approximate_tails"], why
    if not vae.settings["num_blocks"]:
        keys = ("preprocess_cells", "postprocess_cells")
        yield "vae", keys, "is of the blocks, and vae.num_blocks is 0; leave it out"


def _with_a_vae(latent: LatentConfig) -> Iterator[Rule]:
    if not latent.vae_steps:
        why = "is of the steps that train the VAE alone, and latent.vae_steps is 0; set that too, or leave it out"
        yield "latent", ["vae_optimizer"], why
    if not latent.train_vae:
        keys = ("vae_finetune", "q_weighting", "q_ema", "vae_spectral_weight")
        keys += ("kl_min", "kl_max", "kl_const_portion", "kl_anneal_portion", "kl_balance")
        yield "latent", keys, "is of the VAE's training beside the prior, and latent.train_vae is False; leave it out"
    yield "data", ["uniform_dequantization"], "means nothing for a VAE, whose decoder is of levels; leave it out"
    why = "means nothing for a latent prior, which predicts eps (its normal part is mixed in) of the hsm kernel"
    yield "objective", ["parameterization", "matching"], f"{why}; leave it out"
    keys = ("weighting", "anneal_power", "time_sampling", "num_levels", "reduce")
    keys += ("log_sigma_mean", "log_sigma_std", "sigma_data")
    yield "objective", keys, "means nothing for a latent prior, whose objective is latent.p_weighting; leave it out"
    yield "objective", ["label_dropout"], "means nothing for a latent prior, which knows no classes; leave it out"


def _classifier(sees_noise: bool) -> Iterator[Rule]:
    yield "data", ["uniform_dequantization"], "means nothing for a classifier, which needs no density; leave it out"
    everything = [field.name for field in dataclasses.fields(SamplingConfig)]
    yield "sampling", everything, "means nothing for a classifier, which draws no samples; leave it out"
    known = {"matching", "time_conditioning", "t_min"} if sees_noise else set()
    keys = [field.name for field in dataclasses.fields(ObjectiveConfig) if field.name not in known]
    yield "objective", keys, "means nothing for a classifier, whose loss is the cross entropy; leave it out"


def _objective(objective: ObjectiveConfig) -> Iterator[Rule]:
    if objective.parameterization in get_args(Prediction):
        keys = ("matching", "weighting", "anneal_power", "num_levels")
        yield "objective", keys, "means nothing for a denoiser, whose loss is the square error; leave it out"
    if objective.parameterization != "edm":
        yield "objective", ["sigma_data"], "is of objective.parameterization 'edm'; set that too, or leave it out"
    if objective.time_sampling != "log_normal":
        keys = ("log_sigma_mean", "log_sigma_std")
        yield "objective", keys, "is of objective.time_sampling 'log_normal'; set that too, or leave it out"
    else:
        yield "objective", ["t_min"], "means nothing where noise levels are drawn and no times; leave it out"
    if objective.weighting != "annealed":
        yield "objective", ["anneal_power"], "is of objective.weighting 'annealed'; set that too, or leave it out"
    if objective.time_sampling != "levels" and objective.time_conditioning != "level":
        yield "objective", ["num_levels"], "is of objective.time_sampling 'levels'; set that too, or leave it out"
