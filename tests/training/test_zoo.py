"""Runs that come with sgmjax: they open by name, draw what they learnt, can be trained on, and stay as they are."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from sgmjax import _files, load_run
from sgmjax._inputs import InputError
from sgmjax.commands import evaluate, export_checkpoint, import_checkpoint, sample, train
from sgmjax.evaluation.pictures import to_arrays
from sgmjax.metrics import pixel_frechet
from sgmjax.samplers.plan import Plan
from sgmjax.training import tensors, workdir
from sgmjax.training.load import load_data, load_features

NAMES = list(_files.zoo())


def test_they_are_small():
    sizes = {name: path.stat().st_size for name, path in _files.zoo().items()}
    of_mnist = {
        f"{name}_mnist" for name in ("psld", "psld_classes", "edm", "vp", "lsgm_psld", "classifier", "features")
    }
    assert {"psld_digits", *of_mnist} <= sizes.keys()
    assert sum(sizes.values()) < 8e6, sizes


@pytest.mark.parametrize("name", NAMES)
def test_each_opens_and_says_nothing_of_where_it_was_made(name):
    run = load_run(f"zoo:{name}")
    assert run.config is not None and run.step > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.variables.params))
    record = json.dumps(workdir.read_record(f"zoo:{name}"))
    assert "/work" not in record and "/home" not in record and "/root" not in record
    with open(_files.zoo()[name], "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    kinds = {one["dtype"] for key, one in header.items() if key.startswith(("ema/", "params/"))}
    assert kinds == {"F16"} and not any(key.startswith("params/") for key in header)


def test_the_digits_are_those_of_the_data():
    from sgmjax import data

    run = load_run("psld_digits")
    plan = Plan(sampler="unipc", steps=10, grid="auto", denoise="tweedie")
    x, info = jax.jit(lambda key: run.sample(key, 250, plan))(jax.random.key(0))
    images = np.asarray(data.load(run.config.data, "train").arrays()["x"])
    drawn = to_arrays(np.asarray(x), run.task.discrete, run.task.centered)
    floor = pixel_frechet(images[:250], images[250:])
    assert info.nfe == 10 and pixel_frechet(drawn, images) < floor


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tensors.find("psld_digits") == "zoo:psld_digits" and tensors.find("runs/psld_digits") == "runs/psld_digits"
    (tmp_path / "psld_digits").mkdir()
    assert tensors.find("psld_digits") == "psld_digits"
    with pytest.raises(InputError, match="no run in psld_digits"):
        load_run("psld_digits")


def test_a_bare_name_may_be_given_again(tmp_path, monkeypatch, capsys):
    """Nothing that a command makes of it hides it."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        words = ["--workdir=psld_digits", "--num=4", "--steps=2", "--sampler=em", "--grid=uniform", f"--seed={seed}"]
        assert sample.main(["sample", *words]) == 0
    assert (tmp_path / "runs/zoo_psld_digits/samples/em_2_uniform_seed1.npz").exists()
    assert evaluate.main(["evaluate", *words[:-1], "--metrics=fd", "--features=pixels"]) == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    file = tmp_path / "one.safetensors"
    assert (
        export_checkpoint.main(["export_checkpoint", words[0], "--format=safetensors", "--half", f"--out={file}"]) == 0
    )
    capsys.readouterr()


def test_samples_lie_in_the_folder_where_one_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--workdir=zoo:psld_digits", "--num=4", "--steps=2", "--sampler=em", "--grid=uniform"]
    assert sample.main(["sample", *words]) == 0
    assert " of zoo:psld_digits ...\n" in capsys.readouterr().out
    with np.load(tmp_path / "runs/zoo_psld_digits/samples/em_2_uniform_seed0.npz") as file:
        assert file["samples"].shape == (4, 8, 8, 1)
    assert sample.main(["sample", "--workdir=zoo:psld"]) == 2
    assert "--workdir: no run psld comes with sgmjax; there are " in capsys.readouterr().err
    assert train.main(["train", "--workdir=zoo:psld_digits"]) == 2
    assert "import_checkpoint --checkpoint=zoo:psld_digits" in capsys.readouterr().err


def test_its_data_are_found_by_its_name():
    run = load_run("psld_digits")
    by_name, by_address = (load_data(name, run, "eval") for name in ("psld_digits", "zoo:psld_digits"))
    np.testing.assert_array_equal(by_name.read(np.arange(3))["x"], by_address.read(np.arange(3))["x"])


def test_features_are_those_of_a_run_by_any_of_its_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--workdir=zoo:features_mnist", "--format=safetensors", "--half", "--out=mine.safetensors"]
    assert export_checkpoint.main(["export", *words]) == 0
    line = "    python -m sgmjax.evaluate --workdir=RUN --metrics=fd --features=mine.safetensors"
    assert line in capsys.readouterr().out.splitlines()
    task = load_run("psld_mnist").task
    images = np.random.default_rng(0).integers(0, 256, (2, *task.event_shape), np.uint8)
    known = [load_features(name, task) for name in ("zoo:features_mnist", "features_mnist", "mine.safetensors")]
    digests = {one.convention.network.partition(" ")[::2] for one in known}
    assert digests == {(name, f"step 4000 ({known[0].digest})") for name in ("features_mnist", "mine")}
    first, *others = (np.asarray(one.apply(one.variables, images)[0]) for one in known)
    assert first.shape == (2, known[0].dim) and np.ptp(first) > 0.1
    for other in others:
        np.testing.assert_array_equal(other, first)
    for name, message in {
        "zoo:psld_mnist": "features: zoo:psld_mnist is no run of a feature network; train one",
        "zoo:dino": "features: no run dino comes with sgmjax; there are ",
        "dino": "no features called 'dino'; there are inception, inception_tf1, pixels, and runs of feature networks: ",
    }.items():
        with pytest.raises(InputError, match=message):
            load_features(name, task)
    with pytest.raises(InputError, match=r"network in zoo:features_mnist is of uint8 examples of shape \(28, 28, 1\)"):
        load_features("features_mnist", load_run("psld_digits").task)
    assert sample.main(["sample", "--workdir=zoo:features_mnist"]) == 2
    assert "--workdir: zoo:features_mnist is a classifier's run; give that of a score" in capsys.readouterr().err


@pytest.mark.slow
def test_training_goes_on_from_one_with_its_own_settings(tmp_path, capsys):
    folder = tmp_path / "mine"
    assert import_checkpoint.main(["import", "--checkpoint=zoo:psld_digits", f"--workdir={folder}"]) == 0
    step = load_run("zoo:psld_digits").step
    words = [f"--workdir={folder}", f"--config.train.steps={step + 2}", "--config.sampling.num=8"]
    words += ["--config.sampling.steps=2", "--config.train.eval_every=0"]
    assert train.main(["train", *words]) == 0
    assert load_run(folder).step == step + 2
    assert train.main(["train", f"--workdir={folder}", "--config.sde.gamma=0.3"]) == 2
    error = capsys.readouterr().err
    assert "holds a run with another config (sde.gamma: 0.01 there, 0.3 now)" in error and "--restart" in error
    half = tmp_path / "half.safetensors"
    assert export_checkpoint.main(
        ["export", f"--workdir={folder}", "--format=safetensors", "--half", f"--out={half}"]
    ) == 0  # fmt: skip
    whole, small = (load_run(path).variables.params for path in (folder, half))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.float16(a), b), whole, small)
