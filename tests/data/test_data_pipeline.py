"""Digits, 2-D sets, scaling to and from 8 bits, and what `load` does with a configuration."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from sgmjax import data
from sgmjax.data import DataError, digits, toy

DEFAULTS = {
    "name": "digits",
    "data_dir": None,
    "split": "train",
    "eval_split": "test",
    "image_size": None,
    "flip": False,
    "range": None,
    "in_memory": None,
    "memory_limit_gb": 2.0,
    "num_samples": 1000,
    "binarize": "none",
}


def config(**settings):
    return data.DataSettings(**{**DEFAULTS, **settings})


# ------------------------------------------------------------------------------------------------------------- scaling
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("module", [np, jnp], ids=["numpy", "jax"])
def test_all_levels_survive_the_round_trip(centered, module):
    levels = module.arange(256, dtype=module.uint8)
    x = data.to_float(levels, centered)
    assert x.dtype == np.float32 and isinstance(x, type(levels))
    assert (float(x[0]), float(x[-1])) == ((-1.0, 1.0) if centered else (0.0, 1.0))
    back = data.to_uint8(x, centered)
    assert back.dtype == np.uint8 and isinstance(back, type(levels))
    np.testing.assert_array_equal(back, levels)


@pytest.mark.parametrize("centered", [True, False])
def test_round_trip_under_jit(centered):
    levels = jnp.arange(256, dtype=jnp.uint8)
    back = jax.jit(lambda u: data.to_uint8(data.to_float(u, centered), centered))(levels)
    np.testing.assert_array_equal(back, levels)


@pytest.mark.parametrize("module", [np, jnp], ids=["numpy", "jax"])
def test_to_uint8_rounds_to_the_nearest_and_clips(module):
    x = module.asarray([-9.0, -0.001, 0.49 / 255, 0.51 / 255, 1.51 / 255, 254.6 / 255, 1.2, np.inf, -np.inf, np.nan])
    x = x.astype(np.float32)
    np.testing.assert_array_equal(data.to_uint8(x, False), [0, 0, 0, 1, 2, 255, 255, 255, 0, 0])
    np.testing.assert_array_equal(data.to_uint8(2 * x - 1, True), [0, 0, 0, 1, 2, 255, 255, 255, 0, 0])


def test_scaling_passes_what_is_already_there_and_refuses_the_rest():
    vectors = np.ones((2, 2), np.float32)
    assert data.to_float(vectors, True) is vectors
    images = np.ones((1, 2, 2, 1), np.uint8)
    assert data.to_uint8(images, True) is images
    assert data.to_uint8(jnp.ones((2,), jnp.bfloat16), True).dtype == jnp.uint8
    for scale in (data.to_float, data.to_uint8):
        with pytest.raises(DataError, match="int32"):
            scale(np.ones((2,), np.int32), True)


# -------------------------------------------------------------------------------------------------------------- digits
def test_digits_are_scikit_learns_at_8_bits():
    bunch = load_digits()
    train, held_out = (digits.load(split).arrays() for split in ("train", "eval"))
    x = np.concatenate([train["x"], held_out["x"]])
    assert x.shape == (1797, 8, 8, 1) and x.dtype == np.uint8
    expected = np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8)  # 0 ... 16 to 0 ... 255
    levels = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert np.unique(expected).tolist() == levels

    def multiset(images, label):
        return sorted((bytes(image.ravel()), int(y)) for image, y in zip(images, label, strict=True))

    both = np.concatenate([train["label"], held_out["label"]])
    assert multiset(x, both) == multiset(expected, bunch.target)  # disjoint parts of the whole, labels kept


def test_digits_split_is_stratified_and_fixed():
    train, held_out = digits.load("train"), digits.load("eval")
    assert (train.num_examples, held_out.num_examples) == (1498, 299)
    assert train.num_classes == 10 and train.shape == (8, 8, 1)
    counts = [np.bincount(d.arrays()["label"], minlength=10) for d in (train, held_out)]
    np.testing.assert_array_equal(counts[1], np.round((counts[0] + counts[1]) / 6))
    np.testing.assert_array_equal(digits.load("eval").arrays()["x"], held_out.arrays()["x"])
    with pytest.raises(DataError, match="'train' and 'eval'"):
        digits.load("test")


@pytest.mark.parametrize("size", [4, 16, 32])
def test_digits_resize(size):
    small, large = digits.load("eval").arrays()["x"], digits.load("eval", image_size=size).arrays()["x"]
    assert large.shape == (299, size, size, 1) and large.dtype == np.uint8
    # Resizing keeps an image's mean, up to clipping of the overshoot and the border.
    np.testing.assert_allclose(large.mean((1, 2, 3)), small.mean((1, 2, 3)), atol=6)


# ---------------------------------------------------------------------------------------------------------------- toys
@pytest.mark.parametrize("name", toy.NAMES)
def test_toy_sets(name):
    train, held_out = (data.load(config(name=name, num_samples=20_000), split) for split in ("train", "eval"))
    assert (train.num_examples, held_out.num_examples) == (20_000, 4_000)
    assert train.shape == (2,) and not train.is_image
    x, label = train.arrays()["x"], train.arrays()["label"]
    assert x.dtype == np.float32 and label.dtype == np.int32
    np.testing.assert_array_equal(x, data.load(config(name=name, num_samples=20_000)).arrays()["x"])
    assert not set(map(bytes, x)) & set(map(bytes, held_out.arrays()["x"]))
    if train.num_classes is None:
        assert not label.any()
    else:  # the components are equally likely
        share = np.bincount(label, minlength=train.num_classes) / len(label)
        p = 1 / train.num_classes
        assert len(share) == train.num_classes
        np.testing.assert_allclose(share, p, atol=5 * np.sqrt(p * (1 - p) / len(label)))
    std, low = x.std(axis=0), 0.35 if name in ("diamond", "multimodal_swiss_roll") else 0.6
    assert np.all((low < std) & (std < 1.2)), std
    assert np.all(np.abs(x.mean(axis=0)) < 0.3)


def test_toy_moments_are_those_of_the_laws():
    x, label = toy.sample("ring", 100_000)
    for i in range(8):
        angle = np.pi / 4 * i
        part = x[label == i]
        np.testing.assert_allclose(part.mean(0), [1.5 * np.cos(angle), 1.5 * np.sin(angle)], atol=5 * 0.17 / 110)
        np.testing.assert_allclose(np.cov(part.T), 0.17**2 * np.eye(2), atol=5 * 0.17**2 * np.sqrt(2 / 12_000))
    x, _ = toy.sample("checkerboard", 20_000)
    cell = np.floor(x + 2).astype(int)
    assert cell.min() == 0 and cell.max() == 3 and not np.any((cell.sum(1)) % 2)
    assert len(np.unique(cell, axis=0)) == 8
    x, _ = toy.sample("diamond", 100_000)
    np.testing.assert_allclose(np.cov(x.T), (0.25 * 2 / 3 + 0.04**2) * np.eye(2), atol=3e-3)


def test_toy_seeds_and_errors():
    assert not np.array_equal(toy.sample("ring", 10, seed=0)[0], toy.sample("ring", 10, seed=1)[0])
    with pytest.raises(DataError, match="'donut'; there are ring, "):
        toy.sample("donut", 10)
    with pytest.raises(DataError, match="num_samples"):
        data.load(config(name="ring", num_samples=0))
    with pytest.raises(DataError, match="num_samples"):
        data.load(config(name="ring", num_samples=-5), "eval")


def test_vectors_are_never_flipped():
    dataset = data.load(config(name="moons", flip=True))
    assert not dataset.flip
    iterator = dataset.iterator(16, seed=0)
    batch = next(iterator)
    iterator.close()
    assert batch["x"].shape == (16, 2) and batch["x"].dtype == np.float32


# ---------------------------------------------------------------------------------------------------------------- load
def test_only_training_data_is_flipped():
    assert data.load(config(flip=True), "train").flip
    assert not data.load(config(flip=True), "eval").flip


def test_load_errors():
    with pytest.raises(DataError, match="eval_split is None"):
        data.load(config(eval_split=None), "eval")
    with pytest.raises(DataError, match="'train' or 'eval'"):
        data.load(config(), "test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="needs data.data_dir"):
        data.load(config(name="folder"))


def test_unknown_names_list_what_there_is(tmp_path):
    with pytest.raises(
        DataError, match=r"unknown data set 'digit' \(did you mean 'digits'\?\); there are digits, ring"
    ):
        data.load(config(name="digit", data_dir=str(tmp_path)))


def test_importing_needs_nothing_heavy():
    program = (
        "import sys, sgmjax.data, sgmjax.metrics\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'PIL', 'sklearn', 'torch', 'jax', 'ml_collections'}\n"
        "assert not heavy & set(sys.modules) - ALLOWED, heavy & set(sys.modules)"
    )
    # `import sgmjax` itself may bring jax.
    subprocess.run([sys.executable, "-c", program.replace("ALLOWED", "{'jax'}")], check=True)
