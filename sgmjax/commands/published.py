"""A checkpoint against the configs that come with sgmjax: which has this network, and what is converted into it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax import _cli, models
from sgmjax._inputs import InputError, shown
from sgmjax.config import Config, from_dict, to_dict
from sgmjax.interop import checkpoints, edm_network, lsgm, lsgm_settings, ncsnv2, scoresde_jax
from sgmjax.interop._recognise import Recognised
from sgmjax.interop.configs import OfficialNetwork
from sgmjax.models.nvae import regularization
from sgmjax.preconditioning import Prediction
from sgmjax.sdes import noise_levels
from sgmjax.tasks import ClassifierTask, FeatureTask, Variables, build
from sgmjax.tasks.vae import LatentModel

# Side and channels of data that have them themselves.
SHAPES = {"cifar10": (32, 32, 3), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "digits": (8, 8, 1)}
CLASSES = {"cifar10": 10, "mnist": 10, "fashion_mnist": 10, "digits": 10}
# The processes that the official programs have.
PROCESSES = {
    "scoresde": ("vp", "subvp", "ve"),
    "cld": ("cld", "vp"),
    "psld": ("psld", "vp"),
    "ncsnv2": ("ve",),
    "lsgm": ("vp", "subvp", "ve", "geometric_vp"),
    "edm": (),  # a denoiser has none
}


@dataclasses.dataclass(frozen=True)
class Converted:
    """A checkpoint as a run has it.

    Attributes:
        parts: of `tasks.build.phases`.
        variables, averaged: those being trained, and the averaged ones.
        step: steps taken, of all phases of the config.
        has_average: whether the file had averages.
    """

    parts: Any
    variables: Variables
    averaged: Variables
    step: int
    has_average: bool


def use(task: Any, path: Any) -> str:
    """What a run is for, and in a line of its own the command for it. path: of the run."""
    uses = {
        ClassifierTask: ("to guide samples", f"sample --workdir=RUN --classifier={path} --labels=0"),
        FeatureTask: ("to measure samples with", f"evaluate --workdir=RUN --metrics=fd --features={path}"),
    }
    what, line = uses.get(type(task), ("for samples", f"sample --workdir={path} --num=64"))
    return f"{what}\n    python -m sgmjax.{line}"


def official_network(config: Any, task: Any, *, num_scales: int | None = None, sigmas: Any = None) -> OfficialNetwork:
    """The `OfficialNetwork` of a run: its module with the noise levels of its process.

    Args:
        config: the run's.
        task: what it learns.
        num_scales: how many noise levels score_sde's table has, where the network has one.
        sigmas: see `OfficialNetwork`.
    """
    shape, module = task.event_shape, task.network
    if num_scales is not None and hasattr(module, "num_scales"):
        known = {"num_scales": num_scales}
        if config.sde.name == "ve":
            known |= {"sigma_min": config.sde.sigma_min, "sigma_max": config.sde.sigma_max}
        module = module.clone(**known)
    return OfficialNetwork(module, (*shape[:-1], task.sde.k * shape[-1]), sigmas)


def shape_of(data: Any) -> tuple[int, ...] | None:
    """The shape of an example, where the section `data` says it."""
    if data.name in SHAPES:
        *side, channels = SHAPES[data.name]
        return (*([data.image_size] * 2 if data.image_size else side), channels)
    return None if data.image_size is None else (data.image_size, data.image_size, 3)


def check_source(found: Recognised, config: Config) -> None:
    """That a config is one for checkpoints of this kind.

    Raises:
        UsageError: naming the setting.
    """
    names, what = PROCESSES[found.source], f"{shown(found.path)} is {found.what}"
    if (config.vae is not None) != (found.source == "lsgm"):
        raise _cli.UsageError(f"--config: {'has a' if config.vae is not None else 'has no'} VAE, and {what}")
    predicts = config.objective.parameterization
    if found.source == "edm" and predicts != "edm":
        raise _cli.UsageError(f"--config: objective.parameterization is {predicts!r}, and {what}: set it to 'edm'")
    if found.source != "edm" and predicts in get_args(Prediction):
        raise _cli.UsageError(
            f"--config: objective.parameterization is {predicts!r}, which makes a denoiser, and {what}: set it to what "
            "that network predicts, 'eps', 'mixed' or 'score'"
        )
    if names and config.sde.name not in names:
        raise _cli.UsageError(f"--config: sde.name is {config.sde.name!r}, and {what}: use {' or '.join(names)}")
    if found.source == "ncsnv2" and config.objective.num_levels is None:
        raise _cli.UsageError("--config: NCSN and NCSNv2 are trained at noise levels; set sde.name 've' and num_levels")
    if (config.model.name == "ncsnpp_classifier") != (found.kind == "classifier"):
        raise _cli.UsageError(f"--config: model.name is {config.model.name!r}, and {what}")
    if found.source in ("scoresde", "cld", "psld"):
        check_told(config, found.source)


def check_told(config: Config, program: str) -> None:
    """That a network of a config is told the time, and predicts, as those of an official program: no weight says so.

    Args:
        config: of the run.
        program: "scoresde", "cld" or "psld".

    Raises:
        UsageError: naming the setting.
    """
    times, predictions = ("t",), ("eps", "mixed")
    if program == "scoresde":
        ve = config.sde.name == "ve"
        times, predictions = (("sigma", "level"), ("score",)) if ve else (("t999",), ("eps",))
    wanted = {"time_conditioning": times} if getattr(config.model, "conditional", True) else {}
    wanted |= {} if models.classifies(config.model) else {"parameterization": predictions}
    for key, known in wanted.items():
        if (value := getattr(config.objective, key)) not in known:
            raise _cli.UsageError(
                f"objective.{key}: {value!r} is not what the networks of {program} have with sde.name "
                f"{config.sde.name!r}: that is {' or '.join(map(repr, known))}"
            )


def convert(found: Recognised, config: Config, shape: tuple[int, ...], num_classes: int | None) -> Converted:
    """The checkpoint as variables of the run that a config describes; every weight has found its place.

    Raises:
        InputError: the first weight or setting that does not fit.
    """
    if num_classes is None and found.kind == "classifier":
        num_classes = CLASSES.get(config.data.name)
    if num_classes is None and found.source == "edm":
        num_classes = found.content.init_kwargs.get("label_dim") or None
    parts = build.phases(config, shape, num_classes)
    task = parts[-1][0]
    if found.source == "edm":
        return _edm(found, config, parts)
    if found.source == "lsgm":
        return _lsgm(found, config, parts)
    if found.source == "ncsnv2":
        sde, count = config.sde, config.objective.num_levels
        assert count is not None  # see `check_source`
        sigmas = noise_levels.LEVELS[sde.sigma_dist](sde.sigma_max, sde.sigma_min, count).astype(np.float32)
        read = ncsnv2.ncsnv2_of(found.content, found.path, official_network(config, task, sigmas=sigmas))
    elif found.source == "psld":
        read = checkpoints.psld_of(found.content, found.path, official_network(config, task))
    elif found.kind == "jax":
        read = scoresde_jax.scoresde_jax_of(found.content, found.path, official_network(config, task))
    else:
        network = official_network(config, task, num_scales=1)
        read = checkpoints.scoresde_of(found.content, found.path, _with_table(network, config, found))
    averaged = read.ema_params if read.ema_params is not None else read.params
    raw, average = Variables(read.params, {}), Variables(averaged, {})
    return Converted(parts, raw, average, read.step, read.ema_params is not None)


def _with_table(network: OfficialNetwork, config: Config, found: Recognised) -> OfficialNetwork:
    """The network with as many noise levels as the file's table has.

    Between sigma_min and sigma_max of VE, to be compared; the official programs of other processes have a table too,
    which nothing reads and no config of ours says.
    """
    table = next((v for k, v in found.content["model"].items() if str(k).rpartition(".")[2] == "sigmas"), None)
    if getattr(table, "ndim", 0) != 1 or not len(table) or not hasattr(network.module, "num_scales"):  # type: ignore[arg-type]
        return network
    levels: dict[str, Any] = {"num_scales": len(table)}  # type: ignore[arg-type]
    if config.sde.name != "ve":
        levels |= {"sigma_min": float(table[-1]), "sigma_max": float(table[0])}  # type: ignore[index]
    return dataclasses.replace(network, module=network.module.clone(**levels))


def _edm(found: Recognised, config: Config, parts: Any) -> Converted:
    """EDM's snapshot, which has the averages alone; by its name, network-snapshot-010000.pkl, after so many kimg."""
    told, here = found.content.init_kwargs.get("sigma_data", 0.5), config.objective.sigma_data
    if told != here:
        raise InputError(f"objective.sigma_data: {here}, and {shown(found.path)} was trained with {told}; set that")
    variables = Variables(edm_network.edm_params(found.content, parts[-1][0].network), {})
    number = re.fullmatch(r"network-snapshot-(\d+)", found.path.stem)
    images = int(number[1]) * 1000 if number else config.train.steps * config.train.batch_size
    return Converted(parts, variables, variables, min(images // config.train.batch_size, config.train.steps), True)


def _lsgm(found: Recognised, config: Config, parts: Any) -> Converted:
    """LSGM's checkpoint; the prior of one of the VAE alone is untrained."""
    task, path, joint = parts[-1][0], found.path, found.kind == "joint"
    assert isinstance(task, LatentModel)
    check_settings(found, config)
    prior = OfficialNetwork(task.prior, (*task.latent_shape[:-1], task.sde.k * task.latent_shape[-1]))
    read = lsgm.lsgm_of(found.content, path, task.vae, prior)
    vae, first = read.vae_variables, config.latent.vae_steps
    fresh_key, vae_key, prior_key = jax.random.split(jax.random.key(config.seed), 3)
    if not joint:
        if read.step > first:
            raise InputError(
                f"latent.vae_steps: {first}, and the VAE in {shown(path)} has taken {read.step} steps; give "
                f"--config.latent.vae_steps={read.step} or more, and train.steps above it"
            )
        fresh = jax.jit(task.init)(fresh_key)
        params = {**fresh.params, "vae": vae["params"]}
        state = {**fresh.state, "batch_stats": vae["batch_stats"]}
        state["spectral"] = regularization.init_spectral(vae_key, _on_device(vae["params"]))
        variables = Variables(params, state)
        return Converted(parts, variables, variables, read.step, False)
    assert read.prior_params is not None
    if "mixing_logit" not in read.prior_params:
        raise InputError(f"{shown(path)}: its prior was trained without the normal part ('mixing_logit'), ours has it")
    network = read.prior_params["network"]
    state = {
        "batch_stats": vae["batch_stats"],
        "spectral": regularization.init_spectral(vae_key, _on_device(vae["params"])),
        "prior_spectral": regularization.init_spectral(prior_key, _on_device(network), select=task._select_prior),
        "active": np.ones(task.latent_shape[-1:], np.float32),
    }
    averaged = read.prior_ema_params if read.prior_ema_params is not None else read.prior_params
    raw, average = (Variables({"vae": vae["params"], "prior": p}, state) for p in (read.prior_params, averaged))
    return Converted(parts, raw, average, first + read.step, read.prior_ema_params is not None)


def _on_device(params: Any) -> Any:
    return jax.tree.map(jnp.asarray, params)


def check_settings(found: Recognised, config: Config) -> None:
    """That the settings in a checkpoint of LSGM are those of a config.

    Raises:
        InputError: the first that is another, with both values.
    """
    args = lsgm.settings_of(found.content, found.path)
    said = lsgm_settings.said(args, joint=found.kind == "joint")
    wrong = lsgm_settings.contradictions(to_dict(config), said)
    if not wrong:
        return
    path, one, here = wrong[0]
    more = f"; {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
    raise InputError(
        f"{path}: {here!r} in the config, and {shown(found.path)} was trained with {one.value!r} ({one.official}); "
        f"take the config of this model, or --config.{path}={one.value}{more}"
    )


# ------------------------------------------------------------------------------------------------- looking for a config
def settings_by_name() -> Iterator[tuple[str, Config]]:
    """The configs that come with sgmjax, by name; those that cannot be read here are passed over."""
    for folder in _cli.config_folders():
        for file in sorted(folder.glob("*.py")):
            if file.stem.startswith("_"):
                continue
            try:
                yield file.stem, from_dict(_cli.load_config(file))
            except InputError:
                continue


def fitting(
    found: Recognised, shape: tuple[int, ...] | None, num_classes: int | None
) -> tuple[dict[str, tuple[Config, Converted]], list[str]]:
    """The configs whose network a checkpoint has, and the names of those of its kind.

    Args:
        found: the checkpoint.
        shape: of an example, where it was given.
        num_classes: of the data, where it was given.
    """
    fit, kin = {}, []
    for name, config in settings_by_name():
        here = shape or shape_of(config.data)
        try:
            check_source(found, config)
        except InputError:
            continue
        kin.append(name)
        if here is None:
            continue
        try:
            fit[name] = (config, convert(found, config, here, num_classes))
        except InputError:
            continue
    return fit, kin
