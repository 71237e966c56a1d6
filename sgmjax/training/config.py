"""The one door through which settings enter: dictionaries in, frozen dataclasses out.

A config file returns `complete({...})`: nested dictionaries, validated and filled with the defaults of
`sgmjax.training.schema`. The library itself only ever sees the frozen dataclasses. Every wrong key, type or value is a
`ConfigError` that names the key and the fix, raised before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any

from sgmjax._inputs import InputError, user_path
from sgmjax._ranges import Range, check_range
from sgmjax.training.schema import (
    CLASSIFIERS,
    MODELS,
    PATH,
    SDES,
    CLDConfig,
    Config,
    DataConfig,
    DDPMConfig,
    LatentConfig,
    MLPClassifierConfig,
    MLPConfig,
    ModelConfig,
    NCSNConfig,
    NCSNppClassifierConfig,
    NCSNppConfig,
    NCSNv2Config,
    NVAEConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Options,
    PSLDConfig,
    RecipeConfig,
    SamplingConfig,
    SDEConfig,
    SubVPConfig,
    ThirdOrderConfig,
    TrainConfig,
    UNet1dConfig,
    VEConfig,
    VPConfig,
)

__all__ = [
    "CLASSIFIERS", "MODELS", "SDES", "CLDConfig", "Config", "ConfigError", "DataConfig", "DDPMConfig", "LatentConfig",
    "MLPClassifierConfig", "MLPConfig", "ModelConfig", "NCSNConfig", "NCSNppClassifierConfig", "NCSNppConfig",
    "NCSNv2Config", "NVAEConfig", "ObjectiveConfig", "OptimizerConfig", "PSLDConfig", "RecipeConfig", "SamplingConfig",
    "SDEConfig", "SubVPConfig", "ThirdOrderConfig", "TrainConfig", "UNet1dConfig", "VEConfig", "VPConfig", "check",
    "complete", "differences", "from_dict", "to_dict", "validate_for_devices",
]  # fmt: skip


class ConfigError(InputError):
    """A setting that cannot work. The message is one line: the key, what is wrong, and the fix."""


# ------------------------------------------------------------------------------------------------------------ reading
def from_dict(mapping: Mapping[str, Any]) -> Config:
    """Reads nested dictionaries (or a `ConfigDict`); settings that are absent take their defaults.

    Integers are accepted where a float is meant, lists where a tuple is. The sections `sde` and `model` are read as
    what their `name` says.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range, by its full path (`train.steps`).
    """
    return check(_read(Config, _plain(mapping), ""))


def check(config: Config) -> Config:
    """Checks the settings that depend on one another; returns the config.

    Raises:
        ConfigError: naming the two settings and values that agree.
    """
    _check_data(config.data)
    train, sampling = config.train, config.sampling
    if train.batch_size % train.grad_accumulation:
        raise ConfigError(
            f"train.batch_size: {train.batch_size} is not divisible by "
            f"train.grad_accumulation={train.grad_accumulation}; "
            f"use {_nearest_multiples(train.batch_size, train.grad_accumulation)}"
        )
    for key in ("steps", "log_every", "eval_every", "sample_every", "checkpoint_every"):
        if (value := getattr(train, key)) % train.steps_per_dispatch:
            raise ConfigError(
                f"train.{key}: {value} is not a multiple of train.steps_per_dispatch={train.steps_per_dispatch}; "
                f"use {_nearest_multiples(value, train.steps_per_dispatch)}"
            )
    if sampling.steps <= int(sampling.denoise is True):
        raise ConfigError("sampling.steps: 1 leaves nothing beside the denoising step; use 2 or more, or denoise=False")
    latent = config.latent
    if config.vae is None and (latent.vae_steps or latent.vae_from):
        raise ConfigError("latent: without a section vae there is no latent space; add one, or leave latent out")
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
    sde = config.sde
    for low, high in (("beta_min", "beta_max"), ("sigma_min", "sigma_max")):
        if hasattr(sde, low) and getattr(sde, low) > getattr(sde, high):
            raise ConfigError(f"sde.{low}: {getattr(sde, low)} is above sde.{high}={getattr(sde, high)}; swap them")
    return config


def _check_data(data: DataConfig) -> None:
    """That what is set for arrays, or not for them, is read: nothing is ignored."""
    if data.name != "npz":
        if data.path is not None:
            raise ConfigError(f"data.path: is read with data.name='npz', and data.name is {data.name!r}; set that too")
        return
    if data.path is None:
        raise ConfigError("data.path: data.name='npz' needs the file of arrays, as --config.data.path=FILE.npz")
    for key in ("data_dir", "split", "image_size", "in_memory", "memory_limit_gb", "num_samples"):
        if (value := getattr(data, key)) != getattr(DataConfig(), key):
            raise ConfigError(f"data.{key}: {value!r} means nothing for arrays (data.name='npz'); leave it out")
    if data.eval_split not in ("test", None):
        raise ConfigError(
            f"data.eval_split: {data.eval_split!r}, and arrays have 'test' (x_test, or else one example in twenty); "
            "use that, or None"
        )


def validate_for_devices(config: Config, device_count: int, process_count: int = 1) -> None:
    """Checks that the batch and the parameters can be split over this machine.

    Raises:
        ConfigError: naming the nearest batch sizes (or values of `train.fsdp`) that work.
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


_KINDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string", tuple: "a tuple"}


def _read(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type `hint`, or a ConfigError that names `path`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        value = _read(arguments[0], value, path)
        for condition in arguments[1:]:
            if isinstance(condition, Range):
                check_range(value, condition, path, ConfigError)
            if condition is PATH:
                value = _read_path(value, path)
        return value
    if origin in (typing.Union, types.UnionType):
        if all(dataclasses.is_dataclass(option) for option in arguments):
            return _read_section(_choose(arguments, value, path), value, path)
        if value is None and types.NoneType in arguments:
            return None
        options = [option for option in arguments if option is not types.NoneType]
        if len(options) > 1:  # True, False, or one of some words
            literal = next(option for option in options if typing.get_origin(option) is typing.Literal)
            if type(value).__name__ in ("bool", "bool_"):
                return bool(value)
            words = typing.get_args(literal)
            if value not in words:
                raise ConfigError(
                    f"{path}: expected True, False or one of {', '.join(words)}, got {value!r}{_like(value, words)}"
                )
            return value
        return _read(options[0], value, path)
    if hint is Options:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a dictionary of settings, got {_show(value)}")
        return Options(value)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{path}: expected one of {', '.join(arguments)}, got {value!r}{_like(value, arguments)}")
        return value
    if dataclasses.is_dataclass(hint):
        return _read_section(hint, value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong_type(path, tuple, value)
        return tuple(_read(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    return _read_scalar(hint, value, path)


def _read_path(value: str, path: str) -> str:
    try:
        return str(user_path(value, path))
    except InputError as error:
        raise ConfigError(str(error)) from None


def _read_scalar(hint: type, value: Any, path: str) -> Any:
    is_bool = type(value).__name__ in ("bool", "bool_")  # NumPy's too; and True is no integer here
    if hint is bool and is_bool:
        return bool(value)
    if hint is int and isinstance(value, numbers.Integral) and not is_bool:
        return operator.index(value)
    if hint is float and isinstance(value, numbers.Real) and not is_bool:
        if not math.isfinite(value):
            raise ConfigError(f"{path}: must be finite, got {value}")
        return float(value)
    if hint is str and isinstance(value, str):
        return str(value)
    raise _wrong_type(path, hint, value)


def _read_section(cls: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = to_dict(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path or 'config'}: expected a dictionary of settings, got {_show(value)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in value:
        if key not in hints:
            full = f"{path}.{key}" if path else str(key)
            owner = f" of {value['name']}" if path and "name" in value and "name" in hints else ""
            raise ConfigError(f"{full}: no such setting{owner}" + (_like(key, hints, path) or _names(hints)))
    return cls(**{key: _read(hints[key], item, f"{path}.{key}" if path else key) for key, item in value.items()})


def _choose(options: tuple[Any, ...], value: Any, path: str) -> Any:
    """The dataclass of a section such as `sde`, by its `name`; without one, the section's default."""
    if dataclasses.is_dataclass(value):
        return type(value)
    default = type(getattr(Config(), path))
    if not isinstance(value, Mapping) or "name" not in value:
        return default
    by_name = {option().name: option for option in options}
    if not isinstance(value["name"], str) or value["name"] not in by_name:
        raise ConfigError(
            f"{path}.name: no {path} called {value['name']!r}; choose one of {', '.join(by_name)}"
            + _like(value["name"], by_name)
        )
    return by_name[value["name"]]


def _like(word: Any, words: typing.Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.6)
    return f"; did you mean {prefix + '.' if prefix else ''}{close[0]}?" if close else ""


def _names(words: typing.Iterable[str]) -> str:
    return "; there are " + ", ".join(words)


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) < 60 else text[:57] + '...'} ({type(value).__name__})"


def _wrong_type(path: str, expected: type, value: Any) -> ConfigError:
    return ConfigError(f"{path}: expected {_KINDS[expected]}, got {_show(value)}")


# ------------------------------------------------------------------------------------------------------------ writing
def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionaries, all settings included; `from_dict` of it, also through JSON, gives the config back."""
    return {
        field.name: to_dict(value) if dataclasses.is_dataclass(value := getattr(config, field.name)) else value
        for field in dataclasses.fields(config)
    }


def complete(mapping: Mapping[str, Any] | None = None) -> Any:
    """What a config file returns: an `ml_collections.ConfigDict` with every setting present.

    So every one of them can be overridden on the command line: `--config.train.steps=5`,
    `--config.optimizer.grad_clip=None`, `--config.model.ch_mult="(1, 2)"`.

    Raises:
        ConfigError: as `from_dict`.
    """
    import ml_collections

    def fill(section: Any) -> Any:
        out = ml_collections.ConfigDict()
        for key, hint in typing.get_type_hints(type(section), include_extras=True).items():
            value = getattr(section, key)
            if dataclasses.is_dataclass(value):
                value = fill(value)
            elif types.NoneType in typing.get_args(hint):  # may be None: any literal goes in, from_dict checks it
                value = ml_collections.FieldReference(value, field_type=object)
            out[key] = value
        return out

    return fill(from_dict(mapping or {}))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """The settings in which two nested dictionaries differ, as (path, old, new); tuples and lists are the same."""
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
