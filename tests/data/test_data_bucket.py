"""Data in a bucket are the data on a disk: arrays, folders of images, TFDS sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_folders import colour, config, save

from sgmjax import _files, data
from sgmjax.data import DataError


@pytest.fixture
def upload(bucket, tmp_path, monkeypatch):
    """Copies a folder into the bucket; its address."""
    monkeypatch.setenv(_files.CACHE, str(tmp_path / "cache"))

    def copied(folder: Path, name: str) -> str:
        for file in _files.sizes(folder):
            _files.user_path(f"gs://bucket/data/{name}/{file}").write_bytes((folder / file).read_bytes())
        return f"gs://bucket/data/{name}"

    return copied


def equal(a, b) -> bool:
    one, other = a.read(np.arange(a.num_examples)), b.read(np.arange(b.num_examples))
    return set(one) == set(other) and all(np.array_equal(one[key], other[key]) for key in one)


def test_arrays(upload, tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.savez(folder / "x.npz", x=np.arange(200, dtype=np.float32).reshape(100, 2), labels=np.arange(100) % 3)
    there = upload(folder, "arrays")
    for part in ("train", "eval"):
        assert equal(*(data.load("npz", part, path=f"{place}/x.npz") for place in (folder, there)))


@pytest.mark.parametrize("in_memory", [True, False])
def test_images(upload, tmp_path, in_memory):
    for i, name in enumerate(["cat/1.png", "cat/0.png", "ant/x/2.png"]):
        save(tmp_path / "images" / name, colour(i))
    there = upload(tmp_path / "images", f"images{in_memory}")
    ours, theirs = (data.load(config(folder, in_memory=in_memory)) for folder in (there, tmp_path / "images"))
    assert equal(ours, theirs) and ours.class_names == theirs.class_names == ("ant", "cat")
    with pytest.raises(DataError, match="there is nothing in gs://bucket/data/none"):
        data.load(config("gs://bucket/data/none"))


def test_a_tfds_set(upload, data_dir, tmp_path):
    found = sorted(data_dir.glob("*/*/dataset_info.json"), key=lambda path: sum(_files.sizes(path.parent).values()))
    if not found:
        pytest.skip(f"no data sets in {data_dir}")
    name = found[0].parent.parent.name  # the smallest
    there = upload(data_dir / name, f"tfds/{name}").removesuffix(f"/{name}")
    ours, theirs = (data.load(config(place, name=name, split="train[:50]")) for place in (there, data_dir))
    assert equal(ours, theirs) and ours.num_examples == 50
    with pytest.raises(DataError, match="kmnist' is not prepared in gs://bucket/data/tfds: run python -m"):
        data.load("kmnist", data_dir=there)
