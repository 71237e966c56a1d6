"""What `python -m sgmjax.sample` starts from: masks of inpainting, measurements, and examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._files import file_name, read_array
from sgmjax._inputs import InputError, check_labels, check_numbers, shown
from sgmjax.config import ConfigError
from sgmjax.data import DataError, Dataset, load, to_float
from sgmjax.data.classes import to_labels
from sgmjax.data.examples import check_floats
from sgmjax.samplers import measurements
from sgmjax.samplers.inpainting import check_mask
from sgmjax.samplers.measurements import Operator
from sgmjax.training.load import LoadedRun


def read_mask(word: str, event_shape: tuple[int, ...]) -> np.ndarray:
    """The mask, 1 where the input is kept.

    Args:
        word: "half" keeps the left half (of vectors the first coordinates, of signals the first steps, of volumes the
            first slices), "center" all but the middle, else the path of an .npz with `mask`, of zeros and ones, of the
            shape of an example, or without its channels.
        event_shape: of the data.

    Raises:
        ConfigError: no such file or array, or a mask that does not fit.
    """
    space = event_shape[:-1]
    mask = np.zeros((*space, 1) if space else event_shape, np.float32)
    if word == "half":
        axis = 1 if len(space) == 2 else 0
        mask[(slice(None),) * axis + (slice(mask.shape[axis] // 2),)] = 1
        return mask
    if word == "center":
        if not space:
            raise ConfigError("--inpaint=center: needs images, signals or volumes; use half")
        mask[:] = 1
        mask[tuple(slice(side // 4, side - side // 4) for side in space)] = 0
        return mask
    if not word.endswith((".npz", ".npy")):
        raise ConfigError(f"--inpaint: half, center, or an .npz with a mask; got {shown(word)!r}")
    mask = read_array(word, ("mask",), "--inpaint")
    check_numbers(mask if mask.dtype != bool else mask.astype(np.uint8), "--inpaint: mask", low=0, high=1)
    mask = mask.astype(np.float32)
    if space and mask.shape == space:
        mask = mask[..., None]
    try:
        check_mask(jnp.asarray(mask), event_shape)
    except InputError as error:
        raise ConfigError(f"--inpaint: {error}") from None
    return mask


OPERATORS = "super_resolution:4, blur:1.5, random:0.1, fourier:0.25, colorize, inpaint:half"


def read_operator(word: str, event_shape: tuple[int, ...]) -> tuple[Operator, str]:
    """What --inverse names: what was measured of an example, and a name of it for files.

    Args:
        word: "super_resolution:F" means over blocks of F; "blur:S" a Gaussian of S elements; "random:P" a random share
            P of the elements (of images with all their channels), "fourier:P" of the Fourier coefficients, both of seed
            0; "colorize" the mean of the channels; "inpaint:M" the mask M of `read_mask`.
        event_shape: of the data.

    Raises:
        ConfigError: no such operator, or one that does not fit the data.
    """
    name, _, text = word.partition(":")
    space = event_shape[:-1]
    draws, number = np.random.default_rng(0), 0.0
    if name in ("super_resolution", "blur", "random", "fourier"):
        try:
            number = float(text)
        except ValueError:
            raise ConfigError(f"--inverse: {shown(word)!r}: {name} of what? as {OPERATORS}") from None
        if name in ("random", "fourier") and not 0 < number < 1:
            raise ConfigError(f"--inverse: {shown(word)}: the share must lie between 0 and 1")
    if name in ("super_resolution", "blur", "fourier", "colorize") and not space:
        raise ConfigError(f"--inverse: {name} needs images, signals or volumes; the data of this run are vectors")
    try:
        if name == "super_resolution":
            operator = measurements.super_resolution(_whole(number))
        elif name == "blur":
            operator = measurements.blur(number)
        elif name == "random":
            shape = (*space, 1) if space else event_shape
            operator = measurements.inpainting(draws.permutation(_share(number, shape)).reshape(shape))
        elif name == "fourier":
            operator = measurements.fourier(draws.permutation(_share(number, space)).reshape(space))
        elif name == "colorize" and not text:
            if event_shape[-1] != 3:
                raise ConfigError("--inverse: colorize needs images of three channels")
            operator = measurements.colorization()
        elif name == "inpaint":
            operator = measurements.inpainting(read_mask(text, event_shape))
        else:
            raise ConfigError(f"--inverse: {shown(word)!r} is no measurement; there are {OPERATORS}")
        jax.eval_shape(operator, jax.ShapeDtypeStruct(event_shape, np.float32))
    except InputError as error:
        raise ConfigError(f"--inverse: {error}".replace("--inverse: --inverse", "--inverse")) from None
    return operator, file_name([name, *([text] if "/" not in text and text else [])])


def _whole(number: float) -> int:
    if number != int(number):
        raise ConfigError(f"--inverse: super_resolution:{number:g}: the factor must be a whole number")
    return int(number)


def _share(share: float, shape: tuple[int, ...]) -> np.ndarray:
    """Ones for so many of all elements, at least one, and zeros."""
    size = int(np.prod(shape))
    return (np.arange(size) < max(1, round(share * size))).astype(np.float32)


def read_inputs(
    word: str, run: LoadedRun, num: int, held_out: Callable[[], Dataset] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """`num` inputs in the network's range, (num, *event) float32, in turn, and their labels if there are any.

    Args:
        word: "test": the held-out data; else the path of an .npz with `samples` or `x`, uint8 or in the network's
            range, and perhaps `labels`, numbers or names of classes.
        held_out: gives the held-out data; None: those of the run's config.

    Raises:
        ConfigError: no such file, or data of another shape. DataError: no held-out data, or of other classes.
        InputError: labels that are no classes of the run.
    """
    task = run.task
    if word == "test":
        dataset: Any = load(run.config.data, "eval") if held_out is None and run.config else None
        dataset = dataset if held_out is None else held_out()
        batch = dataset.read(np.arange(min(num, dataset.num_examples)))
        x, labels = batch["x"], batch["label"] if dataset.num_classes is not None else None
    elif word.endswith((".npz", ".npy")):
        x = read_array(word, ("samples", "x"), "--input")
        labels = read_array(word, ("labels",), "--input", required=False)
        check_numbers(x, "--input: x")
        labels = None if task.num_classes is None else _input_labels(labels, len(x), task)
    else:
        raise ConfigError(f"--input: test, or an .npz of images; got {shown(word)!r}")
    if x.shape[1:] != task.event_shape or not len(x):
        raise ConfigError(f"--input: {shown(word)} has {x.shape}, and this run makes {task.event_shape}")
    try:
        x = np.asarray(to_float(x, task.centered))
    except DataError as error:
        raise ConfigError(f"--input: {error}") from None
    check_floats(x, task.centered if len(task.event_shape) == 3 else None, "--input: x")
    x = np.asarray(x, np.float32)
    turn = np.arange(num) % len(x)
    return x[turn], None if labels is None else np.asarray(labels, np.int32)[turn]


def _input_labels(labels: Any, num: int, task: Any) -> np.ndarray | None:
    """The classes of inputs, (num,) int32, from their numbers or names."""
    if labels is None:
        return None
    assert task.num_classes is not None
    if labels.dtype.kind == "U":
        if labels.shape != (num,):
            raise InputError(f"--input: labels have shape {labels.shape}, expected ({num},), one for each example")
        return to_labels(labels.tolist(), task.num_classes, task.class_names, "--input: labels")
    check_labels(labels, task.num_classes, "--input: labels", length=num)
    return labels.astype(np.int32)
