"""MNIST's own files: written by hand here byte by byte, read as they are; what is wrong with them in one line."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from sgmjax import data

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 6, 5), np.uint8)
LABELS = np.array([3, 0, 1, 2, 3, 1, 0], np.uint8)


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx(IMAGES[:3]))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(idx(LABELS[:3]))
    (tmp_path / "emnist-letters-train-images-idx3-ubyte").write_bytes(idx(IMAGES[::-1]))
    return tmp_path


@pytest.mark.parametrize("split, count", [("train", 7), ("eval", 3)])
def test_images_and_labels_are_those_of_the_files(folder, split, count):
    dataset = data.load("idx", split, data_dir=str(folder))
    found = dataset.arrays()
    np.testing.assert_array_equal(found["x"], IMAGES[:count, :, :, None])
    np.testing.assert_array_equal(found["label"], LABELS[:count])
    assert found["x"].dtype == np.uint8 and dataset.num_classes == int(LABELS[:count].max()) + 1


def test_other_names_are_splits_and_labels_may_lack(folder):
    found = data.load(data.DataSettings(name="idx", data_dir=str(folder), split="emnist-letters-train"))
    np.testing.assert_array_equal(found.arrays()["x"][..., 0], IMAGES[::-1])
    assert found.num_classes is None


def test_images_are_resized(folder):
    assert data.load("idx", data_dir=str(folder), image_size=8).arrays()["x"].shape == (7, 8, 8, 1)


@pytest.mark.parametrize(
    "content, message",
    [
        (idx(IMAGES)[:-4], r"is cut short or damaged: 206 bytes for \(7, 6, 5\)"),
        (b"\x89PNG" + idx(IMAGES), "is no file of bytes in 3 axes"),
        (b"", "is no file of bytes"),
        (idx(IMAGES)[:9], "is cut short or damaged"),
        (idx(IMAGES[:5]), "has 7 labels for 5 images"),
    ],
)
def test_damaged_files_are_one_line(folder, content, message):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(data.DataError, match=message) as caught:
        data.load("idx", data_dir=str(folder))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_one_line(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES))[:30])
    with pytest.raises(data.DataError, match="cannot be read"):
        data.load("idx", data_dir=str(folder))
    with pytest.raises(data.DataError, match="data.split: .* has no file of images that begins with 'val'; it has "):
        data.load(data.DataSettings(name="idx", data_dir=str(folder), split="val"))
    with pytest.raises(data.DataError, match="needs data.data_dir"):
        data.load("idx")
    with pytest.raises(data.DataError, match="is no folder"):
        data.load("idx", data_dir=str(folder / "none"))
