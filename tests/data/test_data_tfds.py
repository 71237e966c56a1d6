"""TFDS sets, read from disk without TensorFlow, and the command that prepares them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import refdata

from sgmjax import data
from sgmjax.data import DataError, prepare
from sgmjax.data.source import as_dataset
from sgmjax.data.tfds import NotPreparedError, TfdsSource, find_builder, prepare_command


def config(folder, **settings):
    defaults = {
        "name": "mnist",
        "data_dir": str(folder),
        "split": "train",
        "eval_split": "test",
        "image_size": None,
        "flip": False,
        "range": None,
        "in_memory": None,
        "memory_limit_gb": 2.0,
        "num_samples": 1,
        "binarize": "none",
    }
    return data.DataSettings(**{**defaults, **settings})


def prepared(data_dir) -> list[tuple[str, dict]]:
    """Name and dataset_info of every set in the folder."""
    found = sorted(data_dir.glob("*/*/dataset_info.json"))
    if not found:
        pytest.skip(f"no data sets in {data_dir}")
    return [(path.parent.parent.name, json.loads(path.read_text())) for path in found]


def test_every_set_of_the_folder_can_be_read(data_dir):
    for name, info in prepared(data_dir):
        builder = find_builder(name, str(data_dir))
        for split in info["splits"]:
            num = sum(map(int, split["shardLengths"]))
            source = TfdsSource(name, split["name"], str(data_dir))
            assert len(source) == num
            assert source.num_classes == builder.info.features["label"].num_classes
            image, label = source.read([num - 1])[0]
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in (1, 3)
            assert -1 <= label < source.num_classes


@pytest.mark.parametrize("name", ["mnist", "cifar10", "omniglot_small"])
def test_memory_and_disk_agree_on_real_data(data_dir, name, capfd):
    if not (data_dir / name).is_dir():
        pytest.skip(f"no {name} in {data_dir}")
    settings = config(data_dir, name=name, split="train[:400]", eval_split="test[:100]", flip=True)
    memory = data.load(settings)
    lazy = data.load(dataclasses.replace(settings, in_memory=False))
    assert memory.in_memory and not lazy.in_memory
    assert memory.shape == lazy.shape and memory.num_examples == lazy.num_examples == 400
    a, b = memory.iterator(64, seed=5), lazy.iterator(64, seed=5)
    for _ in range(8):
        x, y = next(a), next(b)
        np.testing.assert_array_equal(x["x"], y["x"])
        np.testing.assert_array_equal(x["label"], y["label"])
    a.close()
    b.close()
    held_out = data.load(settings, "eval")
    assert held_out.num_examples == 100 and not held_out.flip
    assert "group size" not in capfd.readouterr().err


def test_mnist_is_mnist(data_dir):
    if not (data_dir / "mnist").is_dir():
        pytest.skip(f"no mnist in {data_dir}")
    arrays = data.load(config(data_dir, split="test")).arrays()
    assert arrays["x"].shape == (10_000, 28, 28, 1)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # of the published test set
    assert np.bincount(arrays["label"]).tolist() == counts
    assert abs(arrays["x"].mean() / 255 - 0.1325) < 1e-3


def test_resized_tfds_images(data_dir):
    if not (data_dir / "mnist").is_dir():
        pytest.skip(f"no mnist in {data_dir}")
    dataset = data.load(config(data_dir, split="test[:20]", image_size=32))
    assert dataset.shape == (32, 32, 1)


def test_unknown_split_names_those_there_are(data_dir):
    if not (data_dir / "mnist").is_dir():
        pytest.skip(f"no mnist in {data_dir}")
    with pytest.raises(DataError, match="mnist has no split 'validation'; it has train, test") as error:
        data.load(config(data_dir, eval_split="validation"), "eval")
    assert "\n" not in str(error.value)


def test_a_set_that_is_not_prepared_says_the_command(tmp_path):
    command = f"python -m sgmjax.data.prepare cifar100 --data_dir={tmp_path}"
    with pytest.raises(NotPreparedError) as error:
        data.load(config(tmp_path, name="cifar100"))
    assert str(error.value).endswith(command) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []  # nothing was downloaded or created
    assert prepare_command("a/b", "/with space") == "python -m sgmjax.data.prepare a/b --data_dir='/with space'"


def test_bad_names(tmp_path):
    with pytest.raises(DataError, match="no name of a TFDS data set"):
        data.load(config(tmp_path, name="no name?"))


def test_reading_imports_no_tensorflow(data_dir):
    if not (data_dir / "mnist").is_dir():
        pytest.skip(f"no mnist in {data_dir}")
    program = (
        "import sys; from types import SimpleNamespace as N; from sgmjax import data\n"
        f"c = N(name='mnist', data_dir={str(data_dir)!r}, split='test[:64]', eval_split=None, image_size=None,"
        " flip=False, in_memory=False, memory_limit_gb=1, num_samples=1, binarize='none', range=None)\n"
        "it = data.load(c).iterator(8, seed=0); assert next(it)['x'].shape == (8, 28, 28, 1); it.close()\n"
        "assert 'grain' in sys.modules and 'tensorflow' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no log lines either


def test_the_log_filter_lets_other_messages_pass(caplog):
    from sgmjax.data.tfds import import_tfds

    import_tfds()
    with caplog.at_level(logging.WARNING):
        logging.getLogger("absl").error("File x was created with group size 16. Grain requires group size 1")
        logging.getLogger("absl").error("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


class MixedSource:
    name = "mixed"
    num_classes = class_names = channels = None

    def __init__(self, shapes):
        self.shapes = shapes

    def __len__(self):
        return len(self.shapes)

    def where(self, index):
        return f"example {index} of mixed"

    def read(self, indices):
        return [(np.zeros(self.shapes[i], np.uint8), 0) for i in indices]


@pytest.mark.parametrize("in_memory", [True, False])
def test_different_sizes_need_image_size(in_memory):
    source = MixedSource([(4, 4, 1), (4, 4, 1), (5, 4, 1)])
    with pytest.raises(DataError, match="example 2 of mixed is 5x4 .* example 0 of mixed is 4x4: set data.image_size"):
        as_dataset(source, in_memory=in_memory)
    assert as_dataset(source, in_memory=in_memory, image_size=4).shape == (4, 4, 1)
    mixed = as_dataset(MixedSource([(4, 4, 1), (4, 4, 3)]), in_memory=in_memory, image_size=4)
    assert mixed.shape == (4, 4, 3) and mixed.read(np.arange(2))["x"].shape == (2, 4, 4, 3)
    with pytest.raises(DataError, match="no examples"):
        as_dataset(MixedSource([]))


# ------------------------------------------------------------------------------------------------------------- prepare
def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sgmjax.data.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_prepare_says_when_nothing_is_to_be_done(data_dir):
    name, info = prepared(data_dir)[0]
    result = run(name, f"--data_dir={data_dir}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{name} is already prepared in {data_dir / name}")
    listed = run("--list", f"--data_dir={data_dir}")
    assert listed.returncode == 0 and listed.stdout.splitlines()[0].split()[3] == name and " cifar100 " in listed.stdout


def test_prepare_errors_are_one_line(tmp_path, capsys, monkeypatch):
    assert prepare.main(["cifra10", f"--data_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err == (
        "error: TFDS has no data set 'cifra10': did you mean 'cifar10'? see python -m sgmjax.data.prepare --list\n"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert prepare.main(["cifar10", f"--data_dir={tmp_path}"]) == 1
    assert "pip install 'sgmjax[prepare]'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        prepare.main([])
    assert stop.value.code == 2


def test_prepare_reports_what_tfds_raises(tmp_path, capsys, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def builder(name, **options):
        assert (name, options) == ("cifar10", {"data_dir": str(tmp_path / "new"), "file_format": "array_record"})
        raise OSError("no route to host\nmore lines")

    monkeypatch.setattr(tfds, "builder", builder)
    assert prepare.main(["cifar10", f"--data_dir={tmp_path / 'new'}"]) == 1
    assert capsys.readouterr().err == (
        f"error: could not prepare cifar10 in {tmp_path / 'new'}: OSError: no route to host\n"
    )


BUILDER = """
import sys
import numpy as np
import tensorflow_datasets as tfds
from etils import epath


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(__file__).parent

    def _info(self):
        image, label = tfds.features.Image(shape=(None, None, 3)), tfds.features.ClassLabel(num_classes=3)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(4)}

    def _generate_examples(self, num):
        for i in range(num):
            yield i, {"image": np.full((8, 10, 3), i, np.uint8), "label": i % 3}


from sgmjax.data import prepare
sys.exit(prepare.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_prepare_and_read_a_set_without_network(tmp_path):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed (pip install 'sgmjax[prepare]')")
    (tmp_path / "program.py").write_text(BUILDER)
    environment = {**os.environ, "PYTHONPATH": str(refdata.ROOT)}  # also where the package is not installed
    command = [sys.executable, str(tmp_path / "program.py"), "tiny_shapes", f"--data_dir={tmp_path / 'sets'}"]
    for expected in ("prepared tiny_shapes in", "tiny_shapes is already prepared in"):
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0 and expected in result.stdout, result.stderr
    dataset = data.load(config(tmp_path / "sets", name="tiny_shapes", image_size=4))
    assert dataset.shape == (4, 4, 3) and dataset.num_classes == 3
    assert sorted(dataset.arrays()["x"][:, 0, 0, 0].tolist()) == list(range(20))
