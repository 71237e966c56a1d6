"""The one door through which settings enter: dictionaries in, frozen dataclasses out.

A config file returns `complete({...})`: nested dictionaries, validated and filled with the defaults of
`sgmjax._schema`. The library itself only ever sees the frozen dataclasses. Every wrong key, type or value is a
`ConfigError` that names the key and the fix, raised before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sgmjax._schema import (
    MODEL,
    SDE,
    VAE,
    Config,
    DataConfig,
    LatentConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainConfig,
)
from sgmjax._unread import unread, without
from sgmjax.spec import ConfigError, Section, fields, read, to_dict

__all__ = [
    "MODEL", "SDE", "VAE", "Config", "ConfigError", "DataConfig", "LatentConfig", "ObjectiveConfig", "OptimizerConfig",
    "SamplingConfig", "TrainConfig", "check", "complete", "differences", "from_dict", "parse", "relative", "to_dict",
    "unread", "validate_for_devices",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ reading
def from_dict(mapping: Mapping[str, Any], *, refuse: Callable[[str], bool] = lambda path: True) -> Config:
    """Reads nested dictionaries (or a `ConfigDict`); settings that are absent take their defaults.

    Integers are accepted where a float is meant, lists where a tuple is. The sections `sde` and `model` are read as
    what their `name` says.

    Args:
        mapping: the settings.
        refuse: of the path of a setting that is given and that nothing reads: whether it is an error. Else it is passed
            over and takes its default.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range, by its full path (`train.steps`).

    Examples:
        >>> from sgmjax import config
        >>> settings = config.from_dict({"sde": {"name": "vp", "beta_max": 10}, "train": {"steps": 1000}})
        >>> settings.sde.beta_max, settings.train.steps
        (10.0, 1000)
        >>> config.from_dict({"sde": {"name": "vp", "gamma": 0.01}})
        Traceback (most recent call last):
        ...
        sgmjax.spec.ConfigError: sde.gamma: no such setting of vp; there are name, beta_min, beta_max, sigma2_0
    """
    config = parse(mapping)
    return check(without(config, [path for path in unread(config) if not refuse(path)]))


def parse(mapping: Mapping[str, Any]) -> Config:
    """`from_dict` without `check`.

    Examples:
        >>> from sgmjax import config
        >>> settings = config.parse({"train": {"batch_size": 10, "grad_accumulation": 3}})  # `check` refuses it
        >>> settings.train.batch_size, settings.train.grad_accumulation
        (10, 3)
    """
    return read(Config, _plain(mapping), "")


def check(config: Config) -> Config:
    """Checks that all that is set is read, and the settings that depend on one another; returns the config.

    Raises:
        ConfigError: naming the two settings and values that agree.

    Examples:
        >>> from sgmjax import config
        >>> config.check(config.parse({"train": {"batch_size": 10, "grad_accumulation": 3}}))
        Traceback (most recent call last):
        ...
        sgmjax.spec.ConfigError: train.batch_size: 10 is not divisible by train.grad_accumulation=3; use 9 or 12
    """
    for message in unread(config).values():
        raise ConfigError(message)
    if config.data.name == "npz" and config.data.path is None:
        raise ConfigError("data.path: data.name='npz' needs the file of arrays, as --config.data.path=FILE.npz")
    train, sampling = config.train, config.sampling
    if train.batch_size % train.grad_accumulation:
        raise ConfigError(
            f"train.batch_size: {train.batch_size} is not divisible by "
            f"train.grad_accumulation={train.grad_accumulation}; "
            f"use {_nearest_multiples(train.batch_size, train.grad_accumulation)}"
        )
    for key in ("steps", "log_every", "eval_every", "sample_every", "metrics_every", "checkpoint_every"):
        if (value := getattr(train, key)) % train.steps_per_dispatch:
            raise ConfigError(
                f"train.{key}: {value} is not a multiple of train.steps_per_dispatch={train.steps_per_dispatch}; "
                f"use {_nearest_multiples(value, train.steps_per_dispatch)}"
            )
    if sampling.steps <= int(sampling.denoise is True):
        raise ConfigError("sampling.steps: 1 leaves nothing beside the denoising step; use 2 or more, or denoise=False")
    latent = config.latent
    if latent.vae_steps > train.steps:
        raise ConfigError(
            f"latent.vae_steps: {latent.vae_steps} is above train.steps={train.steps}, which counts both stages; "
            "raise train.steps"
        )
    if latent.vae_steps % train.steps_per_dispatch:
        raise ConfigError(
            f"latent.vae_steps: {latent.vae_steps} is not a multiple of train.steps_per_dispatch="
            f"{train.steps_per_dispatch}; use {_nearest_multiples(latent.vae_steps, train.steps_per_dispatch)}"
        )
    if config.objective.t_min == 0 and config.vae is None:
        raise ConfigError("objective.t_min: 0 is for a latent prior; use 1e-5")
    for path, settings, low, high in _ranges(config):
        least, most = getattr(settings, low, None), getattr(settings, high, None)
        if least is not None and most is not None and least > most:
            raise ConfigError(f"{path}.{low}: {least} is above {path}.{high}={most}; use at most {most}")
    return config


def _ranges(config: Config) -> Iterator[tuple[str, Any, str, str]]:
    """(path, settings, low, high): two settings, of which the first is not above the second."""
    latent = config.latent
    yield "sde", config.sde, "beta_min", "beta_max"
    yield "sde", config.sde, "sigma_min", "sigma_max"
    yield "vae", config.vae, "kl_min", "kl_max"
    yield "latent", latent, "kl_min", "kl_max"
    yield "optimizer", config.optimizer, "learning_rate_min", "learning_rate"
    yield "latent.vae_optimizer", latent.vae_optimizer, "learning_rate_min", "learning_rate"
    yield "latent.vae_finetune", latent.vae_finetune, "learning_rate_min", "learning_rate"


def validate_for_devices(config: Config, device_count: int, process_count: int = 1) -> None:
    """Checks that the batch and the parameters can be split over this machine.

    Raises:
        ConfigError: naming the nearest batch sizes (or values of `train.fsdp`) that work.

    Examples:
        >>> from sgmjax import config
        >>> config.validate_for_devices(config.from_dict({"train": {"batch_size": 100}}), 8)
        Traceback (most recent call last):
        ...
        sgmjax.spec.ConfigError: train.batch_size: 100 cannot be split over 8 devices; use 96 or 104
    """
    train = config.train
    if device_count % train.fsdp:
        divisors = [d for d in range(1, device_count + 1) if device_count % d == 0]
        raise ConfigError(
            f"train.fsdp: {train.fsdp} does not divide the {device_count} devices; use one of "
            + ", ".join(map(str, divisors))
        )
    unit = math.lcm(device_count, process_count) * train.grad_accumulation
    if train.batch_size % unit:
        shares = f"{device_count} devices"
        if train.grad_accumulation > 1:
            shares += f" x {train.grad_accumulation} microbatches (train.grad_accumulation)"
        raise ConfigError(
            f"train.batch_size: {train.batch_size} cannot be split over {shares}; "
            f"use {_nearest_multiples(train.batch_size, unit)}"
        )


def _nearest_multiples(value: int, unit: int) -> str:
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


def _plain(value: Any) -> Any:
    """Dictionaries without `ConfigDict`, whose placeholders resolve to their values."""
    return value.to_dict() if hasattr(value, "to_dict") else value


# ------------------------------------------------------------------------------------------------------------ writing
def complete(mapping: Mapping[str, Any] | None = None) -> Any:
    """What a config file returns: an `ml_collections.ConfigDict` with every setting present.

    So every one of them can be overridden on the command line: `--config.train.steps=5`,
    `--config.optimizer.grad_clip=None`, `--config.model.ch_mult="(1, 2)"`.

    Raises:
        ConfigError: as `from_dict`.

    Examples:
        >>> from sgmjax import config
        >>> settings = config.complete({"sde": {"name": "vp"}})  # what a file's get_config() returns
        >>> settings.sde.name, settings.sde.beta_max, settings.train.grad_accumulation
        ('vp', 20.0, 1)
    """
    import ml_collections

    def fill(section: Any) -> Any:
        out = ml_collections.ConfigDict({"name": section.name} if isinstance(section, Section) else {})
        for key, parameter in fields(section).items():
            value = getattr(section, key)
            if dataclasses.is_dataclass(value):
                value = fill(value)
            elif parameter.may_be_none:  # any literal goes in, from_dict checks it
                value = ml_collections.FieldReference(value, field_type=object)
            out[key] = value
        return out

    return fill(from_dict(mapping or {}))


def relative(file: str, base: str, changes: Mapping[str, Any]) -> Any:
    """What the config file of a run returns that is another one but for some settings.

        def get_config():
            return relative(__file__, "lsgm_cifar_fid", {"sde": {"name": "psld"}})

    Args:
        file: `__file__` of the config file.
        base: the name of the other one, which lies in the same folder; with an argument as `name:argument`.
        changes: what differs. A section with another `name` replaces the other's; so do the options of a sampler.

    Raises:
        ConfigError: no such file, or as `from_dict`.

    Examples:
        >>> import pathlib, tempfile
        >>> from sgmjax import config
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (pathlib.Path(folder) / "base.py").write_text("def get_config(): return {'train': {'steps': 1000}}")
        ...     settings = config.relative(f"{folder}/mine.py", "base", {"sde": {"name": "vp"}})
        >>> settings.train.steps, settings.sde.name
        (1000, 'vp')
    """
    name, _, argument = base.partition(":")
    path = Path(file).with_name(f"{name}.py")
    if not path.is_file():
        raise ConfigError(f"relative: there is no config {name} beside {file}")
    spec = importlib.util.spec_from_file_location(f"sgmjax_config_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = module.get_config(argument) if argument else module.get_config()
    return complete(_merged(_plain(settings), changes))


def _merged(base: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(base, Mapping) or changes.get("name", base.get("name")) != base.get("name"):
        return dict(changes)
    nested = {
        key: _merged(base.get(key), value) if isinstance(value, Mapping) and key != "options" else value
        for key, value in changes.items()
    }
    return {**base, **nested}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """The settings in which two nested dictionaries differ, as (path, old, new); tuples and lists are the same.

    Examples:
        >>> from sgmjax import config
        >>> config.differences({"train": {"steps": 5, "seed": 0}}, {"train": {"steps": 9, "seed": 0}})
        [('train.steps', 5, 9)]
    """
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        path, a, b = prefix + key, old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, path + ".")
        elif _listed(a) != _listed(b):
            found.append((path, a, b))
    return found


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
