"""One's own arrays as data: what is accepted, what is refused and with which fix, and what a file of arrays holds."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import data
from sgmjax._inputs import InputError
from sgmjax.config import ConfigError, DataConfig, from_dict
from sgmjax.data import ArrayDataset, DataError, binarize
from sgmjax.data.examples import check_values

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("x", "dtype", "shape"),
    [
        ([[0.5, 1.0], [2.0, 3.0]], np.float32, (2,)),
        ([np.zeros(3), np.ones(3)], np.float32, (3,)),
        (np.zeros((2, 3), np.float64), np.float32, (3,)),
        (np.ma.masked_array(np.zeros((2, 3))), np.float32, (3,)),  # nothing is
        (np.zeros((2, 3), np.float16), np.float32, (3,)),
        (jnp.zeros((2, 3), jnp.bfloat16), np.float32, (3,)),
        (np.zeros((2, 64, 3)), np.float32, (64, 3)),
        (np.zeros((2, 16, 8, 1), np.uint8), np.uint8, (16, 8, 1)),
        (np.zeros((2, 8, 8, 3)), np.float32, (8, 8, 3)),
        (np.zeros((2, 3, 4, 3), np.uint8), np.uint8, (3, 4, 3)),  # images of three rows, too small for channels first
        (np.zeros((2, 4, 4, 4, 1), np.float32), np.float32, (4, 4, 4, 1)),
    ],
)
def test_what_forms_an_array_of_examples_is_taken(x, dtype, shape):
    dataset = data.arrays(x)
    assert (dataset.shape, dataset.num_examples, dataset.num_classes) == (shape, 2, None)
    assert dataset.discrete == (dtype == np.uint8) and dataset.arrays()["x"].dtype == dtype
    assert dataset.is_image == (len(shape) == 3)
    np.testing.assert_array_equal(dataset.arrays()["x"], np.asarray(x, np.float32))


NAN, HUGE = np.zeros((4, 3, 2)), np.zeros((4, 3))
NAN[2, 1, 0], HUGE[3, 1] = np.nan, 1e300
INF = np.zeros((5, 2), np.float32)
INF[[1, 4]] = -np.inf
BAD = [
    ([[1.0, 2.0], [3.0]], r"example 1 has shape \(1,\) and example 0 \(2,\)"),
    ([[1.0], [[2.0, 3.0], [4.0]]], "example 1 is ragged"),
    (7.0, r"expected vectors \(n, D\), signals .*got float64 \(\)"),
    ("abc", "got <U3"),
    (np.zeros(5), r"single numbers are vectors of one, x\[:, None\]"),
    (np.zeros((2, 3, 0)), "axis of length 0"),
    (np.zeros((0, 3)), "no examples"),
    (np.zeros((2, 28, 28), np.uint8), r"no channel axis: grey images are x\[..., None\]"),
    (np.zeros((2, 3, 32, 32), np.uint8), r"channels first, and they come last: x.transpose\(0, 2, 3, 1\)$"),
    (np.zeros((2, 1, 28, 20), np.float32), r"x.transpose\(0, 2, 3, 1\), or a signal as x\[:, 0\]"),
    (np.zeros((2, 8, 8, 1), np.int64) + 255, r"int64 .*give x.astype\(np.uint8\)"),
    (np.zeros((2, 8, 8, 1), np.uint16) + 4095, r"uint16 .*give x.astype\(np.float32\), scaled"),
    (np.zeros((2, 8, 8, 1), bool), r"bool .*x.astype\(np.uint8\) \* 255"),
    (np.zeros((2, 3), np.complex64), "must be real numbers, got complex64"),
    (NAN, r"mine\[2, 1, 0\] is nan: it must be finite"),
    (INF, r"mine\[1, 0\] is -inf: it must be finite \(4 of 10 values"),
    (np.ma.masked_equal(np.arange(6.0).reshape(3, 2), 3), r"mine\[1, 1\] is masked: leave such examples out, or fill"),
    ([np.zeros(2), np.ma.masked_array([1.0, 2.0], [True, True])], r"mine\[1\]\[0\] is masked: .* \(2 of 2 values"),
    (HUGE, r"mine\[3, 1\] is 1e\+300: the largest is 3.40282e\+38"),
]


@pytest.mark.parametrize(("x", "message"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("make", [ArrayDataset, lambda name, x: data.arrays(x, name=name)], ids=["class", "function"])
def test_what_is_no_array_of_examples_is_one_line_with_the_place_or_the_fix(make, x, message):
    with pytest.raises(DataError, match=message) as error:
        make("mine", x)
    assert "\n" not in str(error.value)


def test_labels_and_flips_of_arrays():
    x = np.zeros((3, 4, 4, 1), np.uint8)
    dataset = data.arrays(x, [2, 0, 1], flip=True)
    assert dataset.num_classes == 3 and dataset.flip and dataset.arrays()["label"].tolist() == [2, 0, 1]
    assert data.arrays(x, [0, 0, 1], num_classes=5).num_classes == 5
    for labels, options, message in (
        ([0, 1], {}, r"shape \(2,\), expected \(3,\)"),
        ([0.0, 1.0, 2.0], {}, "must be integers"),
        (np.ma.masked_array([0, 1, 1], [0, 1, 0]), {}, r"labels\[1\] is masked"),
        ([0, -1, 1], {}, r"labels\[1\] is -1"),
        ([1, 2, 3], {"num_classes": 3}, r"labels\[2\] is 3: 3 classes are 0 to 2"),
        (None, {"num_classes": 3}, "means nothing without labels"),
    ):
        with pytest.raises(InputError, match=message):
            data.arrays(x, labels, **options)
    with pytest.raises(DataError, match="flip .* is for images"):
        data.arrays(np.zeros((3, 8, 2)), flip=True)


@pytest.mark.parametrize(
    ("low", "high", "centered", "message"),
    [
        (
            0.0,
            255.0,
            True,
            r"255.0: the largest is 1; .*\[-1, 1\] \(data.centered=True\): give x / 127.5 - 1, or uint8",
        ),
        (0.0, 255.0, False, r"255.0: the largest is 1; .*\[0, 1\] \(data.centered=False\): give x / 255, or uint8"),
        (-1.0, 1.0, False, r"-1.0: the least is 0; .*set data.centered=True, or give \(x \+ 1\) / 2"),
        (-1.5, 1.0, True, "-1.5: the least is -1; .*scale or clip them"),
        (-1.0, 1.0, True, None),
        (0.0, 1.0, False, None),
        (0.0, 1.0 + 1e-6, False, None),  # rounding
    ],
)
def test_float_images_lie_in_the_range_of_the_network(low, high, centered, message):
    x = np.full((3, 4, 4, 1), 0.5, np.float32)
    x[1, 2, 3, 0], x[2, 0, 0, 0] = low, high
    if message is None:
        check_values(data.arrays(x), centered)
    else:
        place = r"arrays\[1, 2, 3, 0\] is " if message[0] == "-" else r"arrays\[2, 0, 0, 0\] is "
        with pytest.raises(DataError, match=place + message):
            check_values(data.arrays(x), centered)
    check_values(data.arrays(100 * x[..., 0]), centered)  # signals have units of their own
    check_values(data.arrays(np.full((3, 4, 4, 1), 255, np.uint8)), centered)


def test_values_of_sets_that_are_not_in_memory_are_looked_at():
    class Disk(ArrayDataset):
        in_memory = False

    dataset = Disk("disk", np.zeros((10, 2)))
    dataset._x[0, 1] = np.nan  # what a reader of files may come upon
    with pytest.raises(DataError, match=r"disk\[0, 1\] is nan"):
        check_values(dataset, True)


def test_static_binarisation_needs_grey_levels():
    with pytest.raises(DataError, match="needs grey values 0 to 255, uint8"):
        binarize.static(data.arrays(np.zeros((2, 4, 4, 1))), "train")


# --------------------------------------------------------------------------------------------------------------- files
def settings(path, **more) -> DataConfig:
    return from_dict({"data": {"name": "npz", "path": str(path), **more}}).data


def test_one_example_in_twenty_of_a_file_is_held_out(tmp_path):
    file = tmp_path / "mine.npz"
    x = RNG.normal(size=(100, 3))
    labels = np.arange(100) % 4
    np.savez(file, images=x, label=labels)
    train, held_out = (data.load(settings(file), split) for split in ("train", "eval"))
    assert (train.num_examples, held_out.num_examples) == (95, 5)
    assert train.num_classes == held_out.num_classes == 4 and "mine.npz (train)" in train.name
    rows = {tuple(row): label for row, label in zip(x.astype(np.float32), labels, strict=True)}
    both = [part.arrays() for part in (train, held_out)]
    found = [(tuple(row), label) for part in both for row, label in zip(part["x"], part["label"], strict=True)]
    assert dict(found) == rows and len(found) == 100  # every example once, with its own label
    again = data.load(settings(file), "eval").arrays()["x"]
    np.testing.assert_array_equal(again, both[1]["x"])
    assert data.load(settings(file, eval_split=None)).num_examples == 100


def test_held_out_arrays_of_a_file_are_used(tmp_path):
    file = tmp_path / "mine.npz"
    x, x_test = RNG.integers(0, 256, (6, 4, 4, 1), np.uint8), RNG.integers(0, 256, (3, 4, 4, 1), np.uint8)
    np.savez(file, x_train=x, y_train=np.arange(6), x_test=x_test, y_test=np.array([5, 0, 2]))
    train, held_out = (data.load(settings(file, flip=True), split) for split in ("train", "eval"))
    np.testing.assert_array_equal(train.arrays()["x"], x)
    np.testing.assert_array_equal(held_out.arrays()["x"], x_test)
    assert train.flip and not held_out.flip and held_out.num_classes == 6
    assert held_out.arrays()["label"].tolist() == [5, 0, 2]


def test_a_plain_array_is_a_file_too(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((40, 2)))
    assert data.load(settings(tmp_path / "x.npy")).num_examples == 38


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((3, 2))}, "no array x .*; it has z"),
        ({"x": np.zeros((3, 2)), "labels": np.arange(4)}, r"x.npz: labels: have shape \(4,\), expected \(3,\)"),
        ({"x": np.zeros((3, 2)), "labels": np.arange(3) + 0.5}, "labels: must be integers"),
        ({"x": np.zeros((3, 2)), "labels": np.arange(3), "x_test": np.zeros((3, 2))}, "has labels and no labels_test"),
        ({"x": np.zeros((3, 2)), "labels_test": np.arange(3)}, "has labels_test and no labels"),
        ({"x": np.zeros((3, 2)), "labels": np.arange(3), "labels_test": np.arange(3)}, "labels_test and no x_test"),
        ({"x": np.full((3, 2), np.nan)}, r"x.npz: x\[0, 0\] is nan"),
        ({"x": np.zeros((3, 2)), "x_test": np.full((3, 2), np.inf)}, r"x.npz: x_test\[0, 0\] is inf"),
        ({"x": np.zeros((1, 2))}, "of one example none can be held out; give x_test, or data.eval_split=None"),
    ],
    ids=range(9),
)
def test_files_that_hold_no_data_set(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message) as error:
        data.load(settings(tmp_path / "x.npz"), "train")
    assert "\n" not in str(error.value)


def test_held_out_labels_are_classes_of_the_training_data(tmp_path):
    x = np.zeros((3, 2))
    np.savez(tmp_path / "x.npz", x=x, labels=[0, 1, 1], x_test=x, labels_test=[0, 1, 2])
    with pytest.raises(InputError, match=r"labels\[2\] is 2: 2 classes are 0 to 1"):
        data.load(settings(tmp_path / "x.npz"), "eval")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "npz"}, "needs the file of arrays, as --config.data.path=FILE.npz"),
        ({"name": "ring", "path": "x.npz"}, "data.path: is read with data.name='npz', and data.name is 'ring'"),
        ({"name": "npz", "path": "x.npz", "image_size": 8}, "data.image_size: 8 means nothing for arrays"),
        ({"name": "npz", "path": "x.npz", "data_dir": "x"}, "data.data_dir: 'x' means nothing for arrays"),
        ({"name": "npz", "path": "x.npz", "num_samples": 8}, "data.num_samples: 8 means nothing"),
        ({"name": "npz", "path": "x.npz", "in_memory": False}, "data.in_memory: False means nothing"),
        ({"name": "npz", "path": "x.npz", "split": "training"}, "data.split: 'training' means nothing"),
        ({"name": "npz", "path": "x.npz", "eval_split": "validation"}, "use that, or None"),
    ],
)
def test_settings_that_nothing_reads_are_errors(section, message):
    with pytest.raises(ConfigError, match=message):
        from_dict({"data": section})
