"""Labels and the names of classes, of every source."""

from __future__ import annotations

import numpy as np
import pytest
from image_folders import colour, config, save

from sgmjax import data
from sgmjax._inputs import InputError
from sgmjax.data import ArrayDataset, DataError, classes
from sgmjax.data.source import as_dataset

X = np.zeros((4, 2), np.float32)


# --------------------------------------------------------------------------------------------------- folders of images
def tree(root, *names):
    """Images whose value is their place in `names`."""
    for value, name in enumerate(names):
        save(root / name, colour(value))
    return root


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("training", "held_out", "names", "labels"),
    [
        (["bird", "cat", "dog"], ["cat", "dog"], ("bird", "cat", "dog"), [1, 2]),
        (["0", "1", "2", "10"], ["2", "10"], ("0", "1", "2", "10"), [3, 2]),  # the order of paths: 10, 2
        (["7", "05", "30"], ["30", "7"], ("05", "7", "30"), [2, 1]),
        (["a", "10", "2"], ["2"], ("10", "2", "a"), [1]),  # not all are numbers
    ],
)
def test_held_out_images_have_the_classes_of_training(tmp_path, in_memory, training, held_out, names, labels):
    tree(tmp_path, *(f"train/{name}/x.png" for name in training), *(f"test/{name}/x.png" for name in held_out))
    settings = config(tmp_path, eval_split="test", in_memory=in_memory)
    train, test = (data.load(settings, split) for split in ("train", "eval"))
    assert train.class_names == test.class_names == names
    assert train.num_classes == test.num_classes == len(names)
    assert test.read(np.arange(len(labels)))["label"].tolist() == labels


def test_both_parts_of_one_folder_have_its_classes(tmp_path):
    tree(tmp_path, *(f"{name}/{i}.png" for name in ("10", "9", "100") for i in range(20)))
    found = {}
    for split in ("train", "eval"):
        dataset = data.load(config(tmp_path, eval_split="test"), split)
        assert dataset.class_names == ("9", "10", "100")
        batch = dataset.arrays()
        found |= dict(zip(batch["x"][:, 0, 0, 0].tolist(), batch["label"].tolist(), strict=True))
    assert found == {value: [1, 0, 2][value // 20] for value in range(60)}


@pytest.mark.parametrize("stray", ["test/eel/x.png", "test/x.png"])
def test_a_held_out_class_that_training_lacks_is_an_error(tmp_path, stray):
    tree(tmp_path, "train/cat/x.png", "train/dog/x.png", "test/cat/x.png", stray)
    with pytest.raises(DataError, match=rf"{stray} is of no class of the training images \(0 cat, 1 dog\)") as error:
        data.load(config(tmp_path, eval_split="test"), "eval")
    assert "\n" not in str(error.value)
    assert data.load(config(tmp_path, eval_split="test")).num_classes == 2


def test_held_out_images_without_classes_have_no_labels(tmp_path):
    tree(tmp_path, "train/cat/x.png", "train/dog/x.png", "test/x.png")
    assert data.load(config(tmp_path, eval_split="test"), "eval").num_classes is None


def test_a_held_out_folder_without_a_training_one_is_no_class(tmp_path):
    tree(tmp_path, "training/x.png", "test/x.png")
    with pytest.raises(DataError, match="has a folder test .* and none called train: .*data.split"):
        data.load(config(tmp_path, eval_split="test"))
    settings = config(tmp_path, split="training", eval_split="test")
    assert data.load(settings).num_examples == data.load(settings, "eval").num_examples == 1


# --------------------------------------------------------------------------------------------------------------- arrays
@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ([1, 2, 3, 4], {"num_classes": 4}, r"mine: labels\[3\] is 4: 4 classes are 0 to 3"),
        ([0, -1, 1, 2], {"num_classes": 3}, r"labels\[1\] is -1"),
        ([0, 3, 6, 9], {}, "labels go up to 9 and 1 is not among them; .*num_classes=10"),
        ([1, 1, 2, 2], {}, "labels go up to 2 and 0 is not among them"),
        ([0, -1, 1, 2], {}, r"labels\[1\] is -1"),
        ([0.0, 1.0, 2.0, 3.0], {"num_classes": 4}, "must be integers, got float64"),
        ([True, False, True, True], {"num_classes": 2}, "must be integers, got bool"),
        (["a", "b", "a", "b"], {}, "must be integers"),
        (np.eye(4, dtype=int), {"num_classes": 4}, r"4 examples but labels of shape \(4, 4\)"),
        ([0, 1, 2], {"num_classes": 3}, r"4 examples but labels of shape \(3,\)"),
        (None, {"num_classes": 3}, "num_classes=3 means nothing without labels"),
        ([0, 1, 1, 0], {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ([0, 1, 1, 0], {"num_classes": 3, "class_names": ["a", "b"]}, "class_names must be 3 different names"),
        ([0, 1, 1, 0], {"class_names": ["a", "a"]}, "class_names must be 2 different names, got 0 a, 1 a"),
        ([0, 1, 2, 0], {"class_names": ["a", "b"]}, r"labels\[2\] is 2"),
    ],
)
def test_labels_that_cannot_be(label, options, message):
    with pytest.raises(DataError, match=message) as error:
        ArrayDataset("mine", X, None if label is None else np.array(label), **options)
    assert "\n" not in str(error.value)


def test_labels_that_can():
    for dtype in (np.uint8, np.int64):
        dataset = ArrayDataset("mine", X, np.array([2, 0, 1, 0], dtype))
        assert dataset.num_classes == 3 and dataset.arrays()["label"].tolist() == [2, 0, 1, 0]
        assert dataset.arrays()["label"].dtype == np.int32
    assert ArrayDataset("mine", X, np.array([0, 3, 3, 0]), num_classes=9).num_classes == 9
    named = ArrayDataset("mine", X, [0, 1, 1, 0], class_names=["no", "yes"])
    assert named.num_classes == 2 and named.class_names == ("no", "yes")
    assert ArrayDataset("mine", X).num_classes is None


def test_the_embedded_sets():
    digits = data.digits.load("train")
    assert digits.class_names == tuple("0123456789") and digits.num_classes == 10
    assert data.binarize.static(digits, "train").class_names == tuple("0123456789")
    for name, (_, components) in data.toy._SETS.items():
        assert data.toy.load(name, "train", num_samples=100).num_classes == components


class Labelled:
    """Grey images with any labels."""

    name, channels, num_classes, class_names = "labelled", 1, 3, ("a", "b", "c")

    def __init__(self, *labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def where(self, index):
        return f"example {index} of {self.name}"

    def read(self, indices):
        return [(np.zeros((2, 2, 1), np.uint8), self.labels[i]) for i in indices]


@pytest.mark.parametrize("in_memory", [True, False])
def test_labels_of_a_source(in_memory):
    def load(*labels):
        dataset = as_dataset(Labelled(*labels), in_memory=in_memory)
        return dataset, dataset.read(np.arange(len(labels)))["label"].tolist()

    dataset, labels = load(2, 0, 0)
    assert dataset.class_names == ("a", "b", "c") and dataset.num_classes == 3 and labels == [2, 0, 0]
    dataset, labels = load(-1, -1)  # the test part of some TFDS sets
    assert dataset.class_names is None and dataset.num_classes is None and labels == [0, 0]
    with pytest.raises(DataError, match="example 1 of labelled has no label, and others have one"):
        load(0, -1)
    with pytest.raises(DataError, match="example 2 of labelled has the label 3; 3 classes are 0 to 2"):
        load(0, 1, 3)


# ---------------------------------------------------------------------------------------------------------------- words
def test_classes_by_name_and_number():
    names = ("bird", "cat", "dog")
    assert classes.to_labels(["dog", "0", "cat", "2"], 3, names, "--labels").tolist() == [2, 0, 1, 2]
    assert classes.to_labels(["2", "00"], 3, None, "--labels").tolist() == [2, 0]
    assert classes.to_labels(["10", "9"], 11, tuple(map(str, range(11))), "--labels").tolist() == [10, 9]
    assert classes.to_labels(["4", "1"], 4, ("1", "2", "3", "4"), "--labels").tolist() == [3, 0]  # names


@pytest.mark.parametrize(
    ("word", "names", "message"),
    [
        (
            "3",
            ("bird", "cat", "dog"),
            "'3' is no class; they are 0 bird, 1 cat, 2 dog; give names or numbers",
        ),
        ("cot", ("bird", "cat", "dog"), "'cot' is no class"),
        ("-1", ("bird", "cat", "dog"), "'-1' is no class"),
        ("1.0", None, "'1.0' is no class; they are 0 to 2"),
        ("\u0661", None, "is no class; they are 0 to 2"),  # a digit, but not of ASCII
        ("0", ("1", "2", "3"), "'0' is no class; they are called 1, 2, 3; some names are numbers, so give names"),
        ("2", ("1", "a", "b"), "they are called 1, a, b"),
    ],
)
def test_words_that_are_no_class(word, names, message):
    with pytest.raises(InputError) as error:
        classes.to_labels([word], 3, names, "--labels")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_many_classes_are_listed_in_short():
    assert classes.listed(("a", "b")) == "0 a, 1 b"
    line = classes.listed(tuple(f"n{i}" for i in range(1000)))
    assert line.startswith("0 n0, 1 n1, ") and line.endswith(", ..., 999 n999") and len(line) < 120
