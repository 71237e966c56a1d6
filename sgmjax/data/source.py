"""Decoded images one by one, and how they become a `Dataset`: loaded once when they fit in memory, else through grain.

`ImageSource` is what the readers of TFDS sets and of image folders provide; everything about size, memory and flips
is decided here, once for both.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from sgmjax._ranges import check_memory
from sgmjax.data.base import Batch, DataError, Dataset
from sgmjax.data.images import resize
from sgmjax.data.memory import ArrayDataset

CHUNK = 256  # images decoded by one task while loading
PROBES = 32  # images looked at before a set is read from disk lazily


class ImageSource(Protocol):
    """Random access to decoded images of any size."""

    name: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    channels: int | None  # of all images: 1, grey, or 3; None: not known, as many as the images turn out to have

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        """uint8 `(H, W, C)` images, C 1 or 3, as stored, and labels: 0 where there are no classes, -1 of an example
        without one."""
        ...

    def where(self, index: int) -> str:
        """Names one image in messages."""
        ...


def as_dataset(
    source: ImageSource,
    *,
    image_size: int | None = None,
    flip: bool = False,
    in_memory: bool | None = None,
    memory_limit_gb: float = 2.0,
) -> Dataset:
    """A data set of the images of `source`, all of one shape: grey images among colour ones become RGB.

    A set with classes of which no example has a label (the test part of some TFDS sets) is a set without classes.

    Args:
        image_size: every image is cut to its largest centred square and resized to this side (bicubic, antialiased).
            None keeps the images, which must then have one size.
        flip: flip training batches left to right with probability 1/2.
        in_memory: True loads all images now, False reads them from disk as they are needed, None loads them when
            their decoded size is at most `memory_limit_gb` (1e9 bytes).

    Raises:
        DataError: for a set that is empty, or has different sizes and no `image_size`; an example without a label
            among others with one.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"data.image_size must be at least 1, got {image_size}")
    num = len(source)
    if num < 1:
        raise DataError(f"{source.name}: no examples; check the split")
    probes = [int(i) for i in np.unique(np.linspace(0, num - 1, PROBES).astype(int))]
    probed = source.read(probes)
    channels = source.channels or max(image.shape[-1] for image, _ in probed)
    side = (image_size, image_size) if image_size is not None else probed[0][0].shape[:2]
    shape = (*side, channels)
    labelled = source.num_classes is not None and any(label >= 0 for _, label in probed)
    size_gb = num * int(np.prod(shape)) / 1e9
    if in_memory is None:
        in_memory = size_gb <= memory_limit_gb
    if in_memory:
        check_memory("data.in_memory", num, shape, itemsize=1, fix="set it to False, or a smaller data.image_size")
        try:
            x, label = _load(source, shape, image_size, labelled)
        except _ColourError:
            if source.channels is not None:
                raise
            x, label = _load(source, (*side, 3), image_size, labelled)
        if not labelled:
            return ArrayDataset(source.name, x, flip=flip)
        classes = {"num_classes": source.num_classes, "class_names": source.class_names}
        return ArrayDataset(source.name, x, label, **classes, flip=flip)
    check_memory("data.image_size", PROBES, shape, itemsize=1, fix="give a smaller one")
    for i, (image, _) in zip(probes, probed, strict=True):  # different sizes show up now, not in the middle of a run
        _fit(source, i, image, shape, image_size)
    return LazyDataset(source, shape, image_size=image_size, labelled=labelled, flip=flip)


class _ColourError(DataError):
    """An image in colour in a set of grey ones."""


def _fit(
    source: ImageSource, index: int, image: np.ndarray, shape: tuple[int, ...], image_size: int | None
) -> np.ndarray:
    """`image` in `shape`: resized if asked, a grey one with three equal channels among colours."""
    if image_size is not None:
        image = resize(image, image_size)
    if image.shape[-1] < shape[-1]:
        image = np.repeat(image, shape[-1], axis=-1)
    if image.shape[-1] > shape[-1]:
        raise _ColourError(
            f"{source.where(index)} is in colour, and the images of {source.name} that were looked at first are grey: "
            "set data.in_memory=True, with which all are looked at, or save it as a grey image"
        )
    if image.shape != shape:
        raise DataError(
            f"{source.where(index)} is {image.shape[0]}x{image.shape[1]} (height x width) but {source.where(0)} is "
            f"{shape[0]}x{shape[1]}: set data.image_size to bring all images to one size"
        )
    return image


def _label(source: ImageSource, index: int, label: int, labelled: bool) -> int:
    if not labelled:
        return 0
    classes = source.num_classes or 0
    if not 0 <= label < classes:
        what = "no label, and others have one" if label == -1 else f"the label {label}"
        raise DataError(f"{source.where(index)} has {what}; {classes} classes are 0 to {classes - 1}: mend the data")
    return label


def _load(
    source: ImageSource, shape: tuple[int, ...], image_size: int | None, labelled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels, decoded by several threads, with a progress line on standard error."""
    num = len(source)
    x = np.empty((num, *shape), np.uint8)
    label = np.empty(num, np.int32)
    progress = _Progress(source.name, num)

    def task(start: int) -> int:
        indices = range(start, min(start + CHUNK, num))
        for i, (image, y) in zip(indices, source.read(indices), strict=True):
            x[i] = _fit(source, i, image, shape, image_size)
            label[i] = _label(source, i, y, labelled)
        return len(indices)

    with ThreadPoolExecutor(threads()) as pool:
        futures = [pool.submit(task, start) for start in range(0, num, CHUNK)]
        try:
            for future in futures:
                progress.advance(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    progress.finish(f"{'x'.join(map(str, shape))}, {x.nbytes / 1e6:.0f} MB in memory")
    return x, label


def threads() -> int:
    """Threads that decode images: the usable processors, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, usable or 1)


class _Progress:
    """A line that is rewritten on a terminal, and printed once, at the end, elsewhere (never for quick loads)."""

    def __init__(self, name: str, total: int):
        self._name, self._total, self._done = name, total, 0
        self._start = self._shown = time.monotonic()

    def advance(self, num: int) -> None:
        self._done += num
        now = time.monotonic()
        if sys.stderr.isatty() and now - self._shown > 0.2:
            self._shown = now
            rate = self._done / (now - self._start)
            left = (self._total - self._done) / rate
            print(
                f"\rloading {self._name}: {self._done:,}/{self._total:,} images, {rate:,.0f}/s, {left:.0f} s left ",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def finish(self, text: str) -> None:
        seconds = time.monotonic() - self._start
        if seconds > 0.5:
            start, end = ("\r", "\x1b[K\n") if sys.stderr.isatty() else ("", "\n")
            line = f"{start}loaded {self._name}: {self._total:,} images of {text}, {seconds:.1f} s"
            print(line, end=end, file=sys.stderr, flush=True)


class _Steps:
    """Batch `step` of a stream as a random-access source for grain."""

    def __init__(self, make: Callable[[int], Batch], num: int | None):
        self._make = make
        self._num = 2**62 if num is None else num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> Batch:
        return self._make(index)


class LazyDataset(Dataset):
    """Images read and decoded as they are needed, by grain's threads, a few batches ahead.

    The order is that of `sgmjax.data.base`, so the stream is the one that the same images in memory give.
    """

    in_memory = False

    def __init__(
        self, source: ImageSource, shape: tuple[int, ...], *, image_size: int | None, labelled: bool, flip: bool
    ):
        classes, names = (source.num_classes, source.class_names) if labelled else (None, None)
        super().__init__(source.name, shape, len(source), num_classes=classes, class_names=names, flip=flip)
        self._source = source
        self._image_size = image_size
        self._labelled = labelled

    def read(self, indices: np.ndarray, flips: np.ndarray | None = None) -> Batch:
        x = np.empty((len(indices), *self.shape), np.uint8)
        label = np.empty(len(indices), np.int32)
        positions = [int(i) for i in indices]
        for row, (i, (image, y)) in enumerate(zip(positions, self._source.read(positions), strict=True)):
            x[row] = _fit(self._source, i, image, self.shape, self._image_size)
            label[row] = _label(self._source, i, y, self._labelled)
        if flips is not None:
            x[flips] = x[flips, :, ::-1]
        return {"x": x, "label": label}

    def stream(self, make: Callable[[int], Batch], num_batches: int | None) -> Any:
        try:
            import grain
        except ImportError as error:
            raise DataError(
                f"{self.name} is read from disk, which needs grain: pip install grain (or set data.in_memory=True)"
            ) from error
        num_threads = threads()
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2, num_threads))
        return iter(grain.MapDataset.source(_Steps(make, num_batches)).to_iter_dataset(options))
