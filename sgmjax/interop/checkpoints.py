"""Checkpoints of the official PyTorch repositories: raw and averaged parameters.

Nothing that is pickled in a file is run (`sgmjax.interop.torch_file`). Reading needs PyTorch, the extra `torch`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from sgmjax._inputs import InputError, shown
from sgmjax.interop import torch_file
from sgmjax.interop.configs import OfficialNetwork
from sgmjax.interop.torch_file import entry
from sgmjax.interop.weights import arrays_of, as_array, convert_weights, trained_keys
from sgmjax.models import NCSNppClassifier


@dataclasses.dataclass(frozen=True)
class OfficialCheckpoint:
    """What an official checkpoint says about the network.

    Attributes:
      params: the parameters being trained, nested float32 numpy arrays for `module.apply({"params": params}, ...)`.
      ema_params: their moving average, or None where the repository keeps none (PSLD's classifier).
      step: optimiser steps taken.
    """

    params: dict[str, Any]
    ema_params: dict[str, Any] | None
    step: int


def read_scoresde(path: str | os.PathLike[str], network: OfficialNetwork) -> OfficialCheckpoint:
    """A `.pth` of score_sde_pytorch: `model`, `ema` (a list in the order of the trained parameters), `step`.

    Args:
      path: the file.
      network: from `from_scoresde_config`.

    Raises:
      InputError: if PyTorch is missing, the file is something else, or a weight does not fit or is no finite real
        number, naming it.
    """
    return scoresde_of(torch_file.load(path), path, network)


def scoresde_of(checkpoint: Any, path: Any, network: OfficialNetwork) -> OfficialCheckpoint:
    """`read_scoresde` of what a file holds; the path is for messages."""
    model = arrays_of(entry(checkpoint, "model", path), f"{shown(path)}: 'model'")
    shadow = entry(entry(checkpoint, "ema", path), "shadow_params", path, list)
    params = convert_weights(network, model)  # first, for its errors name the weight
    keys = trained_keys(network, model)
    if len(keys) != len(shadow):
        raise InputError(f"{shown(path)}: 'ema' has {len(shadow)} arrays and the model {len(keys)} parameters")
    averaged = model | {
        key: as_array(value, f"{shown(path)}: 'ema': '{key}'") for key, value in zip(keys, shadow, strict=True)
    }
    return OfficialCheckpoint(
        params=params,
        ema_params=convert_weights(network, averaged),
        step=torch_file.step_of(entry(checkpoint, "step", path), path, "step"),
    )


def read_cld(path: str | os.PathLike[str], network: OfficialNetwork) -> OfficialCheckpoint:
    """A `.pth` of CLD-SGM, which has score_sde's layout; `network` from `from_cld_config`. See `read_scoresde`."""
    return read_scoresde(path, network)


def read_psld(path: str | os.PathLike[str], network: OfficialNetwork) -> OfficialCheckpoint:
    """A Lightning `.ckpt` of PSLD: `state_dict` with `score_fn.` and `ema_score_fn.`, or `clf_fn.` for the classifier.

    Args:
      path: the file.
      network: from `from_psld_config`.

    Raises:
      InputError: as `read_scoresde`.
    """
    return psld_of(torch_file.load(path), path, network)


def psld_of(checkpoint: Any, path: Any, network: OfficialNetwork) -> OfficialCheckpoint:
    """`read_psld` of what a file holds; the path is for messages."""
    state = entry(checkpoint, "state_dict", path, Mapping)
    groups: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        prefix, _, rest = str(key).partition(".")
        if prefix not in ("score_fn", "ema_score_fn", "clf_fn"):
            raise InputError(f"state dict key {shown(repr(key), 60)} belongs to no network of PSLD")
        groups.setdefault(prefix, {})[rest] = value
    arrays = {name: arrays_of(group, f"{shown(path)}: '{name}'") for name, group in groups.items()}
    name = "clf_fn" if isinstance(network.module, NCSNppClassifier) else "score_fn"
    if not {"clf_fn", "score_fn"} & set(arrays):
        raise InputError(f"{shown(path)} has neither 'score_fn.' nor 'clf_fn.' weights")
    if name not in arrays:
        raise InputError(f"{shown(path)} has no '{name}.' weights, those of a {type(network.module).__name__}")
    raw, ema = arrays[name], arrays.get("ema_score_fn") if name == "score_fn" else None
    return OfficialCheckpoint(
        params=convert_weights(network, raw),
        ema_params=None if ema is None else convert_weights(network, ema),
        step=torch_file.step_of(entry(checkpoint, "global_step", path), path, "global_step"),
    )
