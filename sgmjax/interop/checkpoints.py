"""Checkpoints of the official PyTorch repositories: raw and averaged parameters.

Reading needs PyTorch (the extra `torch`), which is imported here and nowhere else. Files are opened without executing
what is pickled in them; pass `trust_pickle=True` for a file that holds more than tensors and that you trust.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from sgmjax.interop.configs import OfficialNetwork
from sgmjax.interop.weights import convert_weights, strip_prefix, trained_keys


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


def _load(path: str | os.PathLike[str], trust_pickle: bool) -> Any:
    try:
        import torch  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError("reading PyTorch checkpoints needs PyTorch: pip install 'sgmjax[torch]'") from None
    if not os.path.isfile(path):
        raise ValueError(f"no checkpoint file at {os.fspath(path)}")
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError:
        what, fix = "is not a PyTorch checkpoint", ""
        if not trust_pickle:
            what, fix = "holds more than tensors", "; if you trust its author, pass trust_pickle=True"
        raise ValueError(f"{os.fspath(path)} {what}{fix}") from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as a PyTorch checkpoint: {error}".split("\n")[0]) from None


def _numpy(value: Any) -> np.ndarray:
    return value.detach().float().numpy() if hasattr(value, "detach") else np.asarray(value)


def _entry(checkpoint: Any, key: str, path: Any) -> Any:
    if not isinstance(checkpoint, Mapping) or key not in checkpoint:
        raise ValueError(f"{os.fspath(path)} has no entry '{key}'; is it a checkpoint of this repository?")
    return checkpoint[key]


def read_scoresde(
    path: str | os.PathLike[str], network: OfficialNetwork, *, trust_pickle: bool = False
) -> OfficialCheckpoint:
    """A `.pth` of score_sde_pytorch: `model`, `ema` (a list in the order of the trained parameters), `step`.

    Args:
      path: the file.
      network: from `from_scoresde_config`.
      trust_pickle: allow the file to run code when it is opened.

    Raises:
      ValueError: if PyTorch is missing, the file is something else, or a weight does not fit, naming it.
    """
    checkpoint = _load(path, trust_pickle)
    model = {key: _numpy(value) for key, value in strip_prefix(_entry(checkpoint, "model", path)).items()}
    shadow = _entry(_entry(checkpoint, "ema", path), "shadow_params", path)
    keys = trained_keys(network, model)
    if len(keys) != len(shadow):
        raise ValueError(f"{os.fspath(path)}: 'ema' has {len(shadow)} arrays and the model {len(keys)} parameters")
    averaged = model | {key: _numpy(value) for key, value in zip(keys, shadow, strict=True)}
    return OfficialCheckpoint(
        params=convert_weights(network, model),
        ema_params=convert_weights(network, averaged),
        step=int(_entry(checkpoint, "step", path)),
    )


def read_cld(
    path: str | os.PathLike[str], network: OfficialNetwork, *, trust_pickle: bool = False
) -> OfficialCheckpoint:
    """A `.pth` of CLD-SGM, which has score_sde's layout; `network` from `from_cld_config`. See `read_scoresde`."""
    return read_scoresde(path, network, trust_pickle=trust_pickle)


def read_psld(
    path: str | os.PathLike[str], network: OfficialNetwork, *, trust_pickle: bool = False
) -> OfficialCheckpoint:
    """A Lightning `.ckpt` of PSLD: `state_dict` with `score_fn.` and `ema_score_fn.`, or `clf_fn.` for the classifier.

    Args:
      path: the file.
      network: from `from_psld_config`.
      trust_pickle: allow the file to run code when it is opened.

    Raises:
      ValueError: if PyTorch is missing, the file is something else, or a weight does not fit, naming it.
    """
    checkpoint = _load(path, trust_pickle)
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, value in _entry(checkpoint, "state_dict", path).items():
        prefix, _, rest = key.partition(".")
        if prefix not in ("score_fn", "ema_score_fn", "clf_fn"):
            raise ValueError(f"state dict key '{key}' belongs to no network of PSLD")
        groups.setdefault(prefix, {})[rest] = _numpy(value)
    raw = groups.get("score_fn", groups.get("clf_fn"))
    if raw is None:
        raise ValueError(f"{os.fspath(path)} has neither 'score_fn.' nor 'clf_fn.' weights")
    ema = groups.get("ema_score_fn")
    return OfficialCheckpoint(
        params=convert_weights(network, raw),
        ema_params=None if ema is None else convert_weights(network, ema),
        step=int(_entry(checkpoint, "global_step", path)),
    )
