"""From the `data` section of a configuration to a `Dataset`; and between uint8 images and what networks see."""

from __future__ import annotations

import difflib
from typing import Any, Literal, Protocol

import numpy as np

from sgmjax.data import binarize, digits, npz, toy
from sgmjax.data.base import DataError, Dataset
from sgmjax.data.folder import FolderSource
from sgmjax.data.images import Range
from sgmjax.data.source import as_dataset
from sgmjax.data.tfds import NotPreparedError, TfdsSource, import_tfds


class _Settings(Protocol):
    """What is read of the configuration (see `DataConfig` in `sgmjax.config`)."""

    @property
    def name(self) -> str: ...
    @property
    def data_dir(self) -> str | None: ...
    @property
    def path(self) -> str | None: ...
    @property
    def split(self) -> str: ...
    @property
    def eval_split(self) -> str | None: ...
    @property
    def image_size(self) -> int | None: ...
    @property
    def range(self) -> tuple[int, ...] | None: ...
    @property
    def flip(self) -> bool: ...
    @property
    def in_memory(self) -> bool | None: ...
    @property
    def memory_limit_gb(self) -> float: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def binarize(self) -> str: ...


def load(config: _Settings, split: Literal["train", "eval"] = "train") -> Dataset:
    """The data set that `config` names.

    `digits` is `sgmjax.data.digits`; the names of `sgmjax.data.toy` are generated 2-D sets; `folder` reads the images
    below `data_dir`; `npz` is the arrays of the file `path`; every other name is a TFDS image set, already prepared in
    `data_dir`. Images are cut to their largest centred square and resized if `image_size` is set, arrays never. Only
    the training part is ever flipped.

    Args:
        config: the `data` section.
        split: `train` or `eval`; for TFDS sets these are the splits `config.split` and `config.eval_split`.

    Returns:
        The data set. Small ones are loaded by now, larger ones read through grain (`config.in_memory`).

    Raises:
        DataError: one line that says what is wrong and what to do: unknown name, data set not prepared, unknown
            split, no `eval_split`, folder missing or empty, unreadable images, images of different sizes.
    """
    if split not in ("train", "eval"):
        raise DataError(f"split must be 'train' or 'eval', got {split!r}")
    if split == "eval" and config.eval_split is None:
        raise DataError("data.eval_split is None: no held-out data; name a split to evaluate on")
    dataset = _load(config, split)
    return binarize.static(dataset, split) if config.binarize == "static" else dataset


def _load(config: _Settings, split: Literal["train", "eval"]) -> Dataset:
    flip = config.flip and split == "train"
    value_range = _value_range(config)
    if config.name == "digits":
        return digits.load(split, image_size=config.image_size, flip=flip)
    if config.name in toy.NAMES:
        return toy.load(config.name, split, num_samples=config.num_samples)
    if config.name == "npz":
        if config.path is None:
            raise DataError("data.name='npz' needs data.path, the file of arrays: --config.data.path=FILE.npz")
        return npz.load(config.path, split, hold_out=config.eval_split is not None, flip=flip)
    if config.name == "folder":
        if config.data_dir is None:
            raise DataError("data.name='folder' needs data.data_dir, the folder that holds the images")
        source = FolderSource(
            config.data_dir,
            split,
            train_split=config.split,
            eval_split=config.eval_split,
            one_size=config.image_size is None,
            value_range=value_range,
        )
    else:
        tfds_split = config.split if split == "train" else config.eval_split
        assert tfds_split is not None
        try:
            source = TfdsSource(config.name, tfds_split, config.data_dir, value_range=value_range)
        except NotPreparedError:
            _check_name(config.name)
            raise
    return as_dataset(
        source,
        image_size=config.image_size,
        flip=flip,
        in_memory=config.in_memory,
        memory_limit_gb=config.memory_limit_gb,
    )


def _value_range(config: _Settings) -> Range | None:
    if config.range is None:
        return None
    if config.name in ("digits", "npz", *toy.NAMES):
        raise DataError(f"data.range: is for images of more than 8 bits, which {config.name} has not; leave it out")
    if len(config.range) != 2 or config.range[0] >= config.range[1]:
        raise DataError(f"data.range: must be two values, the lower first, as (0, 4095); got {config.range}")
    return config.range[0], config.range[1]


def _check_name(name: str) -> None:
    """Raises DataError, listing what there is, unless TFDS could prepare a set of this name."""
    available = import_tfds().list_builders(with_community_datasets=False)
    if name.split("/")[0].split(":")[0] in available:
        return
    own = ("digits", *toy.NAMES, "folder", "npz")
    close = difflib.get_close_matches(name, [*own, *available], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise DataError(
        f"unknown data set {name!r}{hint}; there are {', '.join(own)}, and the TFDS image sets "
        "(python -m sgmjax.data.prepare --list)"
    )


def to_float(x: Any, centered: bool) -> Any:
    """uint8 images as float32 in the network's range; floats pass unchanged.

    Args:
        x: NumPy or JAX array, also traced.
        centered: the range is [-1, 1] (`x / 127.5 - 1`) if true, else [0, 1] (`x / 255`).

    Raises:
        DataError: for other dtypes.
    """
    if np.issubdtype(x.dtype, np.uint8):
        return x.astype(np.float32) / 127.5 - 1.0 if centered else x.astype(np.float32) / 255.0
    if _is_float(x):
        return x
    raise DataError(f"images must be uint8 or floats, got {x.dtype}")


def to_uint8(x: Any, centered: bool) -> Any:
    """Images in the network's range as uint8: the nearest of the 256 levels, ties up; values outside are clipped.

    The inverse of `to_float`, exactly, for all 256 levels; uint8 passes unchanged, NaN becomes 0.

    Args:
        x: NumPy or JAX array, also traced.
        centered: whether x is in [-1, 1], else in [0, 1].

    Raises:
        DataError: for other dtypes.
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
