"""What every data set is: the error type, the order in which examples are drawn, and the `Dataset` contract.

The order is defined once, here, for data held in memory and data read from disk alike. Position `i` of the endless
training stream belongs to epoch `i // n`, and inside an epoch the positions are a permutation drawn from
`numpy.random.default_rng((seed, epoch))`. So

* every example is seen exactly once an epoch, and batches straddle epochs without dropping any;
* batch `s` of process `p` among `N` holds the positions `(s N + p) b ... (s N + p + 1) b`, hence the batches of the
  N processes, one after the other, are the batch that one process with `N b` examples a step would have read;
* the state of an iterator is one number, the position: it can be restored on another number of processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int

from sgmjax._inputs import InputError

Batch = dict[str, np.ndarray]


class DataError(InputError):
    """Data that cannot be used. The message is one line: the thing, what is wrong, and the fix."""


class Order:
    """The shuffled order of the endless stream over `num_examples` examples, a pure function of `seed`."""

    def __init__(self, num_examples: int, seed: int):
        self.num_examples = num_examples
        self.seed = seed
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if epoch not in self._epochs:
                rng = np.random.default_rng((self.seed, epoch))
                indices = rng.permutation(self.num_examples)
                flips = rng.integers(0, 2, self.num_examples, dtype=np.uint8).astype(bool)
                # Two epochs are alive while batches straddle; a third covers readers that run ahead.
                while len(self._epochs) >= 3:
                    del self._epochs[min(self._epochs)]
                self._epochs[epoch] = (indices, flips)
            return self._epochs[epoch]

    def __call__(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples at positions `start ... stop - 1` of the stream.

        Returns:
            indices `(stop - start,)` int64 into the data set, and flips `(stop - start,)` bool, one fair coin a
            position, which do not depend on the batch size.
        """
        indices, flips = [], []
        while start < stop:
            epoch, offset = divmod(start, self.num_examples)
            end = min(self.num_examples, offset + stop - start)
            epoch_indices, epoch_flips = self._epoch(epoch)
            indices.append(epoch_indices[offset:end])
            flips.append(epoch_flips[offset:end])
            start += end - offset
        if len(indices) == 1:
            return indices[0], flips[0]
        return np.concatenate(indices), np.concatenate(flips)


class Stream(Protocol):
    """A running background reader: `next` gives the batches 0, 1, 2, ... of a function of the batch number."""

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


class BatchIterator:
    """Endless shuffled batches of one process; made by `Dataset.iterator`. Not for use by two threads at once.

    The reader starts with the first `next`, runs ahead in the background, and is stopped by `close` or when the
    iterator is garbage collected.
    """

    def __init__(self, dataset: Dataset, batch_size: int, *, seed: int, process_index: int, process_count: int):
        self._dataset = dataset
        self._order = Order(dataset.num_examples, seed)
        self._batch_size = batch_size
        self._process_index = process_index
        self._process_count = process_count
        self._position = 0  # examples given out so far, over all processes
        self._stream: Stream | None = None

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        if self._stream is None:
            self._stream = self._start()
        try:
            batch = next(self._stream)
        except BaseException:
            self.close()  # a second try starts a reader at the same place: a failure never skips a batch
            raise
        self._position += self._batch_size * self._process_count
        return batch

    def _start(self) -> Stream:
        dataset, order, size = self._dataset, self._order, self._batch_size
        first = self._position + self._process_index * size
        stride = size * self._process_count

        def make(step: int) -> Batch:
            start = first + step * stride
            indices, flips = order(start, start + size)
            return dataset.read(indices, flips if dataset.flip else None)

        return dataset.stream(make, None)

    def get_state(self) -> dict[str, int]:
        """Where the stream stands after the last batch handed out; plain integers, equal in all processes."""
        return {
            "position": self._position,
            "seed": self._order.seed,
            "num_examples": self._order.num_examples,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly behind `state`, whatever this iterator has done before.

        The batch size and the number of processes may differ from those of the iterator that gave the state.

        Raises:
            DataError: if the state is not one, or belongs to another seed or another data set.
        """
        for key, ours in (("seed", self._order.seed), ("num_examples", self._order.num_examples)):
            if key not in state or "position" not in state:
                raise DataError(f"this is no state of a data iterator: keys {sorted(state)}; start a new run folder")
            if int(state[key]) != ours:
                raise DataError(
                    f"the saved position in the data belongs to {key}={state[key]}, this run has {key}={ours}: "
                    "use the same data and seed, or start a new run folder"
                )
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Stops the background reader; the next `next` starts another at the same place."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class Dataset:
    """A set of examples of one shape; made by `sgmjax.data.load`.

    Attributes:
        name: what it is, for messages.
        shape: the event shape: `(H, W, C)`, `(D,)`, ... (`sgmjax.data.examples`).
        discrete: whether `x` is uint8, 8-bit levels, else float32.
        num_examples: how many.
        num_classes: number of label values, or None when the examples carry no labels (labels are then 0).
        class_names: what the labels 0, 1, ... are called, or None when that is not known.
        is_image: whether the examples are images `(H, W, C)`.
        flip: whether training batches flip images left to right with probability 1/2.
        in_memory: whether `arrays` works.
    """

    in_memory: bool

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        num_examples: int,
        *,
        num_classes: int | None = None,
        class_names: tuple[str, ...] | None = None,
        discrete: bool = True,
        flip: bool = False,
    ):
        if num_examples < 1:
            raise DataError(f"{name}: no examples; check the split")
        self.name = name
        self.shape = tuple(shape)
        self.num_examples = num_examples
        self.num_classes = num_classes
        self.class_names = class_names
        self.discrete = discrete
        self.is_image = len(self.shape) == 3
        self.flip = flip and self.is_image

    def read(self, indices: Int[np.ndarray, " n"], flips: Bool[np.ndarray, " n"] | None = None) -> Batch:
        """The examples `indices`, in this order, those with `flips` set mirrored left to right."""
        raise NotImplementedError

    def stream(self, make: Callable[[int], Batch], num_batches: int | None) -> Stream:
        """Runs `make(0), make(1), ...` in the background."""
        raise NotImplementedError

    def iterator(self, batch_size: int, *, seed: int, process_index: int = 0, process_count: int = 1) -> BatchIterator:
        """Endless shuffled batches for training.

        Args:
            batch_size: examples a batch of *this* process.
            seed: non-negative; with the epoch's number it gives the order of the epoch, and the flips.
            process_index: which of the `process_count` processes this is. The batches of all processes, one after
                the other, are what a single process with the whole batch would read.

        Returns:
            An iterator of `{"x": (batch_size, *shape) uint8 or float32, "label": (batch_size,) int32}` with
            `get_state`, `set_state` (exact resume) and `close`.

        Raises:
            DataError: for sizes and indices that make no sense.
        """
        _check_shard(batch_size, process_index, process_count)
        if seed < 0:
            raise DataError(f"the seed of the data must not be negative, got {seed}")
        return BatchIterator(self, batch_size, seed=seed, process_index=process_index, process_count=process_count)

    def epoch(self, batch_size: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """One pass in order, never flipped; the last batch is kept and may be smaller.

        All processes get the same number of batches, `ceil(n / (batch_size * process_count))`; the examples of the
        last round are cut into contiguous pieces of at most `batch_size`, so for a late process its last batch may
        even be empty.
        """
        _check_shard(batch_size, process_index, process_count)
        stride = batch_size * process_count
        rounds = -(-self.num_examples // stride)

        def make(step: int) -> Batch:
            start = min(step * stride + process_index * batch_size, self.num_examples)
            return self.read(np.arange(start, min(start + batch_size, self.num_examples)))

        def generate() -> Iterator[Batch]:
            stream = self.stream(make, rounds)
            try:
                for _ in range(rounds):
                    yield next(stream)
            finally:
                stream.close()

        return generate()

    def arrays(self) -> Batch:
        """All examples in order, `{"x", "label"}`, without copying; only for sets held in memory.

        Raises:
            DataError: if the set is read from disk.
        """
        raise DataError(f"{self.name} is read from disk; set data.in_memory=True to hold it in memory")


def _check_shard(batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise DataError(f"process_index {process_index} is not among {process_count} processes")
