"""From a model section of a configuration to a module, with everything that cannot work refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sgmjax._inputs import InputError
from sgmjax.models import layers
from sgmjax.models.adm import ADM
from sgmjax.models.ddpm import DDPM
from sgmjax.models.feature_net import GROUP_SIZE, FeatureNet
from sgmjax.models.fir import normalized_kernel
from sgmjax.models.mlp import MLP, CLDToyMLP, CLDToyResNet, MLPClassifier
from sgmjax.models.ncsnpp import NCSNpp, NCSNppClassifier
from sgmjax.models.ncsnv2 import NCSN, NCSNv2, check_image_size
from sgmjax.models.unet1d import UNet1d
from sgmjax.spec import Section

# A configuration's `model` section is one of these names and settings of that class. The class says beside its fields:
# `axes`, the numbers of spatial axes that data may have, the usual one first (0: vectors, 1: signals, 2: images, 3:
# volumes; unsaid: all), `classifies`, if it learns the class of the noised data in place of its score, and
# `sees_noise`, False where it learns that of clean data. A module says `takes_log` if it takes its time's logarithm.
NETWORKS: dict[str, type[nn.Module]] = {
    "ncsnpp": NCSNpp,
    "ddpm": DDPM,
    "adm": ADM,
    "ncsn": NCSN,
    "ncsnv2": NCSNv2,
    "mlp": MLP,
    "unet1d": UNet1d,
    "cld_toy_mlp": CLDToyMLP,
    "cld_toy_resnet": CLDToyResNet,
    "ncsnpp_classifier": NCSNppClassifier,
    "mlp_classifier": MLPClassifier,
    "feature_net": FeatureNet,
}
# Fields of theirs that `build` gives; and the table of discrete noise levels, for programs alone.
GIVEN = frozenset({"out_channels", "centered", "dtype", "parent", "sigma_min", "sigma_max", "num_scales"})
_KINDS = ("vectors", "signals", "images", "volumes")  # by spatial axes
# Score networks to name for each of them; of networks that learn classes all that fit are named.
_FITTING = ("use 'mlp'", "use 'unet1d' or 'mlp'", "use 'ncsnpp' or 'ddpm'", "use 'ncsnpp' or 'mlp'")


def _check_fields(settings: Mapping[str, Any]) -> None:
    """What the ranges of the settings do not say: those that depend on one another."""
    fourier = settings.get("embedding_type") == "fourier"
    if fourier and settings.get("embedding_scale", 1.0) != 1.0:
        raise InputError("model.embedding_scale: is of the positional embedding; fourier has model.fourier_scale")
    if not fourier and not settings.get("fourier_log", True):
        raise InputError("model.fourier_log: the positional embedding has no Fourier features; leave it True")
    if settings.get("labels_at", "embedding") != "embedding" and settings.get("num_classes") is None:
        raise InputError("model.labels_at: is of classes; set model.num_classes too, or leave it out")
    if not settings.get("conditional", True) and settings.get("labels_at", "embedding") == "features":
        raise InputError(
            "model.labels_at: 'features' adds the class to what the time layers read, and with model.conditional=False "
            "there are none; use 'embedding'"
        )
    if not settings.get("ch_mult", (1,)):
        raise InputError("model.ch_mult: () must be one positive integer for each resolution")
    if "widths" in settings and (not settings["widths"] or any(width % GROUP_SIZE for width in settings["widths"])):
        raise InputError(
            f"model.widths: {settings['widths']} must be one multiple of {GROUP_SIZE} for each stage (channels are "
            f"normalised by {GROUP_SIZE})"
        )
    if settings.get("fir"):
        try:
            normalized_kernel(settings["fir_kernel"])
        except ValueError as error:
            raise InputError(f"model.fir_kernel: {error}") from None


def _other_classifiers(section: Section, axes: int) -> str:
    """What to do instead: the networks that learn the same of data with so many axes."""
    noised = sees_noise(section)
    kin = [
        f"'{name}'"
        for name, one in NETWORKS.items()
        if getattr(one, "classifies", False) and getattr(one, "sees_noise", True) == noised and axes in _axes(one)
    ]
    what = "classifier of noised data" if noised else "network of features"
    return f"use {' or '.join(kin)}" if kin else f"there is no {what} for these"


def _axes(network: Any) -> Sequence[int]:
    """The numbers of spatial axes that data of a network may have, the usual one first."""
    return getattr(network, "axes", range(len(_KINDS)))


def _check_network(section: Section, sides: tuple[int, ...]) -> None:
    """That the network is one for data of this kind."""
    allowed = _axes(section.constructor)
    if len(sides) in allowed:
        return
    if len(sides) >= len(_KINDS):
        raise InputError(f"data with {len(sides)} axes beside the channels: networks are for {', '.join(_KINDS)}")
    found, fitting = _KINDS[len(sides)], _FITTING[len(sides)]
    if classifies(section):
        fitting = _other_classifiers(section, len(sides))
    if len(sides) == 1 and 2 in allowed:
        found += " (n, T, C)"
        fitting += "; or if they are images without a channel axis, x[..., None]"
    raise InputError(f"model.name: '{section.name}' needs {_KINDS[allowed[0]]} and the data are {found}; {fitting}")


def _check_resolutions(settings: Mapping[str, Any], sides: tuple[int, ...], resize: str) -> None:
    if "variant" in settings:
        for side in sides:
            try:
                check_image_size(settings["variant"], side)
            except ValueError as error:
                raise InputError(f"model.variant: {error}; choose another variant or {resize}") from None
        return
    levels, what = len(settings["ch_mult"]), ("signal", "image", "volume")[len(sides) - 1]
    layers.check_sides(sides, levels, resize)
    lengths = [sides[0] // 2**level for level in range(levels)]
    for length in settings.get("attn_resolutions", ()):
        if length not in lengths:
            raise InputError(
                f"model.attn_resolutions: no level has side {length}; {what}s of {sides[0]} with {levels} levels have "
                f"{', '.join(map(str, lengths))}"
            )


def build(
    section: Section,
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
      section: a name of `NETWORKS` and the settings of its class.
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

    Examples:
      >>> from sgmjax import config
      >>> section = config.MODEL.read({"name": "mlp", "width": 16})
      >>> net = models.build(section, in_channels=4, out_channels=4, image_size=None)
      >>> type(net).__name__, net.width, net.out_channels
      ('MLP', 16, 4)
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or ())
    _check_network(section, sides)
    if in_channels < 1 or out_channels < 1:
        raise InputError(f"in_channels and out_channels must be positive; got {in_channels} and {out_channels}")
    _check_fields(section.settings)
    if "ch_mult" in section.settings or "variant" in section.settings:
        _check_resolutions(section.settings, sides, resize)
    return section.build(out_channels=out_channels, centered=centered, dtype=jnp.dtype(dtype))


def classifies(section: Section) -> bool:
    """Whether the network learns the class of the noised data, not its score.

    Examples:
      >>> from sgmjax import config
      >>> [models.classifies(config.MODEL.read({"name": name})) for name in ("ncsnpp", "ncsnpp_classifier")]
      [False, True]
    """
    return getattr(section.constructor, "classifies", False)


def sees_noise(section: Section) -> bool:
    """Whether the network is of noised data, with a time; else of clean data, for features.

    Examples:
      >>> from sgmjax import config
      >>> [models.sees_noise(config.MODEL.read({"name": name})) for name in ("ncsnpp", "feature_net")]
      [True, False]
    """
    return getattr(section.constructor, "sees_noise", True)


def takes_log(network: Any) -> bool:
    """Whether a network takes the logarithm of the time that it is given, so that this must be positive.

    Args:
      network: a module, or any function, which says so by a true attribute `takes_log`.

    Examples:
      >>> [models.takes_log(network) for network in (models.MLP(), models.UNet1d(), models.NCSNpp())]
      [True, True, False]
    """
    return bool(getattr(network, "takes_log", False))


def trainable_mask(params: Any) -> Any:
    """A tree of bools like `params`: False for the fixed Fourier frequencies, True for the rest.

    Gradients of the frequencies are zero, so Adam never moves them; give this as `mask` to weight decay.

    Examples:
      >>> params = {"dense": {"kernel": jnp.ones((4, 2))}, "embedding": {"frequencies": jnp.ones(4)}}
      >>> models.trainable_mask(params)
      {'dense': {'kernel': True}, 'embedding': {'frequencies': False}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) != "frequencies", params)


def count_parameters(params: Any) -> int:
    """Number of trainable parameters in a tree of arrays or of `jax.ShapeDtypeStruct`.

    Examples:
      >>> net = models.MLP(out_channels=2, width=8, depth=1)
      >>> shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))["params"]
      >>> models.count_parameters(shapes["dense_in"])  # 2 x 8 and 8
      24
    """
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(trainable_mask(params)), strict=True)
    return sum(math.prod(leaf.shape) for leaf, trainable in leaves if trainable)
