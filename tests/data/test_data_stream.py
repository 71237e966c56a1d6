"""The stream of batches: order, shards, resume, flips, the background reader; in memory and read from disk alike."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref

import numpy as np
import pytest

from sgmjax.data import ArrayDataset, DataError, Dataset
from sgmjax.data.memory import Prefetcher
from sgmjax.data.source import as_dataset

NUM = 23


class CountingSource:
    """Image i is filled with i, apart from its left column, which is 255: a flip shows."""

    name = "counting"
    class_names = channels = None

    def __init__(self, num: int = NUM, fail_at: int | None = None):
        self._num, self.fail_at = num, fail_at
        self.num_classes = num

    def __len__(self) -> int:
        return self._num

    def where(self, index: int) -> str:
        return f"image {index}"

    def read(self, indices):
        if self.fail_at in indices:
            raise DataError(f"cannot read image {self.fail_at}")
        out = []
        for i in indices:
            image = np.full((3, 4, 1), i, np.uint8)
            image[:, 0] = 255
            out.append((image, i))
        return out


def make(kind: str, flip: bool = False, num: int = NUM) -> Dataset:
    return as_dataset(CountingSource(num), flip=flip, in_memory=kind == "memory")


@pytest.fixture(params=["memory", "lazy"])
def kind(request) -> str:
    return request.param


def take(iterator, num: int) -> list[dict[str, np.ndarray]]:
    return [next(iterator) for _ in range(num)]


def labels(batches) -> list[int]:
    return np.concatenate([batch["label"] for batch in batches]).tolist()


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys() == {"x", "label"}
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key])


def test_batches_have_the_promised_form(kind):
    dataset = make(kind)
    assert (dataset.shape, dataset.num_examples, dataset.num_classes, dataset.is_image) == ((3, 4, 1), NUM, NUM, True)
    assert dataset.in_memory == (kind == "memory")
    iterator = dataset.iterator(5, seed=0)
    batch = next(iterator)
    iterator.close()
    assert batch["x"].shape == (5, 3, 4, 1) and batch["x"].dtype == np.uint8
    assert batch["label"].shape == (5,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["x"][:, 0, 1, 0], batch["label"])  # labels stay with their images


def test_every_example_once_an_epoch_and_batches_straddle(kind):
    iterator = make(kind).iterator(5, seed=3)
    stream = labels(take(iterator, NUM))  # 5 epochs in 23 batches of 5
    iterator.close()
    epochs = [stream[i * NUM : (i + 1) * NUM] for i in range(5)]
    assert all(sorted(epoch) == list(range(NUM)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5  # each in another order
    for epoch, seen in enumerate(epochs):  # the documented order
        assert seen == np.random.default_rng((3, epoch)).permutation(NUM).tolist()


def test_a_batch_larger_than_the_set_holds_whole_epochs(kind):
    iterator = make(kind).iterator(2 * NUM + 4, seed=0)
    counts = np.bincount(next(iterator)["label"], minlength=NUM)
    iterator.close()
    assert set(counts) == {2, 3} and counts.sum() == 2 * NUM + 4


def test_memory_and_disk_give_the_same_stream():
    memory, lazy = (make(kind, flip=True).iterator(6, seed=1) for kind in ("memory", "lazy"))
    for a, b in zip(take(memory, 12), take(lazy, 12), strict=True):
        assert_same(a, b)
    memory.close()
    lazy.close()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_read_the_pieces_of_the_whole_batch(kind, count):
    dataset = make(kind, flip=True)
    whole = dataset.iterator(8, seed=2)
    parts = [dataset.iterator(8 // count, seed=2, process_index=p, process_count=count) for p in range(count)]
    for _ in range(9):
        expected = next(whole)
        pieces = [next(part) for part in parts]
        assert_same(expected, {key: np.concatenate([piece[key] for piece in pieces]) for key in expected})
    states = [part.get_state() for part in parts]
    assert all(state == whole.get_state() for state in states)
    for iterator in (whole, *parts):
        iterator.close()


def test_resume_is_exact_in_the_middle_of_an_epoch(kind):
    dataset = make(kind, flip=True)
    iterator = dataset.iterator(5, seed=7)
    take(iterator, 7)  # 35 = one epoch and 12 examples
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 11)
    fresh = make(kind, flip=True).iterator(5, seed=7)
    fresh.set_state(state)
    assert fresh.get_state() == state
    for a, b in zip(expected, take(fresh, 11), strict=True):
        assert_same(a, b)
    iterator.set_state(state)  # and backwards, in the same iterator
    assert_same(expected[0], next(iterator))
    iterator.close()
    fresh.close()


def test_resume_on_another_number_of_processes(kind):
    dataset = make(kind)
    iterator = dataset.iterator(6, seed=7)
    take(iterator, 3)
    state = iterator.get_state()
    expected = next(iterator)
    parts = [dataset.iterator(3, seed=7, process_index=p, process_count=2) for p in range(2)]
    for part in parts:
        part.set_state(state)
    pieces = [next(part)["label"] for part in parts]
    np.testing.assert_array_equal(np.concatenate(pieces), expected["label"])
    for it in (iterator, *parts):
        it.close()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"position": 5, "seed": 1, "num_examples": NUM}, "seed=1, this run has seed=0"),
        ({"position": 5, "seed": 0, "num_examples": 99}, "num_examples=99, this run has num_examples=23"),
        ({"next_index": 5}, "no state of a data iterator"),
    ],
)
def test_a_foreign_state_is_refused(state, message):
    with pytest.raises(DataError, match=message):
        make("memory").iterator(4, seed=0).set_state(state)


def test_flips_are_fair_and_only_where_asked(kind):
    num = 200

    def flipped(dataset) -> np.ndarray:
        iterator = dataset.iterator(num, seed=0)
        x = np.concatenate([batch["x"] for batch in take(iterator, 5)])
        iterator.close()
        left, right = x[:, 0, 0, 0] == 255, x[:, 0, -1, 0] == 255
        assert np.all(left != right)
        return right

    assert not flipped(make(kind, num=num)).any()
    coins = flipped(make(kind, flip=True, num=num))
    assert abs(coins.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(coins))
    in_order = np.concatenate([batch["x"] for batch in make(kind, flip=True, num=num).epoch(64)])
    assert np.all(in_order[:, 0, 0, 0] == 255)  # a pass in order is never flipped


def test_flips_leave_the_stored_images_alone():
    dataset = make("memory", flip=True)
    before = dataset.arrays()["x"].copy()
    iterator = dataset.iterator(NUM, seed=0)
    take(iterator, 3)
    iterator.close()
    np.testing.assert_array_equal(dataset.arrays()["x"], before)


@pytest.mark.parametrize(("size", "count"), [(5, 1), (5, 2), (4, 3), (10, 3), (100, 2)])
def test_epoch_is_in_order_and_keeps_the_last_batch(kind, size, count):
    dataset = make(kind)
    shards = [list(dataset.epoch(size, process_index=p, process_count=count)) for p in range(count)]
    rounds = -(-NUM // (size * count))
    assert [len(shard) for shard in shards] == [rounds] * count  # as many batches in every process
    seen = [label for r in range(rounds) for shard in shards for label in shard[r]["label"].tolist()]
    assert seen == list(range(NUM))
    assert all(len(batch["x"]) == len(batch["label"]) <= size for shard in shards for batch in shard)


def test_arrays_only_in_memory():
    arrays = make("memory").arrays()
    np.testing.assert_array_equal(arrays["label"], np.arange(NUM))
    with pytest.raises(DataError, match="data.in_memory=True"):
        make("lazy").arrays()


def test_memory_limit_decides():
    size_gb = NUM * 12 / 1e9
    assert as_dataset(CountingSource(), memory_limit_gb=size_gb).in_memory
    assert not as_dataset(CountingSource(), memory_limit_gb=size_gb * 0.99).in_memory
    assert as_dataset(CountingSource(), in_memory=True, memory_limit_gb=0).in_memory


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"batch_size": 4, "process_index": 2, "process_count": 2},
        {"batch_size": 4, "process_index": -1},
        {"batch_size": 4, "process_count": 0},
        {"batch_size": 4, "seed": -1},
    ],
)
def test_senseless_arguments(arguments):
    with pytest.raises(DataError):
        make("memory").iterator(**{"seed": 0, **arguments})


def test_bad_arrays():
    with pytest.raises(DataError, match="neither 8-bit levels nor floats"):
        ArrayDataset("a", np.zeros((2, 3, 3, 1), np.int32))
    with pytest.raises(DataError, match="labels of shape"):
        ArrayDataset("a", np.zeros((2, 3), np.float32), np.zeros(3))
    with pytest.raises(DataError, match="no examples"):
        ArrayDataset("a", np.zeros((0, 3), np.float32))


# ------------------------------------------------------------------------------------------------- background reader
def test_a_failure_reaches_the_reader_and_stays(kind):
    source = CountingSource(fail_at=None)
    dataset = as_dataset(source, in_memory=kind == "memory")
    if kind == "memory":
        read = dataset.read

        def failing(indices, flips=None):
            source.read(indices.tolist())
            return read(indices, flips)

        dataset.read = failing
    source.fail_at = 11
    iterator = dataset.iterator(4, seed=0)
    with pytest.raises(DataError, match="cannot read image 11"):
        take(iterator, 6)
    with pytest.raises(DataError, match="cannot read image 11"):
        next(iterator)
    source.fail_at = None  # mended: the stream goes on without a gap
    position = iterator.get_state()["position"]
    expected = np.random.default_rng((0, 0)).permutation(NUM)[position : position + 4]
    np.testing.assert_array_equal(next(iterator)["label"], expected)
    iterator.close()


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sgmjax-data"]


def wait_until(condition) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_the_reader_is_bounded_and_ends_with_close_or_collection():
    before = len(data_threads())
    made = []
    prefetcher = Prefetcher(lambda step: made.append(step) or step, depth=3)
    assert wait_until(lambda: len(made) == 3)
    time.sleep(0.05)
    assert made == [0, 1, 2]  # no further ahead
    assert [next(prefetcher) for _ in range(5)] == [0, 1, 2, 3, 4]
    prefetcher.close()
    assert len(data_threads()) == before
    with pytest.raises(DataError, match="closed"):
        next(prefetcher)

    dataset = make("memory")
    iterator = dataset.iterator(4, seed=0)
    next(iterator)
    assert len(data_threads()) == before + 1 and all(thread.daemon for thread in data_threads())
    gone = weakref.ref(iterator)
    del iterator
    gc.collect()
    assert gone() is None and wait_until(lambda: len(data_threads()) == before)


def test_a_finite_reader_stops():
    prefetcher = Prefetcher(lambda step: step, num=2)
    assert [next(prefetcher), next(prefetcher)] == [0, 1]
    with pytest.raises(StopIteration):
        next(prefetcher)
    prefetcher.close()


def test_an_abandoned_epoch_stops_its_reader():
    before = len(data_threads())
    epoch = make("memory").epoch(2)
    next(epoch)
    epoch.close()
    assert len(data_threads()) == before
