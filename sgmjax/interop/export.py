"""Our parameters to the official PyTorch layouts: the other direction of `weights` and `checkpoints`.

What is written has the names, shapes, types and order of the official programs' own files, and read again it gives the
same parameters bit for bit. Moments of the optimiser are not written: the official program begins with new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from sgmjax._inputs import InputError
from sgmjax.interop.configs import OfficialNetwork
from sgmjax.interop.weights import SUBLAYERS, Layer, record_calls, trained_keys
from sgmjax.models import DDPM, CLDToyMLP, CLDToyResNet, NCSNpp, NCSNppClassifier, layers
from sgmjax.models.ncsnpp import noise_table

FORMATS = ("scoresde", "cld", "psld")
_MODULES: dict[str, tuple[type, ...]] = {
    "scoresde": (NCSNpp, DDPM),
    "cld": (NCSNpp, CLDToyMLP, CLDToyResNet),
    "psld": (NCSNpp, NCSNppClassifier),
}
# Settings of our networks that no official network has, and what they must be.
_OURS_ALONE = {"num_classes": None, "embedding_dim": None, "embedding_scale": 1.0, "fourier_log": True}


def check_exportable(network: OfficialNetwork, layout: str) -> None:
    """That the official program of a layout has this network.

    Args:
      network: the module, and the shape of its input.
      layout: one of `FORMATS`.

    Raises:
      InputError: it has not; names the setting.

    Examples:
      >>> network = interop.from_cld_config({"name": "mlp", "sde": "cld"})
      >>> interop.check_exportable(network, "cld")  # it can be
      >>> interop.check_exportable(network, "psld")
      Traceback (most recent call last):
      ...
      sgmjax._inputs.InputError: the network CLDToyMLP has no counterpart in psld, which has NCSNpp, NCSNppClassifier
    """
    module = network.module
    if not isinstance(module, _MODULES[layout]):
        names = ", ".join(cls.__name__ for cls in _MODULES[layout])
        raise InputError(f"the network {type(module).__name__} has no counterpart in {layout}, which has {names}")
    if isinstance(module, CLDToyMLP | CLDToyResNet):
        return
    if len(network.event_shape) != 3:
        raise InputError(f"{layout} has networks for images, and this run's data have shape {network.event_shape[:-1]}")
    wanted = dict(_OURS_ALONE)
    if layout != "scoresde":
        wanted |= {"scale_by_sigma": False, "centered": True}
    for name, value in wanted.items():
        if getattr(module, name, value) != value:
            where = "data.centered" if name == "centered" else f"model.{name}"
            raise InputError(f"{where}: {getattr(module, name)} has no counterpart in {layout}, where it is {value}")
    channels = network.event_shape[-1]
    same = layout == "scoresde" or getattr(module, "progressive", "none") == "output_skip"
    if same and module.out_channels != channels:  # type: ignore[attr-defined]
        raise InputError(f"{layout} has no such network of {channels} channels in and {module.out_channels} out")  # type: ignore[attr-defined]


def official_weights(network: OfficialNetwork, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The official state dict of our parameters, in the official order: the inverse of `convert_weights`.

    Args:
      network: NCSN++, DDPM, their classifier, or CLD's networks of vectors; what `convert_weights` takes.
      params: nested, as `module.init` gives them.

    Returns:
      Official names, without a prefix and without the table of noise levels, to float32 arrays. Where an unconditional
      official block has a projection of the time that nothing reads, it is zero.

    Raises:
      InputError: a parameter that the network does not have, or lacks.

    Examples:
      >>> network = interop.from_cld_config({"name": "mlp", "sde": "cld"})
      >>> params = network.module.init(jax.random.key(0), jnp.zeros((1, 4)), jnp.ones(1))["params"]
      >>> list(interop.official_weights(network, params))[:2]
      ['main.0.weight', 'main.0.bias']
    """
    module = network.module
    calls, shapes = record_calls(network)
    left: dict[Any, Any] = dict(traverse_util.flatten_dict(dict(params)))
    for path, shape in shapes.items():
        if path not in left or np.shape(left[path]) != shape.shape:
            raise InputError(f"the parameters are not of this network: '{'/'.join(path)}' should be {shape.shape}")
    root = {CLDToyMLP: "main", CLDToyResNet: "layers"}.get(type(module), "all_modules")
    stride = 2 if isinstance(module, CLDToyMLP) else 1
    out: dict[str, np.ndarray] = {}
    for index, layer in enumerate(calls):
        for official, ours in sublayers(layer).items():
            base = f"{root}.{index * stride}" + (f".{official}" if official else "")
            path = (layer.name, ours) if ours else (layer.name,)
            found = {leaf: left.pop((*path, leaf)) for leaf in _LEAVES if (*path, leaf) in left}
            if official == "Dense_0" and not found and layer.kind in _BLOCKS:
                width, features = 4 * module.nf, shapes[(layer.name, "conv_0", "bias")].shape[0]  # type: ignore[attr-defined]
                found = {"kernel": np.zeros((width, features)), "bias": np.zeros(features)}
            for leaf, value in found.items():
                array = np.asarray(value, np.float32)
                if isinstance(module, NCSNppClassifier) and layer.name == "head":
                    array = _channels_first_features(array, network)
                name, array = _leaf(leaf, array, nin=official.startswith("NIN"))
                out[f"{base}.{name}"] = np.ascontiguousarray(array)
    if left:
        raise InputError(f"parameter '{'/'.join(next(iter(left)))}' has no counterpart in the official network")
    return out


_BLOCKS = (layers.ResnetBlockDDPM, layers.ResnetBlockBigGAN)
_LEAVES = ("kernel", "scale", "frequencies", "bias")  # in the order of the official parameters


def sublayers(layer: Layer) -> dict[str, str]:
    """Official names of a layer's parts and ours, in the official order."""
    names = SUBLAYERS.get(layer.kind, {"": ""})
    if layer.kind in (layers.Upsample, layers.Downsample):
        names = {"Conv2d_0" if layer.fir else "Conv_0": "conv"}
    return names


def _leaf(ours: str, value: np.ndarray, *, nin: bool) -> tuple[str, np.ndarray]:
    """Official name of a leaf, and the array in the official layout."""
    if ours == "frequencies":
        return "W", value
    if nin:
        return {"kernel": "W", "bias": "b"}[ours], value
    if ours == "bias":
        return "bias", value
    return "weight", value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _channels_first_features(kernel: np.ndarray, network: OfficialNetwork) -> np.ndarray:
    """Input features of the classifier's last layer, (features, classes), from (H, W, C) order to (C, H, W)."""
    side = network.event_shape[0] // 2 ** (len(network.module.ch_mult) - 1)  # type: ignore[attr-defined]
    return kernel.reshape(side, side, -1, kernel.shape[1]).transpose(2, 0, 1, 3).reshape(kernel.shape)


# ---------------------------------------------------------------------------------------------------------- whole files
def scoresde_checkpoint(
    network: OfficialNetwork,
    params: Mapping[str, Any],
    ema_params: Mapping[str, Any],
    step: int,
    *,
    optimizer: Any,
    sigmas: bool = True,
) -> dict[str, Any]:
    """What score_sde_pytorch and CLD-SGM save: `optimizer`, `model`, `ema`, `step`.

    Args:
      network: as of `official_weights`.
      params, ema_params: those being trained, and their average.
      step: optimiser steps taken.
      optimizer: the section of a config, whose learning rate, betas, eps and decay of the average are written.
      sigmas: whether the network has the table of noise levels, as in score_sde and not in CLD.
    """
    weights = official_weights(network, params)
    averaged = official_weights(network, ema_params)
    module: Any = network.module
    table = {}
    if sigmas:
        levels = noise_table(module.sigma_min, module.sigma_max, module.num_scales)
        table = {"module.sigmas": _tensor(levels)}
    return {
        "optimizer": _optimizer(optimizer, len(weights)),
        "model": _tensors(table | {f"module.{key}": value for key, value in weights.items()}),
        "ema": {
            "decay": optimizer.ema_decay,
            "num_updates": step if optimizer.ema_warmup else None,
            "shadow_params": [_tensor(averaged[key]) for key in trained_keys(network, averaged)],
        },
        "step": step,
    }


def psld_checkpoint(
    network: OfficialNetwork, params: Mapping[str, Any], ema_params: Mapping[str, Any], step: int, *, optimizer: Any
) -> dict[str, Any]:
    """What Lightning saves of PSLD: `state_dict` with `score_fn.` and `ema_score_fn.`, of a classifier `clf_fn.`.

    A classifier there has one set of parameters: the averaged ones are written, with which ours is sampled. Arguments
    as of `scoresde_checkpoint`.
    """
    groups = {"clf_fn": ema_params}
    if not isinstance(network.module, NCSNppClassifier):
        groups = {"score_fn": params, "ema_score_fn": ema_params}
    weights = {name: official_weights(network, group) for name, group in groups.items()}
    state = {f"{name}.{key}": value for name, found in weights.items() for key, value in found.items()}
    count = len(next(iter(weights.values())))
    return {
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": "1.6.5",
        "state_dict": _tensors(state),
        "loops": {},
        "callbacks": {},
        "optimizer_states": [_optimizer(optimizer, count)],
        "lr_schedulers": [],
    }


def _optimizer(section: Any, count: int) -> dict[str, Any]:
    """The state dict of an Adam that has taken no step, for `count` parameters."""
    group = {
        "lr": section.learning_rate,
        "betas": (section.beta1, section.beta2),
        "eps": section.eps,
        "weight_decay": section.weight_decay,
        "amsgrad": False,
        "params": list(range(count)),
    }
    return {"state": {}, "param_groups": [group]}


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tensor(value) if isinstance(value, np.ndarray) else value for key, value in arrays.items()}


def _tensor(array: np.ndarray) -> Any:
    try:
        import torch  # type: ignore[import-not-found]
    except ImportError:
        raise InputError("writing PyTorch checkpoints needs PyTorch: pip install 'sgmjax[torch]'") from None
    return torch.from_numpy(np.array(array))
