"""Metrics of samples in features: the same however the samples come about, and moving with what they measure."""

from __future__ import annotations

import dataclasses
import json
import re
from types import SimpleNamespace
from unittest.mock import ANY

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import _files
from sgmjax import metrics as distances
from sgmjax import sharding as sh
from sgmjax._inputs import InputError
from sgmjax.data import ArrayDataset
from sgmjax.evaluation import compare, metrics
from sgmjax.evaluation.compare import generate
from sgmjax.evaluation.draw import print_frechet
from sgmjax.evaluation.features import Features, load_features
from sgmjax.evaluation.report import write_report
from sgmjax.evaluation.statistics_file import Convention, write_statistics
from sgmjax.samplers.plan import Plan
from sgmjax.tasks.base import Variables

RANDOM = np.random.default_rng(0)
MODES = RANDOM.integers(40, 216, (4, 2, 2, 1)).astype(np.float32)


def images(num: int, rng: np.random.Generator, modes: int = 4, noise: float = 8.0) -> np.ndarray:
    """Images near some of the modes, uint8."""
    x = MODES[rng.integers(modes, size=num)] + noise * rng.standard_normal((num, 2, 2, 1))
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


TRAIN, TEST = (ArrayDataset(name, images(num, RANDOM)) for name, num in (("train", 1500), ("test", 700)))


@dataclasses.dataclass(frozen=True)
class Draws:
    """A model that draws images near modes, or copies of training images, from its key alone."""

    modes: int = 4
    noise: float = 8.0
    copies: bool = False
    event_shape = (2, 2, 1)
    discrete, centered, num_classes, sde, score_fn = True, True, None, None, None

    def sample(self, variables, key, num, plan):
        which, noise = jax.random.split(key)
        if self.copies:
            x = jnp.asarray(TRAIN.read(np.arange(1500))["x"])[jax.random.randint(which, (num,), 0, 1500)]
        else:
            x = jnp.asarray(MODES)[jax.random.randint(which, (num,), 0, self.modes)]
            x = x + self.noise * jax.random.normal(noise, x.shape)
        return x.astype(jnp.float32) / 127.5 - 1 + 0.0 * variables.params, SimpleNamespace(nfe=7)


def subject(task=None, devices: int = 1, **more):
    return metrics.Subject(
        task=task or Draws(), variables=Variables(jnp.zeros(()), {}), data=TEST, others=lambda: TRAIN, plan=Plan(),
        mesh=sh.make_mesh(1, jax.devices()[:devices]), num=600, batch_size=64, **more,
    )  # fmt: skip


SETTINGS = metrics.Settings(features="pixels", subsets=20, subset_size=300)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Features of real images are kept by their name, which the tests give to several."""
    monkeypatch.setenv(_files.CACHE, str(tmp_path / "cache"))


def measure(name, of, settings=SETTINGS):
    return metrics.METRICS[name](of, settings).numbers


def test_samples_do_not_depend_on_devices_batches_or_stops(tmp_path):
    """Each is of its own index: on one device and on eight, in batches of any size, in one go and in four."""
    whole = np.concatenate(list(generate(subject(), SETTINGS)))
    for devices, batch in ((8, 64), (1, 17), (8, 600)):
        settings = dataclasses.replace(SETTINGS, batch_size=batch)
        np.testing.assert_array_equal(np.concatenate(list(generate(subject(devices=devices), settings))), whole)
    on_disk = dataclasses.replace(SETTINGS, folder=tmp_path / "set", batch_size=100)
    left = [2, 3, 99]
    for pieces in left:
        counted = iter(range(100))
        with_stop = subject(stop=lambda counted=counted, pieces=pieces: next(counted) >= pieces)
        chunk = 100  # six pieces: 600 samples in batches of 100 would be one
        try:
            samples = _in_pieces(with_stop, on_disk, chunk)
        except metrics.Unfinished:
            continue
    np.testing.assert_array_equal(np.concatenate(list(samples)), whole)
    assert [notes["nfe"] for notes in samples.notes()] == [7] * 6


def test_many_samples_after_a_few(tmp_path):
    """A folder of pieces of four: drawn and looked at in whole batches all the same, and the same samples."""
    drawn = []

    def apply(variables, pixels):
        return pixels.astype(jnp.float32).reshape(len(pixels), -1), None

    settings = dataclasses.replace(SETTINGS, folder=tmp_path / "set", batch_size=64)
    settings = dataclasses.replace(settings, features=Features("few", Convention("few"), 4, apply))
    few = measure("fd", subject(), dataclasses.replace(settings, num=4))
    of = subject()
    original = compare.sampler_of

    def counted(*given):
        sampler = original(*given)
        inner = sampler._draw
        sampler._draw = lambda *args: drawn.append(1) or inner(*args)
        return sampler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "sampler_of", counted)
        found = measure("fd", of, dataclasses.replace(settings, num=600))
    assert len(drawn) == 10  # batches of 64 for 596 samples
    samples = generate(of, dataclasses.replace(settings, num=600))
    np.testing.assert_array_equal(np.concatenate(list(samples)), np.concatenate(list(generate(subject(), SETTINGS))))
    assert found["fd"] == pytest.approx(measure("fd", subject(), SETTINGS)["fd"] * 255**2, rel=1e-4)
    assert len(list((tmp_path / "set").glob("features_few/*.npy"))) == 150 and few["fd"] != found["fd"]


def _in_pieces(of, settings, chunk):
    original = compare.chunk_size
    compare.chunk_size = lambda num, batch: chunk
    try:
        return generate(of, settings)
    finally:
        compare.chunk_size = original


def test_metrics_do_not_depend_on_devices_batches_or_where_samples_lie(tmp_path):
    names = ("fd", "kid", "pr", "dc", "mind", "memorisation")
    one = {name: measure(name, of) for of in [subject()] for name in names}
    settings = dataclasses.replace(SETTINGS, batch_size=96, folder=tmp_path / "set")
    other = {name: measure(name, of, settings) for of in [subject(devices=8)] for name in names}
    for name in names:
        for key, value in one[name].items():
            assert other[name][key] == pytest.approx(value, rel=1e-9), (name, key)


def test_the_numbers_are_those_of_the_functions():
    of = subject()
    rows = {"samples": np.concatenate(list(generate(of, SETTINGS))), "real": TRAIN.read(np.arange(1500))["x"]}
    rows = {name: (x.astype(np.float32) / np.float32(255)).reshape(len(x), -1) for name, x in rows.items()}
    expected = distances.frechet_distance(rows["samples"], rows["real"])
    found = metrics.METRICS["fd"](of, SETTINGS)
    assert found.numbers["fd"] == pytest.approx(expected, rel=1e-6)
    assert "of 600 samples against 1500 train images, NFE 7; 0.00" in found.lines[0]
    assert found.record["data"] == {"name": "train", "split": "train", "num": 1500}
    assert found.record["floor"] == {"name": "test", "num": 600} and found.record["features"] == "pixels"
    kid = distances.kid(rows["samples"], rows["real"], num_subsets=20, subset_size=300)
    assert measure("kid", of)["kid"] == pytest.approx(kid.mean, abs=1e-9)
    held_out = dataclasses.replace(SETTINGS, against="test")
    record = metrics.METRICS["fd"](subject(), held_out).record
    assert record["data"]["name"] == "test" and record["floor"]["name"] == "train"


def test_the_record_has_the_settings_that_were_used():
    def apply(variables, pixels):
        x = pixels.astype(jnp.float32).reshape(len(pixels), -1)
        return x, x

    of, features = subject(), Features("used", Convention("used"), 4, apply)
    few = metrics.Settings(num=8, features=features, subsets=3, splits=20, seed=5)
    expected = {
        "fd": {}, "kid": {"subsets": 3, "subset_size": 8}, "is": {"splits": 8}, "pr": {"k": 3}, "dc": {"k": 5},
        "mind": {"seed": 5}, "balance": {},
    }  # fmt: skip
    records = {name: metrics.METRICS[name](of, few).record for name in expected}
    assert {name: record["settings"] for name, record in records.items()} == expected
    assert all(record["floor"] == {"name": "test", "num": 8} for record in records.values())
    other = dataclasses.replace(few, k=2, num=1000)
    assert metrics.METRICS["pr"](of, other).record["settings"] == {"k": 2}
    record = metrics.METRICS["kid"](of, other).record  # 700 spare examples
    assert record["settings"] == {"subsets": 3, "subset_size": 1000}
    assert record["floor"] == {"name": "test", "num": 700, "settings": {"subsets": 3, "subset_size": 700}}


def test_they_move_with_what_they_measure():
    """Of a good model each is near its floor; a mode dropped, noise added and training images copied show."""
    good, dropped, noisy, copies = (subject(task) for task in (Draws(), Draws(3), Draws(4, 40.0), Draws(copies=True)))
    for name in ("fd", "mind"):
        near = measure(name, good)
        assert near[name] < 3 * near[f"{name}_floor"]
        assert measure(name, dropped)[name] > 10 * near[name] and measure(name, noisy)[name] > 5 * near[name]
    kid = measure("kid", good)
    assert abs(kid["kid"]) < 4 * kid["kid_std"] / np.sqrt(20) + 1e-4
    assert measure("kid", dropped)["kid"] > 20 * abs(kid["kid"])
    pr = measure("pr", good)
    assert measure("pr", dropped)["pr_recall"] < pr["pr_recall"] - 0.15
    assert measure("pr", noisy)["pr_precision"] < pr["pr_precision"] - 0.3
    assert measure("dc", dropped)["dc_coverage"] < measure("dc", good)["dc_coverage"] - 0.15
    assert 0.7 < measure("memorisation", good)["memorisation_ratio"] < 1.4
    assert measure("memorisation", copies)["memorisation_ratio"] == 0


def test_few_perfect_samples_are_as_far_as_as_many_real_ones(capsys):
    noise = np.random.default_rng(3).integers(0, 256, (440, 8, 8, 1), dtype=np.uint8)  # 64 dimensions and 40 samples
    print_frechet(noise[:40], ArrayDataset("train", noise[40:]), centered=True)
    distance, floor = map(float, re.findall(r"(\d+\.\d+) between", capsys.readouterr().out))
    assert 0.8 < distance / floor < 1.25
    assert distance > 2 * distances.pixel_frechet(noise[:200], noise[200:400])


def test_a_file_of_statistics_in_place_of_the_data(tmp_path):
    rows = TRAIN.read(np.arange(1500))["x"].reshape(1500, -1).astype(np.float32) / np.float32(255)
    path = tmp_path / "train.npz"
    write_statistics(path, distances.statistics(rows), Convention("pixels"))
    settings = dataclasses.replace(SETTINGS, reference=str(path))
    assert measure("fd", subject(), settings)["fd"] == pytest.approx(
        measure("fd", subject())["fd"], rel=1e-5
    )  # float32 scaling
    with pytest.raises(InputError, match="kid needs the features of the data"):
        measure("kid", subject(), settings)
    write_statistics(path, distances.statistics(rows), Convention("inception-2015-12-05", "tf1"))
    with pytest.raises(InputError, match="another convention"):
        measure("fd", subject(), settings)


def test_what_has_no_classes_has_no_inception_score():
    of = subject()
    with pytest.raises(InputError, match="is needs a classifier, and features 'pixels' have no classes"):
        measure("is", of)
    with pytest.raises(InputError, match="fid is of the published Inception features"):
        measure("fid", of)
    with pytest.raises(InputError, match="dc looks for the 5 nearest of the other samples, and there are 5 in all"):
        measure("dc", of, dataclasses.replace(SETTINGS, num=5))
    floats = dataclasses.replace(
        SETTINGS, features=dataclasses.replace(load_features("pixels", (2, 2, 1)), discrete=True)
    )
    task = Draws()
    object.__setattr__(task, "discrete", False)
    other = subject(task)
    with pytest.raises(InputError, match="features 'pixels' are of 8-bit images, and examples of this run are floats"):
        measure("fd", other, floats)
    assert not any("samples" in key for one in (of, other) for key in one.memo)  # before anything was drawn


def test_too_few_real_images_for_a_floor():
    """Four spare ones have no fifth nearest neighbour; the third they have."""
    few = ArrayDataset("few", TEST.read(np.arange(4))["x"])
    of = dataclasses.replace(subject(), data=few)
    settings = dataclasses.replace(SETTINGS, num=8)
    assert set(measure("dc", of, settings)) == {"dc_density", "dc_coverage"}
    assert "pr_recall_floor" in measure("pr", of, settings)


def test_the_balance_of_the_classes():
    """By a classifier that sees the nearest mode: even classes, and one of four that is missing."""

    def apply(variables, pixels):
        x = pixels.astype(jnp.float32).reshape(len(pixels), 1, -1)
        return x[:, 0], -jnp.sum((x - MODES.reshape(1, 4, -1)) ** 2, axis=-1)

    settings = dataclasses.replace(SETTINGS, features=Features("nearest", Convention("nearest"), 4, apply))
    even, dropped = (measure("balance", subject(task), settings) for task in (Draws(), Draws(3)))
    assert even["balance"] < 0.08 and even["balance_floor"] < 0.08 and even["balance_rarest"] > 0.75
    real = np.bincount(np.argmax(apply((), TRAIN.read(np.arange(1500))["x"])[1], axis=1), minlength=4) / 1500
    assert dropped["balance_rarest"] == 0 and dropped["balance"] == pytest.approx(real[3], abs=0.06)
    with pytest.raises(InputError, match="balance needs a classifier, and features 'pixels' have no classes"):
        measure("balance", subject())


def test_without_the_training_data():
    """The Inception score looks at the samples alone, and has no floor; what compares is refused before drawing."""

    def apply(variables, pixels):
        x = pixels.astype(jnp.float32).reshape(len(pixels), -1)
        return x, x

    settings = dataclasses.replace(SETTINGS, features=Features("mine", Convention("mine"), 4, apply))
    of, nothing = (dataclasses.replace(subject(), data=data, others=lambda: None) for data in (TEST, None))
    for name, fix in (("fd", "give them, or compare"), ("memorisation", "it needs both parts")):
        with pytest.raises(InputError, match=f"{name}: there are no train data here; {fix}"):
            measure(name, of, settings)
    assert not any("samples" in key for key in of.memo)
    logits = np.concatenate(list(generate(of, settings))).reshape(600, -1).astype(np.float32)
    expected = pytest.approx(distances.inception_score(logits, splits=10).mean, rel=1e-6)
    assert measure("is", nothing, settings) == {"is": expected, "is_std": ANY}
    assert "is_floor" in measure("is", of, settings)
    with pytest.raises(InputError, match="neighbours: compares samples with training and held-out data"):
        measure("neighbours", of)


def test_the_time_of_a_sample_is_that_without_the_compilation():
    record = metrics.METRICS["fd"](subject(), SETTINGS).record
    assert 0 < record["seconds_per_sample"] < 0.1  # of nine batches after the first
    one_batch = dataclasses.replace(SETTINGS, batch_size=600, num=64)
    assert metrics.METRICS["fd"](subject(), one_batch).record["seconds_per_sample"] is None


def test_the_report(tmp_path):
    of = subject()
    found = {name: metrics.METRICS[name](of, SETTINGS) for name in ("fd", "pr")}
    page = write_report(
        tmp_path, "report", found, about={"workdir": "runs/x", "step": 3, "sampling": {"steps": 50}},
        command=["python", "-m", "x"], picture=metrics.picture_of(of),
    )  # fmt: skip
    text = page.read_text()
    for words in ("# runs/x, step 3", "| fd | ", "| steps | 50 |", "![samples](report.png)", "    python -m x"):
        assert words in text
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["numbers"]["pr_recall"] == found["pr"].numbers["pr_recall"]
    assert {"command", "date", "software", "devices"} <= set(record["made"]) and (tmp_path / "report.png").is_file()
    assert record["metrics"]["fd"]["sampling"]["plan"]["steps"] == 50
