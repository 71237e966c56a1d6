"""The embedded data set: scikit-learn's handwritten digits, real images that need no network.

`sklearn.datasets.load_digits` holds the 1,797 images of the test part of the UCI "Optical Recognition of Handwritten
Digits" set: 8 x 8, grey, ink bright on black, whole numbers 0 ... 16 (so 17 levels), about 180 of each digit.
"""

from __future__ import annotations

import numpy as np

from sgmjax._ranges import check_memory
from sgmjax.data.base import DataError
from sgmjax.data.images import resize_float
from sgmjax.data.memory import ArrayDataset

HELD_OUT = 6  # one example in six of every class
_SPLIT_SEED = 0


def load(split: str, *, image_size: int | None = None, flip: bool = False) -> ArrayDataset:
    """The digits as uint8 images.

    The levels 0 ... 16 become `round(255 v / 16)`, ties up: 0, 16, 32, 48, 64, 80, 96, 112, 128, 143, ..., 255. With
    `image_size` the exact values `255 v / 16` are resized (bicubic) and rounded once.

    The held-out split is fixed and stratified: of every digit, a sixth (rounded) chosen by a permutation drawn from
    `default_rng(0)`, 299 images; the other 1,498 train. Both keep scikit-learn's order.

    Args:
        split: `train` or `eval`.
        image_size: side of the images; None keeps 8.

    Raises:
        DataError: for another split, or if scikit-learn is missing.
    """
    if split not in ("train", "eval"):
        raise DataError(f"the digits have the splits 'train' and 'eval', not {split!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits need scikit-learn: pip install scikit-learn") from error
    pixels, label = load_digits(return_X_y=True)
    levels = np.asarray(pixels, np.float32).reshape(-1, 8, 8) * np.float32(255 / 16)
    label = np.asarray(label, np.int32)
    chosen = np.flatnonzero(_held_out(label) == (split == "eval"))
    levels, label = levels[chosen], label[chosen]
    if image_size is not None:
        check_memory("data.image_size", len(levels), (image_size, image_size), fix="give a smaller one")
    if image_size is not None and image_size != levels.shape[1]:
        levels = np.stack([resize_float(image, image_size) for image in levels])
    x = np.floor(np.clip(levels, 0, 255) + 0.5).astype(np.uint8)[..., None]
    return ArrayDataset(f"digits ({split})", x, label, class_names=[str(digit) for digit in range(10)], flip=flip)


def _held_out(label: np.ndarray) -> np.ndarray:
    """Whether each example is held out, `(n,)` bool."""
    rng = np.random.default_rng(_SPLIT_SEED)
    held_out = np.zeros(len(label), bool)
    for digit in range(10):
        members = np.flatnonzero(label == digit)
        held_out[rng.permutation(members)[: round(len(members) / HELD_OUT)]] = True
    return held_out
