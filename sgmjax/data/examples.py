"""What arrays of examples may be: how many axes, of which type, in which range. Everything else is refused by name.

| axes | what | numbers |
| --- | --- | --- |
| `(n, D)` | vectors | floats in units of their own, best near unit variance; or uint8 |
| `(n, T, C)` | signals of T steps and C channels | floats in units of their own |
| `(n, H, W, C)` | images | uint8, or floats in the network's range: [-1, 1], or [0, 1] with `data.centered=False` |
| `(n, D, H, W, C)` | volumes | floats in units of their own; or uint8 |

uint8 stands for the 256 levels of the network's range.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sgmjax._inputs import InputError, check_numbers, check_unmasked
from sgmjax.data.base import DataError, Dataset

KINDS = {1: "vectors", 2: "signals", 3: "images", 4: "volumes"}  # by the axes of one example
PROBES = 32  # examples looked at of a set of floats that is not in memory
LARGEST = 1e6  # of numbers that are no images: beyond, float32 has no digits left for noise of size 1
_SLACK = 1e-5  # rounding of whoever scaled the images
_MIN_SIDE = 8  # below it (n, 3, H, W) may be images of three rows


def as_examples(x: Any, name: str) -> np.ndarray:
    """An array, or nested lists that form one, as uint8 or float32 of one of the forms above.

    Args:
        x: NumPy or JAX array or what converts to one; floats of any precision.
        name: for messages.

    Raises:
        DataError: lists of different lengths, other axes (channels first, no channel axis), integers that are not
            uint8, numbers that are masked or not finite in float32; one line with the place and the fix.
    """
    try:
        check_unmasked(x, name)
    except InputError as error:
        raise DataError(str(error)) from None
    x = np.asarray(x) if hasattr(x, "dtype") else _one_array(x, name)
    _check_axes(x, name)
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind in "iub":
        raise DataError(f"{name}: {x.dtype} are neither 8-bit levels nor floats; {_integer_fix(x)}")
    largest = float(np.finfo(np.float32).max) if x.dtype.itemsize > 4 else None
    try:
        check_numbers(x, name, low=None if largest is None else -largest, high=largest)
    except InputError as error:
        raise DataError(f"{error}; leave such examples out, or mend them") from None
    return x.astype(np.float32, copy=False)


def _one_array(x: Any, name: str) -> np.ndarray:
    """Nested lists as an array; raises DataError naming the first example of another shape."""
    try:
        array = np.asarray(x)
        if array.dtype != object:
            return array
    except ValueError:
        pass
    shapes = []
    for i, example in enumerate(x if isinstance(x, list | tuple) else ()):
        try:
            shapes.append(np.shape(example))
        except ValueError:
            raise DataError(f"{name}: example {i} is ragged; all examples must have one shape") from None
        if shapes[i] != shapes[0]:
            raise DataError(
                f"{name}: example {i} has shape {shapes[i]} and example 0 {shapes[0]}; all must have one shape"
            )
    raise DataError(f"{name}: expected an array of numbers, or lists that form one, got {type(x).__name__}")


def _check_axes(x: np.ndarray, name: str) -> None:
    if x.ndim - 1 not in KINDS:
        fix = "; single numbers are vectors of one, x[:, None]" if x.ndim == 1 else ""
        raise DataError(
            f"{name}: expected vectors (n, D), signals (n, T, C), images (n, H, W, C) or volumes (n, D, H, W, C), got "
            f"{x.dtype} {x.shape}{fix}"
        )
    if len(x) and 0 in x.shape:
        raise DataError(f"{name}: {x.shape}: an axis of length 0, so nothing to learn")
    if x.ndim == 3 and x.dtype == np.uint8:
        raise DataError(
            f"{name}: uint8 {x.shape} has no channel axis: grey images are x[..., None]; an 8-bit signal is given as "
            "floats, x / 127.5 - 1"
        )
    if x.ndim == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= _MIN_SIDE:
        also = ", or a signal as x[:, 0]" if x.shape[1] == 1 else ""
        raise DataError(f"{name}: {x.shape} has its channels first, and they come last: x.transpose(0, 2, 3, 1){also}")


def _integer_fix(x: np.ndarray) -> str:
    if x.dtype.kind == "b":
        return "for black and white give x.astype(np.uint8) * 255"
    if x.size and x.min() >= 0 and x.max() <= 255:
        return "if these are levels 0 to 255 give x.astype(np.uint8), else x.astype(np.float32)"
    return "give x.astype(np.float32), scaled to about unit variance (images to [-1, 1])"


def check_values(dataset: Dataset, centered: bool) -> None:
    """Checks that floats are finite, and those of images in the network's range; of sets on disk a few examples.

    Args:
        dataset: any.
        centered: whether the range is [-1, 1], else [0, 1].

    Raises:
        DataError: naming the first value that is not, and the fix.
    """
    if dataset.discrete:
        return
    probes = np.unique(np.linspace(0, dataset.num_examples - 1, PROBES).astype(int))
    x = dataset.arrays()["x"] if dataset.in_memory else dataset.read(probes)["x"]
    check_floats(x, centered if dataset.is_image else None, dataset.name)


def check_floats(x: np.ndarray, centered: bool | None, name: str) -> None:
    """Checks that floats are finite and in the network's range.

    Args:
        x: (num, *event).
        centered: whether the range of images is [-1, 1], else [0, 1]; None: no images, whose range is free as long as
            float32 still resolves the noise that is added.
        name: for messages.

    Raises:
        DataError: naming the first value that is not, and the fix.
    """
    try:
        check_numbers(x, name)
        if centered is None:
            check_numbers(x, name, low=-LARGEST, high=LARGEST)
    except InputError as error:
        raise DataError(f"{error}{'; standardise the data' if 'finite' not in str(error) else ''}") from None
    if centered is None:
        return
    low, high = (-1.0 if centered else 0.0), 1.0
    if x.min() >= low - _SLACK and x.max() <= high + _SLACK:
        return
    if not centered and x.min() >= -1 and x.max() <= 1:
        fix = "set data.centered=True, or give (x + 1) / 2"
    elif x.min() >= 0 and x.max() > 2:
        fix = f"give {'x / 127.5 - 1' if centered else 'x / 255'}, or uint8"
    else:
        fix = "scale or clip them"
    try:
        check_numbers(x, name, low=low, high=high)
    except InputError as error:
        raise DataError(f"{error}; float images are in [{low:g}, 1] (data.centered={centered}): {fix}") from None
