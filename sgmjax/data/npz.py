"""Arrays of an .npz file as a data set.

The file holds `x` (or `images`, `samples`, `x_train`) and perhaps `labels` (`label`, `y`, `y_train`); as held-out data
perhaps `x_test`, and `labels_test` (`y_test`, ...). Without them one example in twenty is held out, by a fixed rule.
`class_names` (text) says what the classes 0, 1, ... are called; without it each must be among the training labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sgmjax._files import read_arrays
from sgmjax._inputs import check_labels, shown
from sgmjax.data.base import DataError
from sgmjax.data.classes import checked_labels
from sgmjax.data.examples import as_examples
from sgmjax.data.memory import ArrayDataset, arrays

HELD_OUT = 20  # one example in twenty where the file has no held-out ones
_SPLIT_SEED = 0
_X = ("x", "images", "samples")
_LABELS = ("labels", "label", "y")


def load(path: str, split: str, *, hold_out: bool = True, flip: bool = False) -> ArrayDataset:
    """The training or held-out part of an .npz (or the array of an .npy, without labels).

    Args:
        path: the file.
        split: `train` or `eval`.
        hold_out: whether one example in twenty is held out where the file has no held-out ones; else all train.
        flip: as of `sgmjax.data.arrays`.

    Raises:
        InputError: a file that is no such archive. DataError: arrays that are no examples.
    """
    x, labels, held_out, names = _read(path, "data.path")
    if held_out is None and (hold_out or split == "eval"):
        mine = _held_out(len(x), path) == (split == "eval")
        parts = x[mine], labels if labels is None else labels[mine]
    else:
        parts = (x, labels) if split == "train" or held_out is None else held_out
    classes = None
    if labels is not None:
        _, classes, names = checked_labels(labels, len(x), None, names, shown(path))
    return arrays(*parts, name=f"{shown(path)} ({split})", num_classes=classes, class_names=names, flip=flip)


def load_given(path: str, split: str, num_classes: int | None = None, what: str = "--data") -> ArrayDataset:
    """The data of one command: `x_test` of a file if it has them, else all its `x` are held-out data.

    Args:
        path: the file.
        split: `train` or `eval`.
        num_classes: classes that the data are to have; None: labels do not matter.
        what: for messages.

    Raises:
        As `load`; no training part.
    """
    x, labels, held_out, names = _read(path, what)
    if split == "train" and held_out is None:
        raise DataError(f"{what}: {shown(path)} has no training part: give x with the training data, x_test held-out")
    if split == "eval" and held_out is not None:
        x, labels = held_out
    if num_classes is None or labels is None:
        labels = num_classes = names = None
    return arrays(x, labels, name=f"{shown(path)} ({split})", num_classes=num_classes, class_names=names)


def _read(path: str, what: str) -> tuple[np.ndarray, np.ndarray | None, Any, list[str] | None]:
    """x, labels, (x, labels) of held-out examples or None, and the names of the classes."""
    found = read_arrays(path, what)

    def one(names: tuple[str, ...], suffixes: tuple[str, ...]) -> np.ndarray | None:
        return next((found[n + s] for s in suffixes for n in names if n + s in found), None)

    x, labels = one(_X, ("", "_train")), one(_LABELS, ("", "_train"))
    x = found.get("") if x is None else x
    if x is None:
        have = ", ".join(map(shown, found)) or "none"
        raise DataError(f"{what}: {shown(path)} has no array x (nor {', '.join(_X[1:])}, x_train); it has {have}")
    x_test, labels_test = one(_X, ("_test",)), one(_LABELS, ("_test",))
    file = shown(path)
    if (labels is None) != (labels_test is None) and (x_test is not None or labels is None):
        has, lacks = ("labels_test", "labels") if labels is None else ("labels", "labels_test")
        raise DataError(f"{what}: {file} has {has} and no {lacks}; give both or neither")
    if x_test is None and labels_test is not None:
        raise DataError(f"{what}: {file} has labels_test and no x_test")
    x = as_examples(x, f"{file}: x")
    if labels is not None:
        check_labels(labels, None, f"{file}: labels", length=len(x))
    held_out = None if x_test is None else (as_examples(x_test, f"{file}: x_test"), labels_test)
    names = found.get("class_names")
    if names is None:
        return x, labels, held_out, None
    if labels is None or names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{what}: {file}: class_names must be text (classes,), and there must be labels")
    return x, labels, held_out, names.tolist()


def _held_out(num: int, path: str) -> np.ndarray:
    """Whether each example is held out, `(num,)` bool."""
    if num < 2:
        raise DataError(f"{shown(path)}: of one example none can be held out; give x_test, or data.eval_split=None")
    held_out = np.zeros(num, bool)
    held_out[np.random.default_rng(_SPLIT_SEED).permutation(num)[: max(1, num // HELD_OUT)]] = True
    return held_out
