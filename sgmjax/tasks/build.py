"""From a configuration to what is learnt: the process, the network, the task.

The only place where configs meet the library; everything it returns is a function of arrays.
"""

from __future__ import annotations

from typing import Any, get_args

import jax.numpy as jnp

from sgmjax import models, objectives, sdes
from sgmjax._inputs import InputError
from sgmjax.config import Config, ConfigError, ObjectiveConfig
from sgmjax.model import DenoiserModel, NetworkModel, ScoreModel
from sgmjax.preconditioning import Prediction
from sgmjax.samplers import plan, registry
from sgmjax.spec import Section
from sgmjax.tasks import build_latent
from sgmjax.tasks.classifier import ClassifierTask
from sgmjax.tasks.features import FeatureTask
from sgmjax.tasks.score import ScoreTask


def process(section: Section) -> sdes.SDE:
    """The forward process of an `sde` section.

    Raises:
        ConfigError: settings that make no process (a recipe that is not one, gamma = nu, ...).
    """
    try:
        return section.build()
    except InputError as error:
        raise ConfigError(f"sde: {error}") from None


def task(config: Config, data_shape: tuple[int, ...], num_classes: int | None = None, **known: Any) -> Any:
    """What a run has learnt at its end: the task of the last of its `phases`, whose arguments these are."""
    return phases(config, data_shape, num_classes, **known)[-1][0]


def phases(
    config: Config,
    data_shape: tuple[int, ...],
    num_classes: int | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    discrete: bool | None = None,
    resizable: bool = True,
) -> list[tuple[Any, int]]:
    """What a run learns, one after the other, and over how many steps each.

    A `ScoreTask`, or a `ClassifierTask` or `FeatureTask` where the model is one; with a VAE a `VAETask`, a
    `LatentTask`, or both.

    Args:
        config: the settings.
        data_shape: shape of one example, as of `Task.event_shape`.
        num_classes: classes of the data, if it has labels.
        class_names: theirs, if they are known.
        discrete: whether the data are uint8; None: as images mostly are, and other data not.
        resizable: whether data.image_size is a setting of these data, for messages.

    Raises:
        ConfigError: settings that cannot work together; one line that names the key and the fix.
    """
    sde = process(config.sde)
    _check(config, sde, num_classes)
    resize = "set data.image_size" if resizable and len(data_shape) == 3 else "give data of another size"
    if config.vae is not None:
        return build_latent.phases(config, sde, data_shape, resize)
    discrete = len(data_shape) == 3 if discrete is None else discrete
    if config.data.uniform_dequantization and not discrete:
        raise ConfigError(
            "data.uniform_dequantization: is of 8-bit data; the data are floats, whose density needs none"
        )
    channels = data_shape[-1]
    classifies, denoises = models.classifies(config.model), _denoises(config.objective)
    try:
        network = models.build(
            config.model,
            in_channels=(1 if denoises or not models.sees_noise(config.model) else sde.k) * channels,
            out_channels=(num_classes or 0) if classifies else (1 if denoises else sde.num_noised) * channels,
            image_size=tuple(data_shape[:-1]),
            resize=resize,
            centered=config.data.centered,
            dtype=jnp.dtype(config.train.compute_dtype),
        )
    except InputError as error:
        raise ConfigError(str(error)) from None
    objective = config.objective
    common: dict[str, Any] = {
        "event_shape": tuple(data_shape),
        "discrete": discrete,
        "centered": config.data.centered,
    }
    if not models.sees_noise(config.model):
        assert num_classes is not None
        learnt = FeatureTask(network=network, num_classes=num_classes, class_names=class_names, **common)
        return [(learnt, config.train.steps)]
    network_time: dict[str, Any] = {
        "time_conditioning": objective.time_conditioning, "num_levels": objective.num_levels
    }  # fmt: skip
    if classifies:
        assert num_classes is not None
        classifier = ClassifierTask(
            sde=sde, network=network, time_law=_time_law(objective, sde), num_classes=num_classes,
            class_names=class_names,
            matching=objective.matching, **network_time, **common,
        )  # fmt: skip
        return [(classifier, config.train.steps)]
    model: NetworkModel
    output: dict[str, Any] = {"parameterization": objective.parameterization, "reduce": objective.reduce}
    if denoises:
        if objective.time_conditioning == "log_sigma" and models.takes_log(network):
            raise ConfigError(
                f"objective.time_conditioning: {config.model.name!r} takes the logarithm of its time itself, and that "
                "of 'log_sigma' is no number where sigma < 1; use 'sigma'"
            )
        output["time_conditioning"] = objective.time_conditioning
        model = DenoiserModel(
            sde, network, sigma_data=objective.sigma_data, sigma_law=_sigma_law(objective, sde), **output
        )  # fmt: skip
    else:
        model = ScoreModel(
            sde, network, matching=objective.matching, weighting=objective.weighting,
            anneal_power=objective.anneal_power, time_law=_time_law(objective, sde), **output, **network_time,
        )  # fmt: skip
    conditional = getattr(config.model, "num_classes", None)
    learnt = ScoreTask(
        model=model, num_classes=conditional, class_names=None if conditional is None else class_names,
        label_dropout=objective.label_dropout, dequantize=config.data.uniform_dequantization, **common,
    )  # fmt: skip
    return [(learnt, config.train.steps)]


def _denoises(objective: ObjectiveConfig) -> bool:
    return objective.parameterization in get_args(Prediction)


def _sigma_law(objective: ObjectiveConfig, sde: sdes.SDE) -> objectives.SigmaLaw:
    if objective.time_sampling == "log_normal":
        return objectives.log_normal(objective.log_sigma_mean, objective.log_sigma_std)
    return objectives.of_process(sde, objectives.uniform(objective.t_min))


def _time_law(objective: ObjectiveConfig, sde: sdes.SDE) -> Any:
    if objective.time_sampling == "uniform":
        return objectives.uniform(objective.t_min)
    if objective.time_sampling == "levels":
        assert objective.num_levels is not None
        return objectives.levels(objective.num_levels)
    return objectives.importance(
        sde, weighting=objective.weighting, matching=objective.matching, t_min=objective.t_min,
        anneal_power=objective.anneal_power,
    )  # fmt: skip


def _check(config: Config, sde: sdes.SDE, num_classes: int | None) -> None:
    """What concerns more than one section."""
    sampling, objective = config.sampling, config.objective
    try:
        plan.check(sampling, sde)
    except InputError as error:
        raise ConfigError(str(error)) from None
    if sde.frame is not None and (objective.parameterization == "mixed" or objective.weighting == "reweightedv1"):
        raise ConfigError(
            "objective: mixed scores and reweightedv1 need the noised variables to come last in the process; "
            "use parameterization 'eps' and weighting 'simple' or 'likelihood'"
        )
    _check_denoiser(config)
    if objective.time_conditioning == "sigma" and config.sde.name != "ve" and not _denoises(objective):
        raise ConfigError("objective.time_conditioning: 'sigma' is for sde.name 've'; use 't' or 't999'")
    if getattr(config.model, "scale_by_sigma", False) and objective.time_conditioning != "sigma":
        fix = "set objective.time_conditioning 'sigma'" if config.sde.name == "ve" else "set it to False"
        raise ConfigError(f"model.scale_by_sigma: divides by sigma, as the time that a VE network is told; {fix}")
    if getattr(config.model, "scale_by_sigma", False) and getattr(config.model, "embedding_type", "") == "positional":
        raise ConfigError(
            "model.scale_by_sigma: with a positional embedding the network takes an index into discrete noise levels, "
            "and training is in continuous time; use embedding_type 'fourier'"
        )
    _check_levels(config, sde)
    wanted = getattr(config.model, "num_classes", None)
    if wanted is not None and wanted != num_classes:
        have = "no labels" if num_classes is None else f"{num_classes} classes"
        raise ConfigError(f"model.num_classes: {wanted}, but the data have {have}; set it to {num_classes}")
    if objective.label_dropout and wanted is None:
        raise ConfigError("objective.label_dropout: the network knows no classes; set model.num_classes, or leave it 0")
    if models.classifies(config.model) and num_classes is None:
        raise ConfigError("model.name: a classifier needs data with labels; choose data that have classes")


def _check_denoiser(config: Config) -> None:
    """What belongs to a denoiser, and what to a network of one process."""
    objective, predictions = config.objective, ", ".join(map(repr, get_args(Prediction)))
    if not _denoises(objective):
        for key, value in (("time_conditioning", "log_sigma"), ("time_sampling", "log_normal")):
            if getattr(objective, key) == value:
                raise ConfigError(
                    f"objective.{key}: {value!r} is of a denoiser; set parameterization to one of {predictions}"
                )
        return
    if objective.time_conditioning == "level":
        raise ConfigError(
            "objective.time_conditioning: a denoiser is told sigma; use 'log_sigma', 't', 't999', 'sigma'"
        )
    if objective.time_sampling not in ("uniform", "log_normal"):
        raise ConfigError(
            f"objective.time_sampling: {objective.time_sampling!r} is of one process; for a denoiser use 'log_normal' "
            "or 'uniform'"
        )
    if getattr(config.model, "scale_by_sigma", False):
        raise ConfigError("model.scale_by_sigma: a denoiser is scaled by its parameterization; set it to False")


def _check_levels(config: Config, sde: sdes.SDE) -> None:
    """The settings of NCSN and NCSNv2: discrete noise levels, and networks that are told which."""
    objective, sampling, model = config.objective, config.sampling, config.model
    levels = objective.num_levels
    if objective.weighting == "annealed" and sde.k > 1:
        raise ConfigError("objective.weighting: 'annealed' needs one noise level, so sde.name vp, subvp or ve")
    if levels is not None and levels < 2:
        raise ConfigError(f"objective.num_levels: {levels}, but annealing needs at least two noise levels")
    if objective.time_sampling == "levels":
        if config.sde.name != "ve":
            raise ConfigError("objective.time_sampling: 'levels' are those of sde.name 've'; use 'uniform'")
        if levels is None:
            raise ConfigError(
                "objective.num_levels: time_sampling 'levels' needs their number; `python -m sgmjax.noise_levels` "
                "recommends one"
            )
    if objective.time_conditioning == "level" and objective.time_sampling != "levels":
        raise ConfigError("objective.time_conditioning: 'level' is for discrete levels; set time_sampling 'levels'")
    if model.name == "ncsn" and (objective.time_conditioning != "level" or model.num_levels != levels):
        raise ConfigError(
            "model.name: 'ncsn' has parameters for each noise level: set objective.time_conditioning 'level' and "
            f"objective.num_levels to model.num_levels={model.num_levels}, not {levels}"
        )
    scores = model.name == "ncsn" or (model.name == "ncsnv2" and model.scale_by_sigma)
    if scores and objective.parameterization != "score":
        raise ConfigError(f"objective.parameterization: the output of {model.name!r} is the score; use 'score'")
    if objective.time_conditioning == "level" and sampling.sampler == "annealed_langevin":
        assert levels is not None
        each = registry.evaluations_per_step(sampling.sampler, sampling.options)
        if sampling.grid != "levels" or (sampling.steps - bool(sampling.denoise)) // each != levels:
            raise ConfigError(
                f"sampling.steps: the network knows {levels} noise levels, so with {each} steps at each use "
                f"{levels * each + bool(sampling.denoise)} and grid 'levels'"
            )
