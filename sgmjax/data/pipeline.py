"""From the `data` section of a configuration to a `Dataset`; and between uint8 images and what networks see."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from sgmjax._types import AnyArray
from sgmjax.data import binarize, digits, npz, toy
from sgmjax.data.base import DataError, Dataset
from sgmjax.data.folder import FolderSource
from sgmjax.data.idx import IdxSource
from sgmjax.data.images import Range
from sgmjax.data.settings import DataSettings
from sgmjax.data.source import as_dataset
from sgmjax.data.tfds import NotPreparedError, TfdsSource, import_tfds
from sgmjax.spec import read


def load(data: str | DataSettings, split: Literal["train", "eval"] = "train", **settings: Any) -> Dataset:
    """A data set by its name: `load("mnist", data_dir="~/data", image_size=32)`.

    The names are those of `SOURCES`: `digits` is `sgmjax.data.digits`; those of `sgmjax.data.toy` are generated 2-D
    sets; `folder` reads the images below `data_dir`, `idx` MNIST's own files there; `npz` is the arrays of the file
    `path`. Every other name is a TFDS image set, already prepared in `data_dir`. Images are cut to their largest
    centred square and resized if `image_size` is set, arrays never. Only the training part is ever flipped.

    Args:
        data: the name, or all settings at once, the section `data` of a configuration.
        split: `train` or `eval`; for TFDS sets these are the splits `settings.split` and `settings.eval_split`.
        settings: of `DataSettings`, where `data` is a name.

    Returns:
        The data set. Small ones are loaded by now, larger ones read through grain (`in_memory`).

    Raises:
        DataError: one line that says what is wrong and what to do: unknown name, data set not prepared, unknown
            split, no `eval_split`, folder missing or empty, unreadable images, images of different sizes.

    Examples:
        >>> digits = data.load("digits", "train")
        >>> digits.num_examples, digits.shape, digits.num_classes
        (1498, (8, 8, 1), 10)
        >>> data.load("ring", "eval", num_samples=100).shape
        (2,)
    """
    config = read(DataSettings, {"name": data, **settings}, "data") if isinstance(data, str) else data
    if split not in ("train", "eval"):
        raise DataError(f"split must be 'train' or 'eval', got {split!r}")
    if split == "eval" and config.eval_split is None:
        raise DataError("data.eval_split is None: no held-out data; name a split to evaluate on")
    dataset = SOURCES.get(config.name, TFDS).load(config, split)
    return binarize.static(dataset, split) if config.binarize == "static" else dataset


# -------------------------------------------------------------------------------------------------------------- sources
class Source(NamedTuple):
    """Where data come from.

    Attributes:
        load: (settings, "train" or "eval") -> the data set.
        reads: the settings that are its own; `name`, `eval_split`, `centered` and what is done to images afterwards
            are anybody's.
        what: what it holds, in words.
        holds_out: how it holds data out by itself, in words: then `eval_split` is 'test' or None. None: by its splits.
    """

    load: Callable[[DataSettings, Literal["train", "eval"]], Dataset]
    reads: tuple[str, ...]
    what: str
    holds_out: str | None = None


def _digits(settings: DataSettings, split: Literal["train", "eval"]) -> Dataset:
    _value_range(settings)
    return digits.load(split, image_size=settings.image_size, flip=settings.flip and split == "train")


def _toy(settings: DataSettings, split: Literal["train", "eval"]) -> Dataset:
    _value_range(settings)
    return toy.load(settings.name, split, num_samples=settings.num_samples)


def _npz(settings: DataSettings, split: Literal["train", "eval"]) -> Dataset:
    _value_range(settings)
    if settings.path is None:
        raise DataError("data.name='npz' needs data.path, the file of arrays: --config.data.path=FILE.npz")
    hold_out, flip = settings.eval_split is not None, settings.flip and split == "train"
    return npz.load(settings.path, split, hold_out=hold_out, flip=flip)


def _folder(settings: DataSettings, split: Literal["train", "eval"]) -> Dataset:
    value_range = _value_range(settings)
    if settings.data_dir is None:
        raise DataError("data.name='folder' needs data.data_dir, the folder that holds the images")
    source = FolderSource(
        settings.data_dir,
        split,
        train_split=settings.split,
        eval_split=settings.eval_split,
        one_size=settings.image_size is None,
        value_range=value_range,
    )
    return _images(source, settings, split)


def _idx(settings: DataSettings, split: Literal["train", "eval"]) -> Dataset:
    _value_range(settings)
    if settings.data_dir is None:
        raise DataError("data.name='idx' needs data.data_dir, the folder that holds train-images-idx3-ubyte.gz")
    of_split = settings.split if split == "train" else settings.eval_split
    assert of_split is not None
    return _images(IdxSource(settings.data_dir, of_split), settings, split)


def _tfds(settings: DataSettings, split: Literal["train", "eval"]) -> Dataset:
    value_range = _value_range(settings)
    tfds_split = settings.split if split == "train" else settings.eval_split
    assert tfds_split is not None
    try:
        source = TfdsSource(settings.name, tfds_split, settings.data_dir, value_range=value_range)
    except NotPreparedError:
        _check_name(settings.name)
        raise
    return _images(source, settings, split)


def _images(source: Any, settings: DataSettings, split: Literal["train", "eval"]) -> Dataset:
    return as_dataset(
        source,
        image_size=settings.image_size,
        flip=settings.flip and split == "train",
        in_memory=settings.in_memory,
        memory_limit_gb=settings.memory_limit_gb,
    )


_OF_IMAGES = ("data_dir", "split", "image_size", "in_memory", "memory_limit_gb", "flip")
SOURCES: dict[str, Source] = {
    "digits": Source(_digits, ("image_size", "flip"), "digits", "which hold out 'test'"),
    **{name: Source(_toy, ("num_samples",), "generated points", "which hold out 'test'") for name in toy.NAMES},
    "folder": Source(_folder, _OF_IMAGES, "a folder of images"),
    "idx": Source(_idx, _OF_IMAGES, "MNIST's own files"),
    "npz": Source(_npz, ("path", "flip"), "arrays", "which have 'test' (x_test, or else one example in twenty)"),
}
TFDS = Source(_tfds, _OF_IMAGES, "a set of images")  # every other name


def _value_range(config: DataSettings) -> Range | None:
    if config.range is None:
        return None
    if config.name in SOURCES and config.name != "folder":
        raise DataError(f"data.range: is for images of more than 8 bits, which {config.name} has not; leave it out")
    if len(config.range) != 2 or config.range[0] >= config.range[1]:
        raise DataError(f"data.range: must be two values, the lower first, as (0, 4095); got {config.range}")
    return config.range[0], config.range[1]


def _check_name(name: str) -> None:
    """Raises DataError, listing what there is, unless TFDS could prepare a set of this name."""
    available = import_tfds().list_builders(with_community_datasets=False)
    if name.split("/")[0].split(":")[0] in available:
        return
    own = tuple(SOURCES)
    close = difflib.get_close_matches(name, [*own, *available], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise DataError(
        f"unknown data set {name!r}{hint}; there are {', '.join(own)}, and the TFDS image sets "
        "(python -m sgmjax.data.prepare --list)"
    )


def to_float(x: Shaped[AnyArray, " *shape"], centered: bool) -> Float[AnyArray, " *shape"]:
    """uint8 images as float32 in the network's range; floats pass unchanged.

    Args:
        x: NumPy or JAX array, also traced.
        centered: the range is [-1, 1] (`x / 127.5 - 1`) if true, else [0, 1] (`x / 255`).

    Raises:
        DataError: for other dtypes.

    Examples:
        >>> data.to_float(np.array([0, 255], np.uint8), True).tolist()
        [-1.0, 1.0]
    """
    if np.issubdtype(x.dtype, np.uint8):
        return x.astype(np.float32) / 127.5 - 1.0 if centered else x.astype(np.float32) / 255.0
    if _is_float(x):
        return x
    raise DataError(f"images must be uint8 or floats, got {x.dtype}")


def to_uint8(x: Shaped[AnyArray, " *shape"], centered: bool) -> UInt8[AnyArray, " *shape"]:
    """Images in the network's range as uint8: the nearest of the 256 levels, ties up; values outside are clipped.

    The inverse of `to_float`, exactly, for all 256 levels; uint8 passes unchanged, NaN becomes 0.

    Args:
        x: NumPy or JAX array, also traced.
        centered: whether x is in [-1, 1], else in [0, 1].

    Raises:
        DataError: for other dtypes.

    Examples:
        >>> data.to_uint8(np.array([-1.0, 0.0, 1.0, 1.1]), True).tolist()
        [0, 128, 255, 255]
    """
    if np.issubdtype(x.dtype, np.uint8):
        return x
    if not _is_float(x):
        raise DataError(f"images must be uint8 or floats, got {x.dtype}")
    if isinstance(x, np.ndarray):
        xp: Any = np
    else:
        import jax.numpy as xp
    x = x.astype(np.float32)
    x = (x + 1.0) * 127.5 if centered else x * 255.0
    x = xp.nan_to_num(x, nan=0.0, posinf=255.0, neginf=0.0)
    return xp.floor(xp.clip(x, 0.0, 255.0) + 0.5).astype(np.uint8)


def _is_float(x: Any) -> bool:
    """Also for bfloat16, which NumPy does not count as floating."""
    return np.issubdtype(x.dtype, np.floating) or str(x.dtype) == "bfloat16"
