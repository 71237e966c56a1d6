"""Examples on disk: whole, in order, and the same after a stop."""

from __future__ import annotations

import numpy as np
import pytest

from sgmjax._inputs import InputError
from sgmjax.evaluation.chunks import Chunks, Columns, chunk_size

TRUTH = np.random.default_rng(0).standard_normal((30, 2, 3)).astype(np.float32)


def make(first, count):
    """Examples `first` to `first + count` of an endless set."""
    return TRUTH[np.arange(first, first + count) % 30], {"nfe": first}


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_is_written_is_read(tmp_path, on_disk):
    found = Chunks(tmp_path / "set" if on_disk else None, {"a": 1}, 7)
    assert found.fill(30, make)
    np.testing.assert_array_equal(np.concatenate(list(found)), TRUTH)
    order = np.random.default_rng(1).integers(0, 30, 50)
    np.testing.assert_array_equal(found.read(order)["x"], TRUTH[order])
    assert (found.num_examples, found.shape) == (30, (2, 3)) and [n["nfe"] for n in found.notes()] == [0, 7, 14, 21, 28]
    assert found.read(np.array([], int))["x"].shape == (0, 2, 3)
    beyond = 35 if on_disk else 30  # pieces on disk are whole
    assert found.capacity == beyond
    with pytest.raises(IndexError, match=f"from 0 to {beyond - 1}"):
        found.read(np.array([beyond]))


def test_columns(tmp_path):
    rows = Chunks(tmp_path / "rows", {}, 4)
    rows.fill(10, lambda first, count: (np.arange(first, first + count)[:, None] + np.zeros((1, 5)), {}))
    part = Columns(rows, 1, 3)
    assert (part.num_examples, part.shape) == (10, (2,))
    np.testing.assert_array_equal(part.read(np.array([9, 0]))["x"], [[9, 9], [0, 0]])
    np.testing.assert_array_equal(np.concatenate(list(part))[:, 0], np.arange(10))


def test_an_array_of_the_whole_set_is_made_once_and_again_where_it_is_damaged_or_the_set_grows(tmp_path):
    asked = []

    def make_it():
        asked.append(len(asked))
        return np.arange(3.0) + len(asked)

    def found(num):
        rows = Chunks(tmp_path / "rows", {}, 4)
        rows.fill(num, make)
        return Columns(rows, 0, 1).kept("radii_3", make_it)

    np.testing.assert_array_equal(found(8), np.arange(3.0) + 1)
    np.testing.assert_array_equal(found(8), np.arange(3.0) + 1)
    assert asked == [0]
    np.testing.assert_array_equal(found(12), np.arange(3.0) + 2)
    (tmp_path / "rows" / "radii_3_of_8.npy").write_bytes(b"half")
    np.testing.assert_array_equal(found(8), np.arange(3.0) + 3)
    there = Chunks(None, {}, 4)
    there.fill(8, make)
    assert len(there.kept("radii_3", make_it)) == 3 and asked == [0, 1, 2, 3]


def test_a_stop_and_more_afterwards(tmp_path):
    """What is there is not made again, a half-written piece is, and more are the same ones and more."""
    made = []

    def counted(first, count):
        made.append(first)
        return make(first, count)

    folder = tmp_path / "set"
    assert not Chunks(folder, {"a": 1}, 7).fill(30, counted, stop=lambda: len(made) == 2)
    assert made == [0, 7]
    (folder / "00000007.npy").write_bytes((folder / "00000007.npy").read_bytes()[:50])  # cut short
    (folder / "00000014.npy.partial").write_bytes(b"half")
    found = Chunks(folder, {"a": 1}, 100)  # keeps the size it has
    assert found.fill(21, counted) and made == [0, 7, 7, 14]
    np.testing.assert_array_equal(np.concatenate(list(found)), TRUTH[:21])
    again = Chunks(folder, {"a": 1}, 7)
    assert again.fill(30, counted) and made[4:] == [21, 28]
    np.testing.assert_array_equal(np.concatenate(list(again)), TRUTH)


def test_small_pieces_are_made_many_at_once(tmp_path):
    """What is missing between pieces that are there, and no more of it than was asked for at once."""
    calls = []

    def counted(first, count):
        calls.append((first, count))
        return make(first, count)

    folder = tmp_path / "set"
    assert Chunks(folder, {"a": 1}, 3).fill(3, counted, at_once=3)  # a first look
    found = Chunks(folder, {"a": 1}, 12)
    assert found.fill(28, counted, at_once=13)
    assert calls == [(0, 3), (3, 12), (15, 12), (27, 3)]
    np.testing.assert_array_equal(np.concatenate(list(found)), TRUTH[:28])
    assert [len(np.load(file)) for file in sorted(folder.glob("*.npy"))] == [3] * 10
    assert [n["nfe"] for n in found.notes()] == [0] + [3] * 4 + [15] * 4 + [27]
    for first in (6, 9, 24):
        (folder / f"{first:08d}.npy").unlink()
    assert Chunks(folder, {"a": 1}, 12).fill(28, counted, at_once=100) and calls[4:] == [(6, 6), (24, 3)]
    whole = Chunks(None, {}, 12)
    assert whole.fill(28, counted, at_once=12) and calls[6:] == [(0, 12), (12, 12), (24, 4)]
    np.testing.assert_array_equal(np.concatenate(list(whole)), TRUTH[:28])


def test_a_folder_of_something_else(tmp_path):
    Chunks(tmp_path / "set", {"seed": 1, "plan": {"steps": 5}}, 7)
    with pytest.raises(InputError, match="is of something else: seed is 1 there and 2 here"):
        Chunks(tmp_path / "set", {"seed": 2, "plan": {"steps": 5}}, 7)
    (tmp_path / "set" / "about.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read .* remove the folder"):
        Chunks(tmp_path / "set", {"seed": 1}, 7)


def test_pieces_are_whole_batches():
    for num, batch in ((50_000, 64), (64, 64), (10, 16), (2048, 100), (5000, 3000)):
        size = chunk_size(num, batch)
        assert size % batch == 0 and size <= max(1000, batch) and (size < num + batch)
