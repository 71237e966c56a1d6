"""Data held in memory: vectorised batches, prepared by one background thread."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sgmjax.data.base import Batch, DataError, Dataset
from sgmjax.data.classes import checked_labels

PREFETCH = 4  # batches prepared ahead


class Prefetcher:
    """Runs `make(0), make(1), ...` in a daemon thread, at most `depth` results ahead of the reader.

    An exception in `make` is raised by `next`, there and on every later call. The thread holds no reference to this
    object, so dropping it, closing it, or leaving the interpreter ends the thread.
    """

    def __init__(self, make: Callable[[int], Any], num: int | None = None, depth: int = PREFETCH):
        self._items: queue.SimpleQueue = queue.SimpleQueue()
        self._slots = threading.Semaphore(depth)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(
            target=_work, args=(make, num, self._items, self._slots, self._stop), name="sgmjax-data", daemon=True
        )
        self._finalize = weakref.finalize(self, _halt, self._slots, self._stop)
        self._thread.start()

    def __next__(self) -> Any:
        if self._failure is not None:
            raise self._failure
        failure, item = self._items.get()
        if failure is not None:
            self._failure = failure
            raise failure
        self._slots.release()
        return item

    def close(self) -> None:
        self._finalize()
        self._failure = DataError("this data reader is closed")
        self._thread.join()


def _work(make, num, items, slots, stop) -> None:
    step = 0
    try:
        while num is None or step < num:
            slots.acquire()
            if stop.is_set():
                return
            items.put((None, make(step)))
            step += 1
        items.put((StopIteration(), None))
    except BaseException as failure:  # handed to the reader, whatever it is
        items.put((failure, None))


def _halt(slots: threading.Semaphore, stop: threading.Event) -> None:
    stop.set()
    slots.release()


class ArrayDataset(Dataset):
    """Examples in one array.

    Args:
        name: for messages.
        x: `(n, H, W, C)` uint8 images, or `(n, D)` float32 vectors.
        label: `(n,)` integers 0 ... num_classes - 1, or None.
        num_classes: number of classes; None: as many as the labels show, if every one from 0 on is among them.
        class_names: their names, in the order of their numbers; or None.
        flip: flip training batches left to right with probability 1/2 (images only).

    Raises:
        DataError: for another dtype or rank, no examples, and labels of another length, of another dtype than integers
            or out of range.
    """

    in_memory = True

    def __init__(
        self,
        name: str,
        x: np.ndarray,
        label: np.ndarray | None = None,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        flip: bool = False,
    ):
        is_image = x.ndim == 4 and x.dtype == np.uint8
        if not is_image and not (x.ndim == 2 and x.dtype == np.float32):
            raise DataError(
                f"{name}: expected uint8 images (n, H, W, C) or float32 vectors (n, D), got {x.dtype} {x.shape}"
            )
        self._label, classes, names = checked_labels(label, len(x), num_classes, class_names, name)
        super().__init__(
            name, x.shape[1:], len(x), num_classes=classes, class_names=names, is_image=is_image, flip=flip
        )
        self._x = np.ascontiguousarray(x)

    def read(self, indices: np.ndarray, flips: np.ndarray | None = None) -> Batch:
        x = self._x[indices]
        if flips is not None:
            x[flips] = x[flips, :, ::-1]
        return {"x": x, "label": self._label[indices]}

    def stream(self, make: Callable[[int], Batch], num_batches: int | None) -> Prefetcher:
        return Prefetcher(make, num_batches)

    def arrays(self) -> Batch:
        return {"x": self._x, "label": self._label}
