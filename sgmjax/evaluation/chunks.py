"""Arrays of many examples on disk, written piece by piece and read in any order, of which little is in memory.

A folder of `<first>.npy`, all of one number of examples but the last, and `about.json`, which says of what they are. A
piece appears in one move, so that work that was killed goes on with the piece it was at.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sgmjax import sharding as sh
from sgmjax._files import AnyPath, local_copy, replacing
from sgmjax._inputs import InputError, one_line

ABOUT = "about.json"


class Chunks:
    """A set of examples in a folder; metrics read it like a data set.

    Args:
        folder: where; None: in memory.
        about: JSON-able: of what they are. A folder that says something else is refused.
        size: examples in a piece; a folder that has one keeps it.

    Raises:
        InputError: the folder is of something else, or cannot be read.
    """

    def __init__(self, folder: AnyPath | None, about: Mapping[str, Any], size: int):
        self.folder, self.about, self.size = folder, dict(about), size
        self._memory: dict[int, np.ndarray] = {}
        self._notes: dict[int, dict[str, Any]] = {}
        self.num = 0
        if folder is None:
            return
        path = folder / ABOUT
        if path.is_file():
            try:
                there = json.loads(path.read_text(encoding="utf-8"))
                self.size = int(there.pop("chunk"))
            except (ValueError, KeyError, AttributeError, OSError) as error:
                raise InputError(f"{path} cannot be read ({one_line(error, 80)}); remove the folder") from None
            wanted = json.loads(json.dumps(self.about))
            if there != wanted:
                first = next(key for key in sorted({*there, *wanted}) if there.get(key) != wanted.get(key))
                raise InputError(
                    f"{folder} is of something else: {first} is {there.get(first)!r} there and {wanted.get(first)!r} "
                    "here; remove the folder, or give another one"
                )
        elif jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                partial.write_text(json.dumps(self.about | {"chunk": size}, indent=2) + "\n", encoding="utf-8")
        sh.wait_for_all("sgmjax_chunks")

    def fill(
        self,
        num: int,
        make: Callable[[int, int], tuple[np.ndarray, Mapping[str, Any]]],
        progress: Callable[[int], None] = lambda done: None,
        stop: Callable[[], bool] = lambda: False,
        at_once: int = 0,
    ) -> bool:
        """Makes the pieces that are not there, until there are `num` examples.

        Args:
            num: how many.
            make: make(first, count) -> the examples (count, ...) from index `first` on, and notes about them.
            progress: told how many there are.
            stop: asked between calls of `make`; if it says True, what there is stays.
            at_once: examples to make with one call, about, where pieces are smaller: a folder that began with few
                examples has small ones.

        Returns:
            Whether all are there.
        """
        self.num = num
        there = np.array([self._has(first) for first in range(0, num, self.size)])
        if jax.process_count() > 1:  # as the first process sees it: a shared folder may be late elsewhere
            from jax.experimental import multihost_utils

            there = np.asarray(multihost_utils.broadcast_one_to_all(there))
        at, most = 0, max(1, at_once // self.size)
        while at < len(there):
            first, pieces = at * self.size, 1
            if not there[at]:
                if stop():
                    return False
                while pieces < most and at + pieces < len(there) and not there[at + pieces]:
                    pieces += 1
                count = pieces * self.size
                array, notes = make(first, count if self.folder is not None else min(count, num - first))
                for start in range(0, count, self.size):
                    self._write(first + start, array[start : start + self.size], notes)
            at += pieces
            progress(min(at * self.size, num))
        sh.wait_for_all("sgmjax_filled")
        return True

    # ------------------------------------------------------------------------------------------- as a data set is read
    @property
    def num_examples(self) -> int:
        """How many there are."""
        return self.num

    @property
    def capacity(self) -> int:
        """How many can be read: on disk pieces are whole, so that there may be more of them than were asked for."""
        return self.num if self.folder is None else math.ceil(self.num / self.size) * self.size

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self._first.shape[1:]

    @functools.cached_property
    def _first(self) -> np.ndarray:
        return self._piece(0)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """{"x": the examples at these places}."""
        indices = np.asarray(indices)
        if not indices.size:
            return {"x": np.empty((0, *self.shape), self._first.dtype)}
        if indices.min() < 0 or indices.max() >= self.capacity:
            raise IndexError(f"indices from 0 to {self.capacity - 1}, got {indices.min()} ... {indices.max()}")
        piece = indices // self.size
        out = np.empty((len(indices), *self.shape), self._first.dtype)
        for one in np.unique(piece):
            mine = np.flatnonzero(piece == one)
            out[mine] = self._piece(one * self.size)[indices[mine] - one * self.size]
        return {"x": out}

    def notes(self) -> list[dict[str, Any]]:
        """What `make` noted about each piece."""
        return [self._notes_of(first) for first in range(0, self.num, self.size)]

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array of the whole set, which is made once and lies beside the pieces.

        Args:
            name: what it is; of more or fewer examples it is another one.
            make: makes it.
        """
        if self.folder is None:
            return make()
        file = self.folder / f"{name}_of_{self.num}.npy"
        if file.is_file():
            try:
                return np.load(local_copy(file, name))
            except (ValueError, OSError, EOFError):  # damaged: made again
                pass
        array = make()
        if jax.process_index() == 0:
            with replacing(file) as partial, partial.open("wb") as out:
                np.save(out, array)
        return array

    def __iter__(self):
        """The pieces in order."""
        for first in range(0, self.num, self.size):
            yield np.asarray(self._piece(first)[: self.num - first])

    # ------------------------------------------------------------------------------------------------------------ files
    def _file(self, first: int) -> AnyPath:
        assert self.folder is not None
        return self.folder / f"{first:08d}.npy"

    def _has(self, first: int) -> bool:
        if self.folder is None:
            return first in self._memory
        file = self._file(first)
        if not file.is_file():
            return False
        try:
            whole = len(self._piece(first)) == self.size and self._notes_of(first) is not None
        except (ValueError, OSError, EOFError):  # an InputError among them
            return False
        return whole

    def _write(self, first: int, array: np.ndarray, notes: Mapping[str, Any]) -> None:
        if self.folder is None:
            self._memory[first], self._notes[first] = array, dict(notes)
            return
        if jax.process_index() == 0:
            with replacing(self._file(first).with_suffix(".json")) as partial:
                partial.write_text(json.dumps(dict(notes)) + "\n", encoding="utf-8")
            with replacing(self._file(first)) as partial, partial.open("wb") as file:
                np.save(file, array)

    def _piece(self, first: int) -> np.ndarray:
        if self.folder is None:
            return self._memory[first]
        return np.load(local_copy(self._file(first), "samples"), mmap_mode="r")

    def _notes_of(self, first: int) -> dict[str, Any]:
        if self.folder is None:
            return self._notes[first]
        return json.loads(self._file(first).with_suffix(".json").read_text(encoding="utf-8"))


class Columns:
    """Some numbers of each example of a set, read like a set."""

    def __init__(self, of: Chunks, first: int, last: int):
        self._of, self._which, self.shape = of, slice(first, last), (last - first,)

    @property
    def num_examples(self) -> int:
        """How many there are."""
        return self._of.num

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """See `Chunks.kept`; `name` tells these numbers from others of the set."""
        return self._of.kept(name, make)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """{"x": (len(indices), last - first)}."""
        return {"x": self._of.read(indices)["x"][:, self._which]}

    def __iter__(self):
        """The pieces in order."""
        for piece in self._of:
            yield piece[:, self._which]


def chunk_size(num: int, batch_size: int, about: int = 1000) -> int:
    """Examples of a piece: whole batches, about so many, and not more than there shall be."""
    batches = min(max(1, about // batch_size), math.ceil(num / batch_size))
    return batches * batch_size
