"""Folders of images, and resizing."""

from __future__ import annotations

import numpy as np
import pytest
from image_folders import colour, config, save
from PIL import Image

from sgmjax import data
from sgmjax.data import DataError
from sgmjax.data.folder import FolderSource, read_image
from sgmjax.data.images import resize


def gradient(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


# ------------------------------------------------------------------------------------------------------------- reading
def test_a_folder_in_sorted_order(tmp_path):
    for name, value in [("b.png", 2), ("a.BMP", 1), ("c/d.webp", 3), (".hidden.png", 9), (".x/e.png", 9)]:
        save(tmp_path / name, colour(value), **({"lossless": True} if name.endswith("webp") else {}))
    (tmp_path / "notes.txt").write_text("not an image")
    dataset = data.load(config(tmp_path))
    arrays = dataset.arrays()
    assert arrays["x"].shape == (3, 6, 6, 3)
    assert arrays["x"][:, 0, 0, 0].tolist() == [1, 2, 3]
    assert dataset.num_classes is None and not arrays["label"].any()  # images outside the subfolder: no classes


@pytest.mark.parametrize("in_memory", [True, False])
def test_subfolders_are_classes(tmp_path, in_memory):
    for i, name in enumerate(["cat/1.png", "cat/0.png", "ant/x/2.png", "bee/3.png"]):
        save(tmp_path / name, colour(i))
    dataset = data.load(config(tmp_path, in_memory=in_memory))
    (batch,) = dataset.epoch(10)
    assert dataset.in_memory == in_memory and dataset.num_classes == 3
    assert batch["label"].tolist() == [0, 1, 2, 2]  # ant, bee, cat, cat
    assert batch["x"][:, 0, 0, 0].tolist() == [2, 3, 1, 0]
    iterator = dataset.iterator(4, seed=0)
    assert sorted(next(iterator)["x"][:, 0, 0, 0].tolist()) == [0, 1, 2, 3]
    iterator.close()


def test_split_subfolders(tmp_path):
    save(tmp_path / "train" / "a" / "0.png", colour(0))
    save(tmp_path / "train" / "b" / "0.png", colour(1))
    save(tmp_path / "test" / "a" / "0.png", colour(2))
    save(tmp_path / "test" / "b" / "0.png", colour(3))
    train, held_out = (data.load(config(tmp_path, eval_split="test"), split) for split in ("train", "eval"))
    assert train.arrays()["x"][:, 0, 0, 0].tolist() == [0, 1] and train.num_classes == 2
    assert held_out.arrays()["x"][:, 0, 0, 0].tolist() == [2, 3]
    with pytest.raises(DataError, match="no folder .*validation of held-out images.*data.eval_split=None"):
        data.load(config(tmp_path, eval_split="validation"), "eval")


def test_held_out_images_are_a_fixed_twentieth(tmp_path):
    for i in range(60):
        save(tmp_path / f"{i:03}.png", colour(i, 2, 2))
    whole = data.load(config(tmp_path)).arrays()["x"][:, 0, 0, 0].tolist()
    train, held_out = (
        data.load(config(tmp_path, eval_split="test"), split).arrays()["x"][:, 0, 0, 0].tolist()
        for split in ("train", "eval")
    )
    assert whole == list(range(60))
    assert len(held_out) == 3 and sorted(train + held_out) == whole


def test_colours_and_depths(tmp_path):
    grey = save(tmp_path / "l.png", np.full((2, 2), 7, np.uint8))
    assert read_image(grey).tolist() == [[[7], [7]], [[7], [7]]]
    deep = save(tmp_path / "i.png", np.array([[0, 128], [65535, 257 * 100 + 128]], np.uint16))
    assert read_image(deep)[..., 0].tolist() == [[0, 0], [255, 100]]
    alpha = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    assert read_image(save(tmp_path / "a.png", alpha)).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    palette = Image.fromarray(colour(50, 2, 2)).quantize(4)
    palette.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").tolist() == colour(50, 2, 2).tolist()
    palette.save(tmp_path / "pt.png", transparency=palette.getpixel((0, 0)))
    assert read_image(tmp_path / "pt.png").tolist() == colour(255, 2, 2).tolist()
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    bits.save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png")[..., 0].tolist() == [[0, 255]]
    Image.fromarray(colour(0, 8, 8)).convert("CMYK").save(tmp_path / "c.jpg")
    assert read_image(tmp_path / "c.jpg").shape == (8, 8, 3)


def test_grey_folders_have_one_channel_and_mixed_ones_three(tmp_path):
    save(tmp_path / "a.png", np.full((4, 4), 9, np.uint8))
    assert data.load(config(tmp_path)).shape == (4, 4, 1)
    save(tmp_path / "b.png", colour(3, 4, 4))
    mixed = data.load(config(tmp_path)).arrays()["x"]
    assert mixed.shape == (2, 4, 4, 3) and (mixed[0] == 9).all() and (mixed[1] == 3).all()


def test_the_camera_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    save(tmp_path / "a.jpg", colour(100, 8, 16), exif=exif)
    save(tmp_path / "b.jpg", colour(100, 16, 8))
    assert data.load(config(tmp_path)).shape == (16, 8, 3)


# ------------------------------------------------------------------------------------------------------------ resizing
def test_resize_crops_the_centre_square():
    image = np.zeros((4, 10, 1), np.uint8)
    image[:, 3:7] = 200
    np.testing.assert_array_equal(resize(image, 4), np.full((4, 4, 1), 200))
    np.testing.assert_array_equal(resize(image, 2), np.full((2, 2, 1), 200))
    np.testing.assert_array_equal(resize(image.transpose(1, 0, 2), 8), np.full((8, 8, 1), 200))
    same = colour(5)
    assert resize(same, 6) is same


@pytest.mark.parametrize("channels", [1, 3])
def test_shrinking_is_antialiased(channels):
    stripes = np.zeros((64, 64, channels), np.uint8)
    stripes[:, ::2] = 255  # finer than the small image can hold: must become even grey
    small = resize(stripes, 16)[2:-2, 2:-2].astype(int)
    assert abs(small - 127.5).max() <= 4


def test_grey_and_colour_are_resized_alike():
    image = gradient(20, 20)
    expected = resize(image, 12).astype(int)
    planes = np.concatenate([resize(image[..., c : c + 1], 12) for c in range(3)], axis=-1)
    assert abs(planes - expected).max() <= 1  # Pillow's 8-bit path rounds twice


@pytest.mark.parametrize("in_memory", [True, False])
def test_mixed_sizes_are_resized_when_asked(tmp_path, in_memory):
    save(tmp_path / "a.png", colour(10, 12, 8))
    save(tmp_path / "b.png", colour(20, 5, 7))
    dataset = data.load(config(tmp_path, image_size=8, in_memory=in_memory))
    (batch,) = dataset.epoch(2)
    assert batch["x"].shape == (2, 8, 8, 3)
    assert (batch["x"][0] == 10).all() and (batch["x"][1] == 20).all()


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("in_memory", [True, False])
def test_mixed_sizes_are_an_error_otherwise(tmp_path, in_memory):
    save(tmp_path / "a.png", colour(1, 6, 6))
    save(tmp_path / "b.png", colour(1, 6, 7))
    with pytest.raises(DataError, match=r"b\.png is 6x7 .*a\.png is 6x6: set data\.image_size") as error:
        data.load(config(tmp_path, in_memory=in_memory))
    assert "\n" not in str(error.value)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        data.load(config(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no images in .*: expected \.png"):
        data.load(config(tmp_path))
    file = save(tmp_path / "a.png", colour(1))
    with pytest.raises(DataError, match=r"it is a file"):
        data.load(config(file))
    with pytest.raises(DataError, match="single image"):
        data.load(config(tmp_path, eval_split="test"), "eval")
    with pytest.raises(DataError, match="image_size must be at least 1"):
        data.load(config(tmp_path, image_size=0))


def test_unreadable_images_are_named(tmp_path):
    save(tmp_path / "a.png", gradient(40, 40))
    (tmp_path / "broken.png").write_bytes(b"this is no image")
    with pytest.raises(DataError, match=r"cannot read the image .*broken\.png .*: replace or remove the file") as error:
        data.load(config(tmp_path))
    assert "\n" not in str(error.value)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])  # the header is fine
    with pytest.raises(DataError, match=r"cannot read the image .*broken\.png"):
        data.load(config(tmp_path))


def test_an_image_that_breaks_later_stops_the_stream_by_name(tmp_path):
    for i in range(64):
        save(tmp_path / f"{i:02}.png", gradient(16, 16))
    dataset = data.load(config(tmp_path, in_memory=False))
    (tmp_path / "33.png").write_bytes(b"overwritten")
    iterator = dataset.iterator(16, seed=0)
    with pytest.raises(DataError, match=r"33\.png"):
        for _ in range(4):
            next(iterator)
    iterator.close()


def test_source_names_its_images(tmp_path):
    path = save(tmp_path / "a.png", colour(1))
    source = FolderSource(tmp_path, eval_split=None)
    assert len(source) == 1 and source.where(0) == str(path)
