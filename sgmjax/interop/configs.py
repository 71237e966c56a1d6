"""Configs of the official repositories, mapped to our modules.

Each function takes the official config as a mapping (their JSON, YAML or ConfigDict, or argparse namespace as a dict),
reads the keys its network reads, and returns an `OfficialNetwork`. Keys that the official network ignores
(`normalization`, `attention_type`, `conv_size`, ...) are ignored here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from sgmjax._inputs import InputError, shown
from sgmjax.models import DDPM, CLDToyMLP, CLDToyResNet, NCSNpp, NCSNppClassifier
from sgmjax.spec import parameters, read


@dataclasses.dataclass(frozen=True)
class OfficialNetwork:
    """One of our modules, equal to an official network once its weights are in.

    Attributes:
      module: called as `module.apply({"params": params}, x, cond)`.
      event_shape: shape of one input, (H, W, C) or (D,).
      sigmas: the noise levels, largest first, (L,) float32, of networks that are given the index of one officially
        (NCSN, NCSNv2); else None.
    """

    module: nn.Module
    event_shape: tuple[int, ...]
    sigmas: np.ndarray | None = None


def _get(section: Any, key: str, where: str) -> Any:
    if not isinstance(section, Mapping):
        raise InputError(f"the official config's '{where.rstrip('.')}' is a {type(section).__name__}, expected a dict")
    if key not in section:
        raise InputError(f"the official config has no '{where}{key}'")
    return section[key]


def _number(section: Any, key: str, where: str, kind: type) -> Any:
    """A number of the config, int or float."""
    value = _get(section, key, where)
    try:
        return _exactly(kind, value)
    except (TypeError, ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"the official config's '{where}{key}' is {shown(value, 60)}, expected {what}") from None


def _exactly(kind: type, value: Any) -> Any:
    number = kind(value)
    if isinstance(value, bool) or (not isinstance(value, str) and number != value):  # cut off
        raise ValueError
    return number


def _flag(section: Any, key: str, where: str) -> bool:
    """A switch of the config: True or False, or the words."""
    value = _get(section, key, where)
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
    if found is None:
        raise InputError(f"the official config's '{where}{key}' is {shown(value, 60)}, expected True or False")
    return found


def _numbers(section: Any, key: str, where: str, kind: type = int) -> tuple[Any, ...]:
    """Numbers of the config: a list, or CLD's comma-separated string."""
    value = _get(section, key, where)
    try:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        return tuple(_exactly(kind, v) for v in ([value] if isinstance(value, int | float) else value))
    except (TypeError, ValueError, OverflowError):
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"the official config's '{where}{key}' is {shown(value, 60)}, expected {what}") from None


def _word(section: Any, key: str, where: str) -> Any:
    """A word of the config, in small letters: one of those that our networks take for the field of that name."""
    hint = parameters(NCSNpp)[key].hint
    return read(hint, str(_get(section, key, where)).lower(), f"the official config's '{where}{key}'")


def _shared_fields(section: Mapping[str, Any], where: str, **renamed: str) -> dict[str, Any]:
    """Fields of NCSN++ that all three codes have; `renamed` gives the official key where it differs from ours."""
    out: dict[str, Any] = {}
    for key in ("nf", "num_res_blocks"):
        out[key] = _number(section, renamed.get(key, key), where, int)
    out["fir"] = _flag(section, renamed.get("fir", "fir"), where)
    for key in ("ch_mult", "attn_resolutions"):
        out[key] = _numbers(section, key, where)
    out["fir_kernel"] = _numbers(section, "fir_kernel", where, float)
    for key in ("dropout", "init_scale"):
        out[key] = _number(section, key, where, float)
    for key in ("resamp_with_conv", "skip_rescale"):
        out[key] = _flag(section, key, where)
    names = ("resblock_type", "progressive", "progressive_input", "progressive_combine", "embedding_type")
    for key in (*names, "nonlinearity"):
        out[key] = _word(section, key, where)
    if out["embedding_type"] == "fourier":
        out["fourier_scale"] = _number(section, "fourier_scale", where, float)
    return out


def from_scoresde_config(config: Mapping[str, Any]) -> OfficialNetwork:
    """A config of yang-song/score_sde(_pytorch): sections `model` and `data`; networks `ncsnpp` and `ddpm`.

    The official DDPM ignores `init_scale`, `fir` and whatever else is NCSN++'s, and so is it here.

    Raises:
      ValueError: for a missing key or a network of another name.

    Examples:
      >>> model = dict(name="ddpm", nf=128, ch_mult=(1, 2, 2, 2), num_res_blocks=2, attn_resolutions=(16,))
      >>> model |= dict(dropout=0.1, resamp_with_conv=True, nonlinearity="swish", scale_by_sigma=False)
      >>> model |= dict(num_scales=1000, sigma_min=0.01, sigma_max=50.0)
      >>> data = dict(image_size=32, num_channels=3, centered=True)
      >>> interop.from_scoresde_config({"model": model, "data": data}).event_shape
      (32, 32, 3)
    """
    model, data = _get(config, "model", ""), _get(config, "data", "")
    name = _get(model, "name", "model.")
    channels, side = _number(data, "num_channels", "data.", int), _number(data, "image_size", "data.", int)
    common = {
        "out_channels": channels,
        "centered": _flag(data, "centered", "data."),
        "conditional": _flag(model, "conditional", "model.") if "conditional" in model else True,
        "scale_by_sigma": _flag(model, "scale_by_sigma", "model."),
        "sigma_min": _number(model, "sigma_min", "model.", float),
        "sigma_max": _number(model, "sigma_max", "model.", float),
        "num_scales": _number(model, "num_scales", "model.", int),
    }
    module: nn.Module
    if name == "ncsnpp":
        module = NCSNpp(**common, **_shared_fields(model, "model."))
    elif name == "ddpm":
        module = DDPM(
            **common,
            nf=_number(model, "nf", "model.", int),
            ch_mult=_numbers(model, "ch_mult", "model."),
            num_res_blocks=_number(model, "num_res_blocks", "model.", int),
            attn_resolutions=_numbers(model, "attn_resolutions", "model."),
            dropout=_number(model, "dropout", "model.", float),
            resamp_with_conv=_flag(model, "resamp_with_conv", "model."),
            nonlinearity=_word(model, "nonlinearity", "model."),
        )
    else:
        raise InputError(f"model.name: no conversion for score_sde's '{name}'; there is one for ncsnpp and ddpm")
    return OfficialNetwork(module, (side, side, channels))


def from_psld_config(config: Mapping[str, Any], *, image_size: int | None = None) -> OfficialNetwork:
    """A config of mandt-lab/PSLD: `score_fn` (ncsnpp) or `clf_fn` (ncsnpp_clf), and `data`.

    The sections may also lie where the repository has them, under `diffusion` or `clf` and there under `model`.

    Args:
      config: the official config.
      image_size: side of the images; needed where the config has no `data.image_size`.

    Raises:
      ValueError: for a missing key or a network of another name.

    Examples:
      >>> network = dict(name="ncsnpp", in_ch=6, out_ch=6, nf=128, ch_mult=[2, 2, 2], num_res_blocks=8, dropout=0.15)
      >>> network |= dict(attn_resolutions=[16], resamp_with_conv=True, noise_cond=True, nonlinearity="swish")
      >>> network |= dict(fir=False, fir_kernel=[1, 3, 3, 1], skip_rescale=True, resblock_type="biggan")
      >>> network |= dict(progressive="none", progressive_input="none", progressive_combine="sum")
      >>> network |= dict(embedding_type="positional", init_scale=0.0)
      >>> interop.from_psld_config({"score_fn": network, "data": {"image_size": 32}}).event_shape  # x and m, 3 each
      (32, 32, 6)
    """
    for outer in ("diffusion", "clf"):
        if outer in config:
            config = config[outer]
            break
    model = config.get("model", config)
    side = image_size if image_size is not None else config.get("data", {}).get("image_size")
    if side is None:
        raise InputError("the official config has no 'data.image_size'; give image_size")
    if "score_fn" in model:
        section, where = model["score_fn"], "score_fn."
    elif "clf_fn" in model:
        section, where = model["clf_fn"], "clf_fn."
    else:
        raise InputError("the official config has neither 'score_fn' nor 'clf_fn'")
    name = _get(section, "name", where)
    fields = _shared_fields(section, where)
    fields["conditional"] = _flag(section, "noise_cond", where)
    channels = _number(section, "in_ch", where, int)
    module: nn.Module
    if name == "ncsnpp":
        # The official output pyramid has as many channels as the input, whatever out_ch says.
        key = "in_ch" if fields["progressive"] == "output_skip" else "out_ch"
        module = NCSNpp(out_channels=_number(section, key, where, int), **fields)
    elif name == "ncsnpp_clf":
        del fields["progressive"]  # of the decoder, which it has not
        module = NCSNppClassifier(out_channels=_number(section, "n_cls", where, int), **fields)
    else:
        raise InputError(f"{where}name: no conversion for PSLD's '{name}'; there is one for ncsnpp and ncsnpp_clf")
    return OfficialNetwork(module, (int(side), int(side), channels))


def from_cld_config(config: Mapping[str, Any]) -> OfficialNetwork:
    """A config of nv-tlabs/CLD-SGM, a flat mapping: networks `ncsnpp`, and `mlp` and `resnet` for 2-D data.

    Raises:
      ValueError: for a missing key or a network of another name.

    Examples:
      >>> network = interop.from_cld_config({"name": "mlp", "sde": "cld"})
      >>> type(network.module).__name__, network.event_shape  # of points in the plane, with their velocities
      ('CLDToyMLP', (4,))
    """
    name = _get(config, "name", "")
    phases = 2 if _get(config, "sde", "") == "cld" else 1
    if name in ("mlp", "resnet"):
        dim = int(config.get("data_dim", 2))
        return OfficialNetwork(CLDToyMLP(dim) if name == "mlp" else CLDToyResNet(dim), (phases * dim,))
    if name != "ncsnpp":
        raise InputError(f"name: no conversion for CLD's '{name}'; there is one for ncsnpp, mlp and resnet")
    channels, side = _number(config, "image_channels", "", int), _number(config, "image_size", "", int)
    fields = _shared_fields(config, "", nf="n_channels", num_res_blocks="n_resblocks", fir="use_fir")
    return OfficialNetwork(NCSNpp(out_channels=channels, **fields), (side, side, phases * channels))
