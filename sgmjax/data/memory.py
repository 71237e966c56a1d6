"""Data held in memory: vectorised batches, prepared by one background thread."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from sgmjax.data.base import Batch, DataError, Dataset
from sgmjax.data.classes import checked_labels
from sgmjax.data.examples import as_examples

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
        x: vectors, signals, images or volumes, channels last, as `sgmjax.data.examples` says.
        label: `(n,)` integers 0 ... num_classes - 1, or None.
        num_classes: number of classes; None: as many as the labels show, if every one from 0 on is among them.
        class_names: their names, in the order of their numbers; or None.
        flip: flip training batches left to right with probability 1/2 (images only).

    Raises:
        DataError: what is no such array or not finite, no examples, and labels of another length, of another dtype than
            integers or out of range.
    """

    in_memory = True

    def __init__(
        self,
        name: str,
        x: Any,
        label: np.ndarray | None = None,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        flip: bool = False,
    ):
        x = as_examples(x, name)
        self._label, classes, names = checked_labels(label, len(x), num_classes, class_names, name)
        discrete = x.dtype == np.uint8
        super().__init__(
            name, x.shape[1:], len(x), num_classes=classes, class_names=names, discrete=discrete, flip=flip
        )
        self._x = np.ascontiguousarray(x)

    def read(self, indices: Int[np.ndarray, " n"], flips: Bool[np.ndarray, " n"] | None = None) -> Batch:
        x = self._x[indices]
        if flips is not None:
            x[flips] = x[flips, :, ::-1]
        return {"x": x, "label": self._label[indices]}

    def stream(self, make: Callable[[int], Batch], num_batches: int | None) -> Prefetcher:
        return Prefetcher(make, num_batches)

    def arrays(self) -> Batch:
        return {"x": self._x, "label": self._label}


def arrays(
    x: Any,
    labels: Any = None,
    *,
    name: str = "arrays",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    flip: bool = False,
) -> ArrayDataset:
    """A data set of examples that are there.

    Args:
        x: `(n, D)` vectors, `(n, T, C)` signals, `(n, H, W, C)` images or `(n, D, H, W, C)` volumes, channels last;
            floats or uint8, as `sgmjax.data.examples` says. Nested lists that form such an array do.
        labels, num_classes, class_names: as `label` and so on of `ArrayDataset`.
        name: for messages.
        flip: flip training batches left to right with probability 1/2 (images only).

    Raises:
        DataError: as `ArrayDataset`; to flip what is no image.

    Examples:
        >>> dataset = data.arrays(np.zeros((10, 3)), [0, 1] * 5)
        >>> dataset.num_examples, dataset.shape, dataset.num_classes
        (10, (3,), 2)
        >>> batch = next(dataset.iterator(4, seed=0))
        >>> batch["x"].shape, batch["label"].shape
        ((4, 3), (4,))
    """
    dataset = ArrayDataset(name, x, labels, num_classes=num_classes, class_names=class_names, flip=flip)
    if flip and not dataset.is_image:
        raise DataError(f"{name}: flip (data.flip) is for images; examples of shape {dataset.shape} have no left")
    return dataset
