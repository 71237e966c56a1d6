"""Official PyTorch state dicts to Flax parameters.

The official networks keep their layers in one list, `all_modules`, in the order of use. Our modules call theirs in the
same order under readable names, so the order of the calls, recorded once on abstract values, is the whole translation
table between layers; within a layer the names are below. Nothing is skipped silently: every key of the state dict must
be used and every parameter filled, with the right shape.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from sgmjax._inputs import InputError, check_numbers, shown
from sgmjax.interop.configs import OfficialNetwork
from sgmjax.models import DDPM, NCSN, CLDToyMLP, CLDToyResNet, NCSNppClassifier, NCSNv2, layers
from sgmjax.models.ncsnpp import noise_table

# Official name of a sub-layer -> ours, by the type of the layer it is in.
_RESNET = {
    "GroupNorm_0": "norm_0",
    "Conv_0": "conv_0",
    "Dense_0": "time_dense",
    "GroupNorm_1": "norm_1",
    "Conv_1": "conv_1",
}
SUBLAYERS: dict[type, dict[str, str]] = {
    layers.ResnetBlockDDPM: _RESNET | {"NIN_0": "shortcut"},
    layers.ResnetBlockBigGAN: _RESNET | {"Conv_2": "shortcut"},
    layers.AttnBlock: {"GroupNorm_0": "norm", "NIN_0": "query", "NIN_1": "key", "NIN_2": "value", "NIN_3": "out"},
    layers.Combine: {"Conv_0": "conv"},
    layers.Upsample: {"Conv_0": "conv", "Conv2d_0": "conv"},
    layers.Downsample: {"Conv_0": "conv", "Conv2d_0": "conv"},
}


class Layer(NamedTuple):
    """A direct child of a network.

    Attributes:
      kind: its class.
      name: in the parameters.
      fir: whether it resizes by FIR.
    """

    kind: type
    name: str
    fir: bool


def record_calls(network: OfficialNetwork) -> tuple[tuple[Layer, ...], dict[tuple[str, ...], Any]]:
    """Direct children of the module in the order of their calls, and the shapes of all parameters by path."""
    module = network.module.clone(remat=False) if hasattr(network.module, "remat") else network.module
    calls, shapes = _recorded(module, network.event_shape)
    return calls, dict(shapes)


@functools.lru_cache(maxsize=16)
def _recorded(module: nn.Module, event_shape: tuple[int, ...]) -> tuple[tuple[Layer, ...], dict[Any, Any]]:
    calls: list[Layer] = []

    def record(next_fun, args, kwargs, context):
        layer = context.module
        if context.method_name == "__call__" and len(layer.path) == 1:
            calls.append(Layer(type(layer), str(layer.name), getattr(layer, "fir", False)))
        return next_fun(*args, **kwargs)

    x = jax.ShapeDtypeStruct((1, *event_shape), jnp.float32)
    cond = jax.ShapeDtypeStruct((1,), jnp.float32)
    with nn.intercept_methods(record):
        variables = jax.eval_shape(module.init, jax.random.key(0), x, cond)
    return tuple(calls), traverse_util.flatten_dict(dict(variables["params"]))


def strip_prefix(state_dict: Mapping[str, Any], prefix: str = "module.") -> dict[str, Any]:
    """Removes `prefix` (by default DataParallel's) from the keys, if all of them have it."""
    if state_dict and all(key.startswith(prefix) for key in state_dict):
        return {key[len(prefix) :]: value for key, value in state_dict.items()}
    return dict(state_dict)


def arrays_of(state_dict: Any, what: str = "the state dict") -> dict[str, np.ndarray]:
    """The weights of a state dict as float32 arrays, without DataParallel's prefix.

    Args:
      state_dict: names to NumPy arrays or tensors on the CPU. Counters, whole numbers without dimensions, may be among
        them.
      what: for messages.

    Raises:
      InputError: naming the first weight that is no ordinary array of finite real numbers, or a name that is no text.
    """
    if not isinstance(state_dict, Mapping):
        raise InputError(f"{what} is a {type(state_dict).__name__}, expected a dict of names to weights")
    for key in state_dict:
        if not isinstance(key, str):
            raise InputError(f"{what} has the key {shown(repr(key), 60)}, where names of weights belong")
    return {key: as_array(value, f"{what}: '{shown(key)}'") for key, value in strip_prefix(state_dict).items()}


def as_array(value: Any, what: str) -> np.ndarray:
    """A weight in float32, or a counter; see `arrays_of`."""
    if hasattr(value, "detach"):
        value = _of_tensor(value, what)
    elif not isinstance(value, np.ndarray | np.generic):
        raise InputError(f"{what} is a {type(value).__name__}, expected a tensor")
    array = np.asarray(value)
    if array.dtype.kind in "iu" and array.ndim == 0:
        return array
    if array.dtype.kind != "f" and str(array.dtype) != "bfloat16":
        raise InputError(f"{what} has numbers of type {array.dtype}, expected real ones with a fraction, as float32")
    check_numbers(array, what)
    largest = float(np.finfo(np.float32).max)
    check_numbers(array, what, low=-largest, high=largest)  # of float64: what float32 cannot hold
    return np.asarray(array, np.float32)


def _of_tensor(tensor: Any, what: str) -> Any:
    """A tensor's numbers, float32 where NumPy has no such type; refuses those that have no numbers of their own."""
    import torch  # type: ignore[import-not-found]

    kinds = {
        "on the device 'meta', without numbers": tensor.is_meta,
        "sparse": tensor.layout != torch.strided,
        "quantised": tensor.is_quantized,
        "nested": tensor.is_nested,
    }
    for kind, found in kinds.items():
        if found:
            raise InputError(f"{what} is {kind}; save it as an ordinary tensor, as float32")
    if 0 in tensor.stride() and tensor.numel() > tensor.untyped_storage().nbytes():
        raise InputError(f"{what} repeats few numbers as {tuple(tensor.shape)}; save it as an ordinary tensor")
    small = tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4  # bfloat16, float16, float8: exact in float32
    return (tensor.detach().float() if small else tensor.detach()).resolve_conj().resolve_neg().numpy()


def leaf(key: str, value: np.ndarray, ours: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Official parameter name and array -> path below the layer and array in our layout."""
    kind = key.rsplit(".", 1)[-1]
    if kind in ("bias", "b"):
        return (*ours, "bias"), value
    if kind == "W":  # NIN: (in, out) as ours; alone in a layer: Fourier frequencies
        return ((*ours, "kernel"), value) if value.ndim == 2 else ((*ours, "frequencies"), value)
    if kind == "weight" and value.ndim == 4:
        return (*ours, "kernel"), value.transpose(2, 3, 1, 0)
    if kind == "weight" and value.ndim == 2:
        return (*ours, "kernel"), value.T
    if kind == "weight" and value.ndim == 1:
        return (*ours, "scale"), value
    raise InputError(f"state dict key '{key}' of shape {value.shape} is no parameter that these networks have")


def _check_noise_table(value: np.ndarray, module: nn.Module) -> None:
    """score-SDE stores its noise levels; ours are computed from the config, so the two must agree."""
    expected = noise_table(module.sigma_min, module.sigma_max, module.num_scales)  # type: ignore[attr-defined]
    if value.shape != expected.shape or not np.allclose(value, expected, rtol=1e-5):
        raise InputError("state dict key 'sigmas' differs from the config's sigma_min, sigma_max and num_scales")


def convert_weights(network: OfficialNetwork, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Our parameters from an official state dict.

    Args:
      network: from `from_scoresde_config`, `from_psld_config`, `from_cld_config` or `from_ncsnv2_config`.
      state_dict: official keys, with or without a `module.` prefix, to arrays (numpy, or tensors on the CPU).

    Returns:
      The nested dictionary for `network.module.apply({"params": ...}, x, cond)`, float32 numpy arrays.

    Raises:
      ValueError: naming the key, for a key that the network does not use, a parameter that the state dict lacks, or a
        shape that does not fit.

    Examples:
      >>> network = interop.from_cld_config({"name": "mlp", "sde": "cld"})
      >>> params = network.module.init(jax.random.key(0), jnp.zeros((1, 4)), jnp.ones(1))["params"]
      >>> weights = interop.official_weights(network, params)
      >>> again = interop.convert_weights(network, weights)
      >>> all(jax.tree.leaves(jax.tree.map(np.array_equal, again, params)))
      True
    """
    module = network.module
    if isinstance(module, NCSN | NCSNv2):
        from sgmjax.interop import ncsnv2  # which uses this file

        return ncsnv2.convert(network, state_dict)
    arrays = arrays_of(state_dict)
    calls, shapes = record_calls(network)
    vector = isinstance(module, CLDToyMLP | CLDToyResNet)
    sigmas = arrays.pop("sigmas", None)
    if sigmas is not None:
        if not hasattr(module, "sigma_min"):
            raise InputError("state dict key 'sigmas' is not used by this network")
        _check_noise_table(sigmas, module)

    params: dict[tuple[str, ...], np.ndarray] = {}
    for key, value in arrays.items():
        root, _, rest = key.partition(".")
        index_text, _, inner = rest.partition(".")
        if root != {CLDToyMLP: "main", CLDToyResNet: "layers"}.get(type(module), "all_modules"):
            raise InputError(f"state dict key '{key}' is not used by this network")
        # CLD's MLP is a Sequential with an activation between any two layers.
        stride = 2 if isinstance(module, CLDToyMLP) else 1
        if not index_text.isdigit() or int(index_text) % stride or int(index_text) // stride >= len(calls):
            raise InputError(f"state dict key '{key}' is not used by this network, which has {len(calls)} layers")
        layer = calls[int(index_text) // stride]
        sublayer = inner.rpartition(".")[0]
        if sublayer == "Dense_0" and not vector and not module.conditional:  # type: ignore[attr-defined]
            continue  # an unconditional official block has a time projection that nothing reads
        names = SUBLAYERS.get(layer.kind, {"": ""})
        if sublayer not in names:
            raise InputError(f"state dict key '{key}' is not used by this network, whose layer is '{layer.name}'")
        path = (layer.name, names[sublayer]) if sublayer else (layer.name,)
        if isinstance(module, NCSNppClassifier) and layer.name == "head" and value.ndim == 2:
            value = _channels_last_features(value, network)
        path, value = leaf(key, value, path)
        place(params, shapes, key, path, value)
    return finish(params, shapes)


def place(
    params: dict[tuple[str, ...], np.ndarray], shapes: Mapping[tuple[str, ...], Any], key: str, path: tuple, value: Any
) -> None:
    """Puts an array of the state dict at its path, if the network has such a parameter of such a shape."""
    if path not in shapes:
        raise InputError(f"state dict key '{key}' has no counterpart '{'/'.join(path)}' in this network")
    if value.shape != shapes[path].shape:
        raise InputError(
            f"state dict key '{key}' has shape {value.shape} in our layout and '{'/'.join(path)}' needs "
            f"{shapes[path].shape}"
        )
    params[path] = np.ascontiguousarray(value, dtype=np.float32)


def finish(params: Mapping[tuple[str, ...], np.ndarray], shapes: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The nested parameters, if none is missing."""
    missing = sorted("/".join(path) for path in shapes if path not in params)
    if missing:
        raise InputError(f"the state dict lacks {len(missing)} parameters, the first being '{missing[0]}'")
    return traverse_util.unflatten_dict(params)


def _channels_last_features(weight: np.ndarray, network: OfficialNetwork) -> np.ndarray:
    """Input features of the classifier's last layer from (C, H, W) order to (H, W, C)."""
    module = network.module
    side = network.event_shape[0] // 2 ** (len(module.ch_mult) - 1)  # type: ignore[attr-defined]
    classes = weight.shape[0]
    if weight.shape[1] % side**2:
        raise InputError(f"the classifier's last layer, {weight.shape}, does not fit features of side {side}")
    return weight.reshape(classes, -1, side, side).transpose(0, 2, 3, 1).reshape(classes, -1)


def trained_keys(network: OfficialNetwork, state_dict: Mapping[str, Any]) -> list[str]:
    """Keys of a state dict that the official optimiser trains, in the order of the official `parameters()`.

    That is all but the buffer of noise levels and the fixed Fourier frequencies.
    """
    keys = list(strip_prefix(state_dict))
    fourier = getattr(network.module, "embedding_type", None) == "fourier" and not isinstance(network.module, DDPM)
    return [key for key in keys if key != "sigmas" and not (fourier and key == "all_modules.0.W")]
