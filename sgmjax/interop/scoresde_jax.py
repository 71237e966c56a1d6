"""Checkpoints of score_sde's JAX original: `checkpoint_<n>` of flax, a msgpack file, which holds no programs.

The file is the training state: `step`, `optimizer` {`target`: the parameters, `state`}, `lr`, `model_state`,
`ema_rate`, `params_ema`, `rng`. The official modules are named by Flax in the order in which they are made, each class
counted for itself (`ResnetBlockBigGANpp_0`, `ResnetBlockBigGANpp_1`, ..., `AttnBlockpp_0`); ours are called in the same
order (`weights.record_calls`), so the count gives the translation. Kernels have our layout already.

What was verified, and how: the names, shapes and outputs of the official JAX modules for NCSN++ with Fourier and with
positional embedding, with and without FIR, residual and skip pyramids, BigGAN and DDPM blocks, and of DDPM, by running
the official module code (of 0acb9e0) under today's Flax beside ours. The file's outer layout is that of the official
code and of Flax's own reader. No published file was at hand.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import serialization, traverse_util

from sgmjax._files import regular_file
from sgmjax._inputs import InputError, one_line, shown
from sgmjax.interop import torch_file
from sgmjax.interop.checkpoints import OfficialCheckpoint
from sgmjax.interop.configs import OfficialNetwork
from sgmjax.interop.export import sublayers
from sgmjax.interop.torch_file import entry
from sgmjax.interop.weights import Layer, as_array, finish, place, record_calls
from sgmjax.models import DDPM, NCSNpp, layers

Path = tuple[str, ...]
# Official class of a layer of ours; in NCSN++ those of `_PP` have another name.
_CLASSES = {
    "FourierEmbedding": "GaussianFourierProjection",
    "ResnetBlockDDPM": "ResnetBlockDDPM",
    "ResnetBlockBigGAN": "ResnetBlockBigGANpp",
    "AttnBlock": "AttnBlock",
}
_PP = {"ResnetBlockDDPM": "ResnetBlockDDPMpp", "AttnBlock": "AttnBlockpp"}


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What Flax put into a msgpack file, arrays as NumPy's.

    Raises:
      InputError: no such file, or no such content.
    """
    file = regular_file(path, "checkpoint")
    try:
        found = serialization.msgpack_restore(file.read_bytes())
    except Exception as error:  # whatever a broken file makes msgpack and NumPy raise
        raise InputError(f"{shown(file)} is damaged, or no flax checkpoint: {one_line(error, 120)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{shown(file)} is no flax checkpoint: it holds a {type(found).__name__}, expected a dict")
    return found


def read_scoresde_jax(path: str | os.PathLike[str], network: OfficialNetwork) -> OfficialCheckpoint:
    """A `checkpoint_<n>` of score_sde's JAX original.

    Args:
      path: the file.
      network: NCSN++ or DDPM, from `from_scoresde_config`; the two official programs have the same configs.

    Raises:
      InputError: the file is something else, or a weight does not fit or is no finite real number, naming it.
    """
    return scoresde_jax_of(load(path), path, network)


def scoresde_jax_of(checkpoint: Any, path: Any, network: OfficialNetwork) -> OfficialCheckpoint:
    """`read_scoresde_jax` of what a file holds; the path is for messages."""
    target = entry(entry(checkpoint, "optimizer", path, Mapping), "target", path, Mapping)
    average = entry(checkpoint, "params_ema", path, Mapping)
    if checkpoint.get("model_state"):
        raise InputError(f"{shown(path)}: 'model_state' is not empty; these networks have none")
    return OfficialCheckpoint(
        params=convert(network, target, f"{shown(path)}: 'optimizer.target'"),
        ema_params=convert(network, average, f"{shown(path)}: 'params_ema'"),
        step=torch_file.step_of(entry(checkpoint, "step", path), path, "step"),
    )


def convert(network: OfficialNetwork, tree: Mapping[str, Any], what: str = "the parameters") -> dict[str, Any]:
    """Our parameters from official ones.

    Args:
      network: NCSN++ or DDPM.
      tree: official names, nested, to arrays.
      what: for messages.

    Raises:
      InputError: naming the parameter, for one that the network does not use or lacks, or of another shape.
    """
    if not isinstance(network.module, NCSNpp | DDPM):
        raise InputError(f"score_sde's JAX original has no {type(network.module).__name__}; it has NCSNpp and DDPM")
    ours = official_names(network)
    _, shapes = record_calls(network)
    params: dict[Path, np.ndarray] = {}
    for path, value in traverse_util.flatten_dict(dict(tree), is_leaf=lambda _, x: not isinstance(x, Mapping)).items():
        key = "/".join(map(str, path))
        if path not in ours:
            raise InputError(f"{what}: '{shown(key)}' is not used by this network")
        place(params, shapes, key, ours[path], as_array(value, f"{what}: '{shown(key)}'"))
    return finish(params, shapes)


def official_names(network: OfficialNetwork) -> dict[Path, Path]:
    """Official path of each parameter to ours."""
    calls, shapes = record_calls(network)
    module: Any = network.module
    pp = _PP if isinstance(module, NCSNpp) else {}
    counts: collections.Counter[str] = collections.Counter()
    found: dict[Path, Path] = {}
    for layer in calls:
        name = _CLASSES.get(layer.kind.__name__, layer.kind.__name__)
        name = pp.get(name, name)
        outer = f"{name}_{counts[name]}"
        counts[name] += _made_at_once(module, layer)
        for official, inner in sublayers(layer).items():
            path = (layer.name, inner) if inner else (layer.name,)
            for leaf in ("kernel", "bias", "scale", "frequencies"):
                if (*path, leaf) in shapes:
                    theirs = (outer, official) if official else (outer,)
                    found[(*theirs, _leaf(official, leaf))] = (*path, leaf)
    return found


def _made_at_once(module: Any, layer: Layer) -> int:
    """Official modules of a layer's class that are made with it: the pyramids resize by modules without parameters."""
    if layer.kind is layers.Downsample and getattr(module, "progressive_input", "none") == "input_skip":
        return 2
    if layer.kind is layers.Upsample and getattr(module, "progressive", "none") == "output_skip":
        return 2
    return 1


def _leaf(official: str, leaf: str) -> str:
    if leaf == "frequencies":
        return "W"
    if official.startswith("NIN"):
        return {"kernel": "W", "bias": "b"}[leaf]
    return "weight" if official == "Conv2d_0" and leaf == "kernel" else leaf
