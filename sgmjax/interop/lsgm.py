"""LSGM's official checkpoints: its NVAE, and with it the score-based prior.

The official VAE keeps its cells in two long lists, the "towers", one entry for each cell and each combiner; here the
groups of a scale are stacked along a leading axis. `_layers` walks through the towers in their order and says where
each entry lies here, and at which place of the stack. Nothing is skipped silently: every key of the state dict must be
used and every parameter and statistic filled, with the right shape.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sgmjax._inputs import InputError, shown
from sgmjax.interop import torch_file
from sgmjax.interop.configs import _get, _number, _numbers
from sgmjax.interop.torch_file import entry
from sgmjax.interop.weights import arrays_of
from sgmjax.models.nvae import NVAE, build_nvae

# Architectures with attention in their name have none: the official VAE never switches it on.
CELLS = {
    "res_bnswish": "res_bnswish",
    "res_bnswish2": "res_bnswish2",
    "res_mbconv": "res_mbconv",
    "res_mbconv_attn": "res_mbconv",
    "res_mbconv_attn_half": "res_mbconv",
}
# Our setting for an official one.
SETTINGS = {
    "encoder_channels": "num_channels_enc",
    "decoder_channels": "num_channels_dec",
    "num_scales": "num_latent_scales",
    "groups_per_scale": "num_groups_per_scale",
    "latents_per_group": "num_latent_per_group",
    "num_blocks": "num_preprocess_blocks",
    "preprocess_cells": "num_preprocess_cells",
    "postprocess_cells": "num_postprocess_cells",
    "encoder_cells": "num_cell_per_cond_enc",
    "decoder_cells": "num_cell_per_cond_dec",
    "num_flows": "num_nf",
    "num_bits": "num_x_bits",
}
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class OfficialLSGM:
    """What a checkpoint of LSGM holds, as nested float32 numpy arrays.

    Attributes:
      vae_variables: `params` and `batch_stats` for `NVAE.apply`.
      prior_params: of the score-based prior as trained, {"network", "mixing_logit"} (see `convert_lsgm_prior`), or None
        in a checkpoint of the VAE alone.
      prior_ema_params: their moving average, or None where the file has none. In the official `checkpoint_fid.pt` and
        `checkpoint_nll.pt`, which have no optimiser, `prior_params` are the averages already.
      step: optimiser steps taken.
    """

    vae_variables: dict[str, Any]
    prior_params: dict[str, Any] | None
    prior_ema_params: dict[str, Any] | None
    step: int


def image_of(dataset: str) -> tuple[int, int, int]:
    """Side, channels and padding of an official data set."""
    if dataset in ("mnist", "omniglot"):
        return 28, 1, 2
    if dataset == "cifar10":
        return 32, 3, 0
    if dataset == "ffhq":
        return 256, 3, 0
    side = dataset.rpartition("_")[2]
    if not side.isdigit():
        raise InputError(f"dataset: '{dataset}' is no data set of LSGM's official program")
    return int(side), 3, 0


def from_lsgm_vae_config(config: Any, *, dtype: Any = jnp.float32) -> NVAE:
    """The NVAE of an official config of NVlabs/LSGM.

    Args:
      config: its `args`, as a mapping or as the argparse namespace that its checkpoints hold.
      dtype: type of the arithmetic.

    Raises:
      ValueError: for a missing key, an unknown architecture, or settings that no network can have.

    Examples:
      >>> args = {name: 1 for name in ("num_latent_scales", "num_groups_per_scale", "num_preprocess_blocks",
      ...     "num_preprocess_cells", "num_postprocess_cells", "num_cell_per_cond_enc", "num_cell_per_cond_dec")}
      >>> args |= dict(num_channels_enc=8, num_channels_dec=8, num_latent_per_group=4, num_nf=0, num_x_bits=8)
      >>> args |= dict(dataset="mnist", arch_instance="res_mbconv", channel_mult=[1, 2], use_se=True)
      >>> args |= dict(progressive_input_vae="none", log_sig_q_scale=5.0, decoder_dist="bin")
      >>> interop.from_lsgm_vae_config(args).latents_per_group
      4
    """
    config = config if isinstance(config, Mapping) else vars(config)
    side, channels, pad = image_of(str(_get(config, "dataset", "")))
    arch = str(_get(config, "arch_instance", ""))
    if arch not in CELLS:
        raise InputError(f"arch_instance: no conversion for '{arch}'; there is one for {', '.join(CELLS)}")
    settings: dict[str, Any] = {ours: _number(config, theirs, "", int) for ours, theirs in SETTINGS.items()}
    if config.get("num_postprocess_blocks", settings["num_blocks"]) != settings["num_blocks"]:
        raise InputError("num_postprocess_blocks: must equal num_preprocess_blocks")
    settings |= {
        "pad": pad,
        "ch_mult": _numbers(config, "channel_mult", ""),
        "cells": CELLS[arch],
        "squeeze_excite": bool(_get(config, "use_se", "")),
        "progressive_input": str(_get(config, "progressive_input_vae", "")),
        "log_sigma_bound": _number(config, "log_sig_q_scale", "", float),
        "decoder": str(_get(config, "decoder_dist", "")),
    }
    return build_nvae(NVAE(**settings), image_size=side, channels=channels, dtype=dtype)


# ----------------------------------------------------------------------------------------------- where each layer lies
Layer = tuple[str, Path]  # official name, our path


def _cell_layers(prefix: str, ours: Path, branch: str, resample: str, squeeze_excite: bool) -> Iterator[Layer]:
    """Official name and our path of each layer of a residual cell."""
    if branch == "res_bnswish":
        for i in range(2):
            yield f"{prefix}._ops.{i}.bn_act", (*ours, f"branch_{i}", "norm")
            yield f"{prefix}._ops.{i}.conv_0", (*ours, f"branch_{i}", "conv")
    elif branch == "res_bnswish2":
        for i in range(2):
            yield f"{prefix}._ops.0.bn_act_{i}", (*ours, "branch_0", f"norm_{i}")
            yield f"{prefix}._ops.0.conv_{i}", (*ours, "branch_0", f"conv_{i}")
    else:
        first = 1 if resample == "up" else 0  # the list begins with the upsampling
        names = ("0.bn", "1.conv.0", "1.conv.1", "2.conv.0", "2.conv.1", "3", "4.bn")
        targets = ("norm_in", "expand", "expand_norm", "depthwise", "depthwise_norm", "contract", "norm_out")
        for name, target in zip(names, targets, strict=True):
            yield f"{prefix}._ops.0.conv.{int(name[0]) + first}{name[1:]}", (*ours, "branch_0", target)
    if squeeze_excite:
        yield f"{prefix}.se.se.0", (*ours, "squeeze_excite", "dense_0")
        yield f"{prefix}.se.se.2", (*ours, "squeeze_excite", "dense_1")
    if resample == "down":
        for i in range(4):
            yield f"{prefix}.skip.conv_{i + 1}", (*ours, "shortcut", f"conv_{i}")
    elif resample == "up":
        yield f"{prefix}.skip.1", (*ours, "shortcut")


def _decoder_group(scale: int, group: int) -> tuple[str, int | None]:
    """Our name of the decoder's group, coarsest scale and first group 0, and its place in the stack."""
    if scale == 0:
        return ("decoder_0_first", None) if group == 0 else ("decoder_0", group - 1)
    return f"decoder_{scale}", group


def _layers(m: NVAE) -> Iterator[tuple[str, Path, int | None]]:
    """Official name of each layer, our path, and its place in the stack of groups (None: not stacked)."""
    mbconv = m.cells == "res_mbconv"
    branches = {"encoder": "res_bnswish", "decoder": "mbconv6", "post": "mbconv3"} if mbconv else {}
    n, scales = m.groups_per_scale, m.num_scales

    def cell(prefix: str, ours: Path, place: str, resample: str = "none", index: int | None = None):
        for name, path in _cell_layers(prefix, ours, branches.get(place, m.cells), resample, m.squeeze_excite):
            yield name, path, index

    yield "stem", ("stem",), None
    for block in range(m.num_blocks):
        for i in range(m.preprocess_cells):
            resample = "down" if i == m.preprocess_cells - 1 else "none"
            yield from cell(f"pre_process.{block * m.preprocess_cells + i}", (f"pre_{block}_{i}",), "encoder", resample)

    tower = 0
    for scale in range(scales):
        for group in range(n):
            for i in range(m.encoder_cells):
                yield from cell(f"enc_tower.{tower}", (f"encoder_{scale}", f"cell_{i}"), "encoder", index=group)
                tower += 1
            # The combiner of an encoder group belongs to the decoder's group that reads it, in reversed order.
            name, index = _decoder_group(scales - 1 - scale, n - 1 - group)
            if name != "decoder_0_first":
                yield f"enc_tower.{tower}.conv", (name, "combine_encoded"), index
                tower += 1
        if scale < scales - 1:
            yield from cell(f"enc_tower.{tower}", (f"encoder_{scale}_down",), "encoder", "down")
            tower += 1
            if m.progressive_input == "input_skip":
                for layer, ours in (("bn_act", "norm"), ("conv_0", "conv")):
                    yield f"progressive_input_cells.{scale}.conv.{layer}", (f"encoder_{scale}_input", ours), None

    tower = 0
    for scale in range(scales):
        for group in range(n):
            g = scale * n + group
            name, index = _decoder_group(scale, group)
            yield f"enc_sampler.{g}.1", (name, "posterior"), index
            yield f"eps_conv.{g}", (name, "eps_conv"), index
            for flow in range(m.num_flows):
                for half, ours in (("cell1", "raster"), ("cell2", "reversed")):
                    prefix = f"nf_cells.{g * m.num_flows + flow}.{half}"
                    for layer, target in (("conv.convz.0", "lift"), ("conv.convz.2", "mix"), ("mu.conv_0", "shift")):
                        yield f"{prefix}.{layer}", (name, f"flow_{flow}", ours, target), index
            yield f"dec_tower.{tower}.conv", (name, "combine_latent"), index
            tower += 1
            for i in range(m.decoder_cells):
                yield from cell(f"dec_tower.{tower}", (name, f"cell_{i}"), "decoder", index=index)
                tower += 1
        if scale < scales - 1:
            yield from cell(f"dec_tower.{tower}", (f"decoder_{scale}_up",), "decoder", "up")
            tower += 1
    for block in range(m.num_blocks):
        for i in range(m.postprocess_cells):
            prefix = f"post_process.{block * m.postprocess_cells + i}"
            yield from cell(prefix, (f"post_{block}_{i}",), "post", "up" if i == 0 else "none")
    yield "image_conditional.1", ("output",), None


def _leaf(key: str, value: np.ndarray) -> tuple[str, str, np.ndarray]:
    """Collection, our name, and the array in our layout, of a parameter by its official name."""
    kind = key.rpartition(".")[2]
    if kind == "weight" and value.ndim == 4:
        return "params", "kernel", value.transpose(2, 3, 1, 0)
    if kind == "weight" and value.ndim == 2:
        return "params", "kernel", value.T
    if kind == "weight" and value.ndim == 1:
        return "params", "scale", value
    if kind == "bias":
        return "params", "bias", value
    if kind == "log_weight_norm":
        return "params", "log_weight_norm", value.reshape(-1)
    if kind in ("running_mean", "running_var"):
        return "batch_stats", kind.removeprefix("running_"), value
    raise InputError(f"state dict key '{key}' of shape {value.shape} is no parameter that NVAE has")


@functools.lru_cache(maxsize=4)
def _shapes(module: NVAE) -> dict[Any, Any]:
    """Shapes of the variables by path."""
    x = jax.ShapeDtypeStruct((1, module.padded_size, module.padded_size, module.channels), jnp.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), x, jax.random.key(0))
    return traverse_util.flatten_dict(dict(tree))


def convert_lsgm_vae(module: NVAE, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Our variables from an official `vae_state_dict`.

    Args:
      module: from `from_lsgm_vae_config`.
      state_dict: official keys, with or without a `module.` prefix, to arrays (numpy, or tensors on the CPU).

    Returns:
      `{"params": ..., "batch_stats": ...}` for `module.apply`, float32 numpy arrays.

    Raises:
      ValueError: naming the key, for a key that this network does not use, a variable that the state dict lacks, or a
        shape that does not fit: the state dict is of a VAE with other settings.
    """
    arrays = arrays_of(state_dict)
    shapes = _shapes(cast("Hashable", module))
    where = {name: (path, index) for name, path, index in _layers(module)}
    out: dict[Path, np.ndarray] = {}
    filled: dict[Path, set[int | None]] = {}

    def put(key: str, path: Path, index: int | None, value: np.ndarray) -> None:
        ours = "/".join(path)
        if path not in shapes:
            raise InputError(f"state dict key '{key}' has no counterpart '{ours}'; the VAE has other settings")
        shape = shapes[path].shape
        if index is not None and index >= shape[0]:
            raise InputError(f"state dict key '{key}' is of a group that this VAE lacks; it has other settings")
        needed = shape if index is None else shape[1:]
        if value.shape != needed:
            raise InputError(
                f"state dict key '{key}' has shape {value.shape} in our layout and '{ours}' needs {needed}; the VAE "
                "has other settings"
            )
        target = out.setdefault(path, np.zeros(shape, np.float32))
        target[... if index is None else index] = value
        filled.setdefault(path, set()).add(index)

    for key, value in arrays.items():
        layer, _, kind = key.rpartition(".")
        if key == "prior_ftr0":
            put(key, ("params", "initial_state"), None, value.transpose(1, 2, 0))
        elif layer not in where:
            raise InputError(f"state dict key '{key}' is not used by this VAE; it is of one with other settings")
        elif kind == "num_batches_tracked" or (kind == "weight_normalized" and f"{layer}.weight" in arrays):
            continue  # a counter that nothing reads; a second name of the weights without weight normalisation
        else:
            path, index = where[layer]
            collection, leaf, array = _leaf(key, value)
            put(key, (collection, *path, leaf), index, array)

    def complete(path: Path) -> bool:
        indices = filled.get(path, set())
        return indices == {None} or len(indices) == shapes[path].shape[0]

    missing = sorted("/".join(path) for path in shapes if not complete(path))
    if missing:
        raise InputError(
            f"the state dict lacks {len(missing)} variables of this VAE, the first being '{missing[0]}'; it is of one "
            "with other settings"
        )
    return traverse_util.unflatten_dict(out)


def _averaged(state: Mapping[str, Any], optimizer: Mapping[str, Any], path: Any) -> dict[str, Any] | None:
    """The state dict with the averages that the optimiser keeps, in the order of its parameters."""
    entries, groups = entry(optimizer, "state", path, Mapping), entry(optimizer, "param_groups", path, list)
    if not any("ema" in found for found in entries.values() if isinstance(found, Mapping)):
        return None
    indices = [i for group in groups for i in entry(group, "params", path, list)]
    if len(indices) != len(state) or not all(isinstance(i, int) for i in indices):
        raise InputError(
            f"{shown(path)}: 'dae_optimizer' has {len(indices)} parameters and 'dae_state_dict' {len(state)}"
        )
    # What is not trained (fixed Fourier frequencies) has no average.
    kept = {i: found for i, found in entries.items() if isinstance(found, Mapping)}
    return {key: kept.get(i, {}).get("ema", value) for i, (key, value) in zip(indices, state.items(), strict=True)}


def settings_of(checkpoint: Any, path: Any) -> Mapping[str, Any]:
    """The `args` of a checkpoint: an argparse namespace, of which only the attributes are taken."""
    args = entry(checkpoint, "args", path)
    args = getattr(args, "__dict__", args)
    if not isinstance(args, Mapping):
        raise InputError(
            f"{shown(path)}: the entry 'args' is a {type(args).__name__}, expected a namespace of settings"
        )
    return args


def read_lsgm(path: str | os.PathLike[str], vae: NVAE | None = None, *, prior: Any = None) -> OfficialLSGM:
    """A `.pt` of LSGM, of either stage: `vae_state_dict`, and in the second `dae_state_dict`.

    Args:
      path: the file.
      vae: from `from_lsgm_vae_config`; None: from the file's own `args`.
      prior: the network of the prior, from `from_lsgm_prior_config`; None: from the file's own `args`.

    Raises:
      InputError: as `read_scoresde`.
    """
    return lsgm_of(torch_file.load(path), path, vae, prior)


def lsgm_of(checkpoint: Any, path: Any, vae: NVAE | None = None, prior: Any = None) -> OfficialLSGM:
    """`read_lsgm` of what a file holds; the path is for messages."""
    from sgmjax.interop.lsgm_prior import convert_lsgm_prior, from_lsgm_prior_config

    vae_state = arrays_of(entry(checkpoint, "vae_state_dict", path), f"{shown(path)}: 'vae_state_dict'")
    vae = vae if vae is not None else from_lsgm_vae_config(settings_of(checkpoint, path))
    params = ema_params = None
    if "dae_state_dict" in checkpoint:
        prior = prior if prior is not None else from_lsgm_prior_config(settings_of(checkpoint, path))
        state = arrays_of(checkpoint["dae_state_dict"], f"{shown(path)}: 'dae_state_dict'")
        params = convert_lsgm_prior(prior, state)
        if "dae_optimizer" in checkpoint:
            averaged = _averaged(state, entry(checkpoint, "dae_optimizer", path, Mapping), path)
            ema_params = None if averaged is None else convert_lsgm_prior(prior, averaged)
    return OfficialLSGM(
        vae_variables=convert_lsgm_vae(vae, vae_state),
        prior_params=params,
        prior_ema_params=ema_params,
        step=torch_file.step_of(entry(checkpoint, "global_step", path), path, "global_step"),
    )
