"""What a user hands over: arrays, labels, numbers, text. One check of each kind; files are in `_files`.

Everything that cannot be used is an `InputError`: one line that names the thing, what is wrong with it (the first place
that is), and the fix. The errors of settings, data, run folders and command lines are kinds of it, so that a command
can tell a mistake of the user's from one of the library's.

Imports nothing of the project, and JAX not at all: it stands below every other module.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

MAX_SEED = 2**32 - 1  # without 64-bit integers JAX keeps no more of a seed: larger ones would draw the same numbers


class InputError(ValueError):
    """Something that was handed over cannot be used. The message is one line: the thing, what is wrong, and the fix."""


# --------------------------------------------------------------------------------------------------------------- arrays
def check_numbers(
    array: Any, what: str, *, low: float | None = None, high: float | None = None, integers: bool = False
) -> None:
    """Checks that an array holds real, finite numbers within bounds.

    Args:
        array: NumPy array, or what has `dtype` and `shape` and becomes one; traced arrays pass.
        what: for messages.
        low, high: bounds, both allowed.
        integers: demand an integer dtype.

    Raises:
        InputError: naming the first element that is not, by its index.
    """
    if is_traced(array):
        return
    check_unmasked(array, what)
    array = np.asarray(array)
    kinds = "iu" if integers else "iuf"
    if array.dtype.kind not in kinds and not (str(array.dtype) == "bfloat16" and not integers):
        raise InputError(f"{what}: must be {'integers' if integers else 'real numbers'}, got {array.dtype}")
    if array.dtype.kind not in "iu":
        _refuse_first(~np.isfinite(np.asarray(array, np.float32 if array.itemsize < 4 else array.dtype)), array, what)
    if low is not None:
        _refuse_first(array < low, array, what, f"the least is {low:g}")
    if high is not None:
        _refuse_first(array > high, array, what, f"the largest is {high:g}")


def check_unmasked(array: Any, what: str) -> None:
    """Checks that nothing is masked in a masked array, or in a list of them: conversion would show what lies beneath.

    Raises:
        InputError: naming the first element that is.
    """
    if isinstance(array, list | tuple):
        for i, one in enumerate(array):
            check_unmasked(one, f"{what}[{i}]")
    elif isinstance(array, np.ma.MaskedArray):
        rule = "leave such examples out, or fill them (numpy.ma.filled)"
        _refuse_first(np.ma.getmaskarray(array), array, what, rule)


def check_network_range(x0: Any) -> None:
    """Checks that data are as a network sees them, floats; bytes of images are not. Traced arrays too.

    Raises:
        InputError: of whole numbers.
    """
    kind = np.dtype(x0.dtype)
    if kind.kind in "iub":
        raise InputError(
            f"x0 is {kind}: give floats in the network's range; data.to_float(x0, True) makes them of images"
        )


def check_floats(array: Any, what: str) -> None:
    """Checks that an array has a floating type; traced arrays too.

    Raises:
        InputError: of whole numbers.
    """
    kind = np.dtype(array.dtype)
    if kind.kind in "iub":
        raise InputError(f"{what} is {kind}: must be floats; convert them, as by {what}.astype(np.float32)")


def _refuse_first(wrong: np.ndarray, array: np.ndarray, what: str, rule: str = "it must be finite") -> None:
    if not wrong.any():
        return
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    count = int(wrong.sum())
    more = f" ({count:,} of {wrong.size:,} values are wrong)" if count > 1 else ""
    index = f"[{', '.join(map(str, place))}]" if place else ""
    value = "masked" if np.ma.is_masked(array[place]) else array[place]
    raise InputError(f"{what}{index} is {value}: {rule}{more}")


def check_labels(labels: Any, num_classes: int | None, what: str = "labels", *, length: int | None = None) -> None:
    """Checks that labels are integers 0 ... num_classes - 1; traced arrays pass, whose values nobody knows yet.

    Args:
        labels: any shape, usually (batch,).
        num_classes: how many classes there are; None: not known, so only that none is negative.
        what: for messages.
        length: demand the shape (length,).

    Raises:
        InputError: another dtype or shape, or a label out of range, naming the first.
    """
    if length is not None and np.shape(labels) != (length,):
        raise InputError(f"{what}: have shape {np.shape(labels)}, expected ({length},), one for each example")
    dtype = np.dtype(labels.dtype) if hasattr(labels, "dtype") else np.asarray(labels).dtype
    if dtype.kind not in "iu":
        raise InputError(f"{what}: must be integers, got {dtype}; convert them, as by labels.astype(np.int32)")
    if is_traced(labels):
        return
    check_unmasked(labels, what)
    values = np.asarray(labels)
    high = np.inf if num_classes is None else num_classes - 1
    wrong = (values < 0) | (values > high)
    if wrong.any():
        place = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        index = f"[{', '.join(map(str, place))}]" if place else ""
        rule = "none may be negative" if num_classes is None else f"{num_classes} classes are 0 to {num_classes - 1}"
        raise InputError(f"{what}{index} is {values[place]}: {rule}; number the classes from 0")


def is_traced(value: Any) -> bool:
    """Whether a value is an array under construction by a JAX transformation."""
    return any(cls.__name__ == "Tracer" for cls in type(value).__mro__)


# ----------------------------------------------------------------------------------------------------------------- text
def shown(value: Any, limit: int = 200) -> str:
    """Text from outside as it may stand in a message: one line, printable, not too long.

    Bytes of a file name that are not UTF-8 are written as \\xNN.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an error says, in one line; its type's name where it says nothing."""
    return shown(" ".join(str(error).split()), limit) or type(error).__name__


def reason(error: BaseException) -> str:
    """As `one_line`, without the path that an OSError repeats."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error, 120)
