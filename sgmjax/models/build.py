"""From a model section of a configuration to a module, with everything that cannot work refused by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sgmjax.models import layers
from sgmjax.models.ddpm import DDPM
from sgmjax.models.fir import normalized_kernel
from sgmjax.models.mlp import MLP, CLDToyMLP, CLDToyResNet
from sgmjax.models.ncsnpp import NCSNpp, NCSNppClassifier
from sgmjax.models.ncsnv2 import NCSN, VARIANTS, NCSNv2, check_image_size
from sgmjax.models.unet1d import UNet1d

# By name, and for data with how many spatial axes, the first above all: 0 for vectors, 1 for signals, 2 for images, 3
# for volumes.
NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "ncsnpp": (NCSNpp, (2, 3)),
    "ddpm": (DDPM, (2,)),
    "ncsn": (NCSN, (2,)),
    "ncsnv2": (NCSNv2, (2,)),
    "ncsnpp_classifier": (NCSNppClassifier, (2, 1, 3)),
    "mlp": (MLP, (0, 1, 3)),
    "unet1d": (UNet1d, (1,)),
    "cld_toy_mlp": (CLDToyMLP, (0,)),
    "cld_toy_resnet": (CLDToyResNet, (0,)),
    "mlp_classifier": (MLP, (0,)),
}
_KINDS = ("vectors", "signals", "images", "volumes")  # by spatial axes
_FITTING = ("use 'mlp'", "use 'unet1d' or 'mlp'", "use 'ncsnpp' or 'ddpm'", "use 'ncsnpp' or 'mlp'")

_CHOICES = {
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding_type": ("positional", "fourier"),
    "nonlinearity": tuple(layers.ACTIVATIONS),
    "variant": tuple(VARIANTS),
}
_POSITIVE = (
    "nf",
    "num_res_blocks",
    "num_classes",
    "width",
    "depth",
    "hidden_dim",
    "num_hidden_layers",
    "fourier_scale",
    "embedding_scale",
    "num_levels",
)


def _check_fields(settings: dict[str, Any]) -> None:
    """Checks that need nothing but the settings."""
    for key, choices in _CHOICES.items():
        if key in settings and settings[key] not in choices:
            raise ValueError(f"model.{key}: '{settings[key]}' is unknown; choose one of {', '.join(choices)}")
    for key in _POSITIVE:
        if settings.get(key) is not None and settings[key] <= 0:
            raise ValueError(f"model.{key}: {settings[key]} must be positive")
    if not 0.0 <= settings.get("dropout", 0.0) < 1.0:
        raise ValueError(f"model.dropout: {settings['dropout']} must be in [0, 1)")
    if settings.get("init_scale", 0.0) < 0.0:
        raise ValueError(f"model.init_scale: {settings['init_scale']} must not be negative")
    if "nf" in settings and settings["nf"] < 4:
        raise ValueError(f"model.nf: {settings['nf']} is too small for the time embedding; use 4 or more")
    if settings.get("embedding_dim") is not None and settings["embedding_dim"] < 4:
        raise ValueError(f"model.embedding_dim: {settings['embedding_dim']} is too small; use 4 or more, or None")
    fourier = settings.get("embedding_type") == "fourier"
    if fourier and settings.get("embedding_scale", 1.0) != 1.0:
        raise ValueError("model.embedding_scale: is of the positional embedding; fourier has model.fourier_scale")
    if not fourier and not settings.get("fourier_log", True):
        raise ValueError("model.fourier_log: the positional embedding has no Fourier features; leave it True")
    if "ngf" in settings and settings["ngf"] < 2:
        raise ValueError(f"model.ngf: InstanceNorm++ compares channels, so it must be 2 or more; got {settings['ngf']}")
    if "ch_mult" in settings and (not settings["ch_mult"] or min(settings["ch_mult"]) < 1):
        raise ValueError(f"model.ch_mult: {settings['ch_mult']} must be one positive integer for each resolution")
    if settings.get("fir"):
        try:
            normalized_kernel(settings["fir_kernel"])
        except ValueError as error:
            raise ValueError(f"model.fir_kernel: {error}") from None


def _check_network(name: str, sides: tuple[int, ...]) -> None:
    """That the network is one for data of this kind."""
    allowed = NETWORKS[name][1]
    if len(sides) in allowed:
        return
    found, fitting = _KINDS[len(sides)], _FITTING[len(sides)]
    if len(sides) == 1 and 2 in allowed:
        found += " (n, T, C)"
        fitting += "; or if they are images without a channel axis, x[..., None]"
    raise ValueError(f"model.name: '{name}' needs {_KINDS[allowed[0]]} and the data are {found}; {fitting}")


def _check_resolutions(settings: dict[str, Any], sides: tuple[int, ...], resize: str) -> None:
    if "variant" in settings:
        for side in sides:
            try:
                check_image_size(settings["variant"], side)
            except ValueError as error:
                raise ValueError(f"model.variant: {error}; choose another variant or {resize}") from None
        return
    levels = len(settings["ch_mult"])
    halvings = 2 ** (levels - 1)
    what = ("signal", "image", "volume")[len(sides) - 1]
    for side in sides:
        if side % halvings:
            size = "length" if len(sides) == 1 else f"{what} size"
            hint = "; signals are (n, T, C), channels last" if len(sides) == 1 else ""
            raise ValueError(
                f"model.ch_mult: {levels} levels halve the {what} {levels - 1} times, so the {size} must be a "
                f"multiple of {halvings}; got {side}: shorten ch_mult or {resize}{hint}"
            )
    lengths = [sides[0] // 2**level for level in range(levels)]
    for length in settings["attn_resolutions"]:
        if length not in lengths:
            raise ValueError(
                f"model.attn_resolutions: no level has side {length}; {what}s of {sides[0]} with {levels} levels have "
                f"{', '.join(map(str, lengths))}"
            )


def build(
    model_config: Any,
    *,
    in_channels: int,
    out_channels: int,
    image_size: int | tuple[int, ...] | None,
    resize: str = "give data of another size",
    centered: bool = True,
    dtype: Any = jnp.float32,
) -> nn.Module:
    """The module that a model section describes.

    Args:
      model_config: a frozen dataclass (`NCSNppConfig`, `DDPMConfig`, `MLPConfig`) with a `name` and the fields of the
        module of that name; a field that is absent keeps the module's default.
      in_channels: channels of the input (size of the vector for a vector network).
      out_channels: channels of the output; for the classifiers the number of classes.
      image_size: sides of the data: (H, W) of images, or one number where they are square, (T,) of signals, (D, H, W)
        of volumes, None or () for vectors.
      resize: what can be done about a size that does not fit, for messages.
      centered: whether the data are in [-1, 1] rather than [0, 1].
      dtype: type of the arithmetic, float32 or bfloat16.

    Returns:
      An unbound Flax module; see `NCSNpp` for how it is called.

    Raises:
      ValueError: one line naming the key and the fix, for settings that no network can have.
    """
    settings = {f.name: getattr(model_config, f.name) for f in dataclasses.fields(model_config)}
    name = settings.pop("name")
    if name not in NETWORKS:
        raise ValueError(f"model.name: '{name}' is unknown; choose one of {', '.join(NETWORKS)}")
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or ())
    _check_network(name, sides)
    if in_channels < 1 or out_channels < 1:
        raise ValueError(f"in_channels and out_channels must be positive; got {in_channels} and {out_channels}")
    _check_fields(settings)
    cls = NETWORKS[name][0]
    if "ch_mult" in settings or "variant" in settings:
        _check_resolutions(settings, sides, resize)

    accepted = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(settings) - accepted)
    if unknown:
        raise ValueError(f"model.{unknown[0]}: '{name}' has no such setting")
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return cls(out_channels=out_channels, centered=centered, dtype=jnp.dtype(dtype), **settings)


def trainable_mask(params: Any) -> Any:
    """A tree of bools like `params`: False for the fixed Fourier frequencies, True for the rest.

    Gradients of the frequencies are zero, so Adam never moves them; give this as `mask` to weight decay.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) != "frequencies", params)


def count_parameters(params: Any) -> int:
    """Number of trainable parameters in a tree of arrays or of `jax.ShapeDtypeStruct`."""
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(trainable_mask(params)), strict=True)
    return sum(math.prod(leaf.shape) for leaf, trainable in leaves if trainable)
