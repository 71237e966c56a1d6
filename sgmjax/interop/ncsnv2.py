"""NCSN and NCSNv2 of ermongroup/ncsnv2: configs, weights and checkpoints.

The official networks take the index of a noise level, descending, and keep the table; NCSNv2 here takes the level
itself: give it `network.sigmas[labels]`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sgmjax._inputs import InputError, shown
from sgmjax.interop import torch_file
from sgmjax.interop.checkpoints import OfficialCheckpoint
from sgmjax.interop.configs import OfficialNetwork, _get, _number, _word
from sgmjax.interop.weights import arrays_of, finish, leaf, place, record_calls
from sgmjax.models import NCSN, NCSNv2
from sgmjax.models.ncsnv2 import check_image_size
from sgmjax.sdes.noise_levels import LEVELS

# Official class -> our module and variant. The runner chooses the class by the data set.
_CLASSES: dict[str, tuple[type[NCSN] | type[NCSNv2], str]] = {
    "NCSN": (NCSN, "standard"),
    "NCSNdeeper": (NCSN, "deeper"),
    "NCSNv2": (NCSNv2, "standard"),
    "NCSNv2Deeper": (NCSNv2, "deeper"),
    "NCSNv2Deepest": (NCSNv2, "deepest"),
}
_BY_DATASET = {"CIFAR10": "NCSNv2", "CELEBA": "NCSNv2", "LSUN": "NCSNv2Deeper", "FFHQ": "NCSNv2Deepest"}

# What the official code appends to `res` for our stages from the first up, and to `refine` from the last stage down.
_STAGES = {
    "standard": ("1", "2", "3", "4"),
    "deeper": ("1", "2", "3", "4", "5"),
    "deepest": ("1", "2", "3", "31", "4", "5"),
}
_REFINING = _STAGES | {"deepest": ("1", "2", "31", "3", "4", "5")}


def noise_levels(config: Mapping[str, Any]) -> np.ndarray:
    """The noise levels of an official config, largest first, (L,) float32 as the official table.

    Raises:
      ValueError: for a missing key or an unknown distribution.
    """
    model = _get(config, "model", "")
    first, last = _number(model, "sigma_begin", "model.", float), _number(model, "sigma_end", "model.", float)
    count, kind = _number(model, "num_classes", "model.", int), _get(model, "sigma_dist", "model.")
    if kind in LEVELS:
        return LEVELS[kind](first, last, count).astype(np.float32)
    raise InputError(f"model.sigma_dist: '{kind}' is unknown; there are geometric and uniform")


def from_ncsnv2_config(config: Mapping[str, Any], *, network: str | None = None) -> OfficialNetwork:
    """A config of ermongroup/ncsnv2: sections `model` and `data`.

    Args:
      config: the official config, as a mapping.
      network: the official class: NCSN, NCSNdeeper, NCSNv2, NCSNv2Deeper or NCSNv2Deepest. None: what the config names
        under `cls`, else what the official program takes for `data.dataset`, which is never the first version.

    Returns:
      The network, whose `sigmas` are the official table of noise levels.

    Raises:
      ValueError: for a missing key, an unknown class, a norm other than InstanceNorm++, spectral norms, or an image
        size that the network cannot have.

    Examples:
      >>> model = dict(ngf=8, normalization="InstanceNorm++", nonlinearity="elu", num_classes=3)
      >>> model |= dict(sigma_dist="geometric", sigma_begin=1.0, sigma_end=0.01)
      >>> data = dict(dataset="CIFAR10", image_size=32, channels=3)
      >>> network = interop.from_ncsnv2_config({"model": model, "data": data})
      >>> type(network.module).__name__, np.round(network.sigmas.astype(float), 4).tolist()
      ('NCSNv2', [1.0, 0.1, 0.01])
    """
    model, data = _get(config, "model", ""), _get(config, "data", "")
    if network is None:
        network = config.get("cls") or _BY_DATASET.get(data.get("dataset", ""))
    if network not in _CLASSES:
        raise InputError(f"no conversion for the official network {network!r}: set network to {', '.join(_CLASSES)}")
    norm = _get(model, "normalization", "model.")
    if norm != "InstanceNorm++":
        raise InputError(f"model.normalization: no conversion for '{norm}'; there is one for InstanceNorm++")
    cls, variant = _CLASSES[network]
    if cls is NCSN and model.get("spec_norm"):
        raise InputError("model.spec_norm: no conversion for spectral norms")
    channels, side = _number(data, "channels", "data.", int), _number(data, "image_size", "data.", int)
    try:
        check_image_size(variant, side)
    except ValueError as error:
        raise InputError(f"data.image_size: {error}") from None
    sigmas = noise_levels(config)
    fields: dict[str, Any] = {
        "out_channels": channels,
        "variant": variant,
        "ngf": _number(model, "ngf", "model.", int),
        "nonlinearity": _word(model, "nonlinearity", "model."),
        "centered": bool(data.get("rescaled", False) or data.get("logit_transform", False)),
    }
    if cls is NCSN:
        fields["num_levels"] = len(sigmas)
    return OfficialNetwork(cls(**fields), (side, side, channels), sigmas)


def _path(key: str, variant: str) -> tuple[tuple[str, ...], str] | None:
    """Path of our layer for an official key, and what kind of parameter it is; None if we have no such layer."""
    layer, _, kind = key.rpartition(".")
    if layer in ("begin_conv", "end_conv", "normalizer"):
        return ({"begin_conv": "conv_in", "end_conv": "conv_out"}.get(layer, "out_norm"),), kind
    if layer == "normalizer.embed":
        return ("out_norm",), kind
    stages, refining = _STAGES[variant], _REFINING[variant]
    if found := re.fullmatch(r"res(\d+)\.([01])\.(conv[12]|shortcut|normalize[12])((?:\.\w+)*)\.\w+", key):
        suffix, block, name, rest = found.groups()
        if suffix in stages and rest in ("", ".conv", ".conv.1", ".embed"):
            ours = {"conv": "conv_", "normalize": "norm_"}.get(name[:-1], "")
            stage = stages.index(suffix) + 1
            return (f"stage_{stage}_block_{int(block) + 1}", ours + name[-1] if ours else name), kind
    if found := re.fullmatch(r"refine(\d+)\.(.*?)(?:\.embed)?\.\w+", key):
        suffix, rest = found.groups()
        inner = _inside_refine(rest)
        if suffix in refining and inner is not None:
            return (f"refine_{len(refining) - refining.index(suffix)}", *inner), kind
    return None


def _inside_refine(name: str) -> tuple[str, str] | None:
    """Our two names for an official layer of a refining block, such as `msf.convs.0` or `adapt_convs.1.2_1_conv`."""
    if found := re.fullmatch(r"(?:adapt_convs\.(\d+)|output_convs)\.(\d)_(\d)_(conv|norm)", name):
        branch, block, stage, kind = found.groups()
        return ("out" if branch is None else f"adapt_{int(branch) + 1}"), f"{kind}_{block}_{stage}"
    if found := re.fullmatch(r"(msf|crp)\.(conv|norm)s\.(\d+)", name):
        part, kind, index = found.groups()
        return {"msf": "fuse", "crp": "pool"}[part], f"{kind}_{int(index) + 1}"
    return None


def convert(network: OfficialNetwork, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Our parameters from an official state dict; `convert_weights` calls this for these networks.

    Args:
      network: from `from_ncsnv2_config`.
      state_dict: official keys, with or without a `module.` prefix, to arrays.

    Raises:
      ValueError: naming the key, for a key that the network does not use, a parameter that the state dict lacks, a
        shape that does not fit, or noise levels that are not the config's.
    """
    arrays = arrays_of(state_dict)
    sigmas = arrays.pop("sigmas", None)
    if sigmas is not None:
        _check_levels(sigmas, network.sigmas)
    paths = {}
    for key in arrays:
        paths[key] = _path(key, network.module.variant)  # type: ignore[attr-defined]
        if paths[key] is None:
            raise InputError(f"state dict key '{key}' is not used by this network")
    _, shapes = record_calls(network)
    params: dict[tuple[str, ...], np.ndarray] = {}
    for key, value in arrays.items():
        path, kind = paths[key]
        if kind in ("alpha", "gamma", "beta"):
            path = (*path, kind)
        elif ".embed." in f".{key}":
            path = (*path, "levels")  # columns gamma, alpha, beta, as ours
        else:
            path, value = leaf(key, value, path)
        place(params, shapes, key, path, value)
    return finish(params, shapes)


def _check_levels(value: np.ndarray, expected: np.ndarray | None) -> None:
    if expected is None or value.shape != expected.shape or not np.allclose(value, expected, rtol=1e-5):
        raise InputError(
            "state dict key 'sigmas' differs from the config's sigma_begin, sigma_end, num_classes and sigma_dist"
        )


def read_ncsnv2(path: str | os.PathLike[str], network: OfficialNetwork) -> OfficialCheckpoint:
    """A `.pth` of ncsnv2: the list [model, optimiser, epoch, step, average], the last where `model.ema` was on.

    The average holds the trained parameters only, without DataParallel's prefix.

    Args:
      path: the file.
      network: from `from_ncsnv2_config`.

    Raises:
      InputError: as `read_scoresde`.
    """
    return ncsnv2_of(torch_file.load(path), path, network)


def ncsnv2_of(states: Any, path: Any, network: OfficialNetwork) -> OfficialCheckpoint:
    """`read_ncsnv2` of what a file holds; the path is for messages."""
    if not isinstance(states, list | tuple) or len(states) not in (4, 5):
        raise InputError(
            f"{shown(path)} is no checkpoint of ncsnv2, which is a list [model, optimizer, epoch, step, ema]"
        )
    model = arrays_of(states[0], f"{shown(path)}: the model")
    averaged = arrays_of(states[4], f"{shown(path)}: the average") if len(states) == 5 else None
    return OfficialCheckpoint(
        params=convert(network, model),
        ema_params=None if averaged is None else convert(network, averaged),
        step=torch_file.step_of(states[3], path, "step"),
    )
