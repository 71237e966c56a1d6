"""The parameters with the best value of a number that is measured on the way are kept."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from sgmjax import tasks
from sgmjax._inputs import InputError
from sgmjax.commands import sample
from sgmjax.config import ConfigError, from_dict
from sgmjax.evaluation import compare
from sgmjax.evaluation.draw import sampler_of
from sgmjax.evaluation.features import FEATURES, Features
from sgmjax.evaluation.statistics_file import Convention
from sgmjax.training.best import Best
from sgmjax.training.callbacks import Moment
from sgmjax.training.load import load_run
from sgmjax.training.train import setup, train
from sgmjax.training.workdir import WorkdirError

pytestmark = pytest.mark.usefixtures("one_device")

TOY = {
    "data": {"name": "ring", "num_samples": 500},
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "optimizer": {"warmup_steps": 2, "learning_rate": 3e-2},
    "train": {
        "steps": 12, "batch_size": 32, "log_every": 4, "eval_every": 4, "sample_every": 0, "checkpoint_every": 4,
        "metrics": ("fd", "kid"), "metrics_every": 4, "metrics_features": "pixels", "keep_best": "fd",
    },
    "sampling": {"steps": 4, "num": 40, "grid_images": 8, "batch_size": 40},
}  # fmt: skip


def test_the_best_of_a_run_is_kept(tmp_path, capsys, monkeypatch):
    made = []
    monkeypatch.setattr(compare, "sampler_of", lambda *given: made.append(sampler_of(*given)) or made[-1])
    train(from_dict(TOY), tmp_path)
    assert len(made) == 1  # of all three moments
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = {row["step"]: row["fd"] for row in rows if "fd" in row}
    assert sorted(values) == [4, 8, 12] and all("kid_floor" in row for row in rows)
    step = min(values, key=lambda step: values[step])
    record = json.loads((tmp_path / "best" / "best.json").read_text())
    assert record == {"name": "fd", "step": step, "value": pytest.approx(values[step])}
    assert load_run(tmp_path).step == 12 and load_run(tmp_path, best=True).step == step
    assert f"step {step}  fd {values[step]:.5g} is the best so far" in capsys.readouterr().out
    assert sample.main(["sample", f"--workdir={tmp_path}", "--num=4", "--checkpoint=best"]) == 0
    out = capsys.readouterr().out
    assert f"from step {step} of" in out and "_best_seed0.npz" in out
    assert sample.main(["sample", f"--workdir={tmp_path}", "--checkpoint=best", "--params=raw"]) == 2
    assert "--params=raw: of the best parameters only the average is kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, larger, best",
    [("eval_loss", None, [3.0, 2.0, 1.5]), ("pr_recall", None, [3.0, 5.0]), ("psnr", True, [3.0, 5.0])],
)
def test_what_is_better(tmp_path, name, larger, best):
    """The least loss, the largest recall; what is not finite or missing never; also after a start anew."""
    task = tasks.ScoreTask
    variables = tasks.Variables({"w": jax.numpy.zeros(3)}, {})
    mesh = jax.make_mesh((1,), ("data",))

    def tell(callback, step, value):
        moment = Moment(
            step=step, steps=9, task=task, variables=variables, data=None, held_out=None, batch_size=1,
            folder=tmp_path, mesh=mesh, key=jax.random.key(0),
        )  # fmt: skip
        callback.told(moment, {} if value is None else {name: value})
        return json.loads((tmp_path / "best" / "best.json").read_text())["value"]

    callback, kept = Best(name, larger=larger), []
    for step, value in enumerate([3.0, None, np.nan, 2.0, 5.0]):
        kept.append(tell(callback, step, value))
    again = Best(name, larger=larger)  # as of a run that goes on
    kept += [tell(again, step, value) for step, value in ((6, 4.0), (7, 1.5))]
    assert list(dict.fromkeys(kept)) == best
    assert [folder.name for folder in (tmp_path / "best").iterdir() if folder.is_dir()] == [
        "7" if best[-1] == 1.5 else "4"
    ]


def test_the_best_of_a_run_that_went_back(tmp_path):
    """Its newest checkpoint is of step 6, the best of step 8; then another number is asked for."""
    free = {"metrics": (), "metrics_every": 0, "metrics_features": "inception", "checkpoint_every": 6}
    settings = {**TOY, "train": {**TOY["train"], **free, "keep_best": "eval_loss"}}
    train(from_dict(settings), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    (tmp_path / "samples" / "final.npz").unlink()
    kept = json.loads((tmp_path / "best" / "best.json").read_text())["step"]
    assert kept in (8, 12)
    settings["train"] |= {"metrics": ("fd",), "metrics_every": 4, "metrics_features": "pixels", "keep_best": "fd"}
    train(from_dict(settings), tmp_path)
    record = json.loads((tmp_path / "best" / "best.json").read_text())
    assert record["name"] == "fd" and record["step"] in (8, 12)
    assert load_run(tmp_path, best=True).step == record["step"]


def test_the_best_of_a_classifier(tmp_path):
    settings = {
        "data": {"name": "ring", "num_samples": 200},
        "model": {"name": "mlp_classifier", "width": 8, "depth": 1},
        "train": {"steps": 4, "batch_size": 32, "eval_every": 2, "keep_best": "eval_accuracy"},
    }
    train(from_dict(settings), tmp_path)
    record = json.loads((tmp_path / "best" / "best.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert record["value"] == max(row["eval_accuracy"] for row in rows if "eval_accuracy" in row)
    assert load_run(tmp_path, best=True).step == record["step"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keep_best": "eval_los"}, "nothing measures 'eval_los'; there are eval_loss"),
        ({"metrics": ("pr",), "keep_best": "pr"}, "nothing measures 'pr'; there are pr_precision, pr_recall"),
    ],
)
def test_a_number_that_never_comes_is_said_so_the_first_time(tmp_path, capsys, change, message):
    settings = {**TOY, "train": {**TOY["train"], **change}}
    with pytest.raises(InputError, match=f"^train.keep_best: {message}"):
        train(from_dict(settings), tmp_path)
    assert "step  4/12" in (out := capsys.readouterr().out) and "step  8/12" not in out


BAD = [
    ({"keep_best": "fid"}, "train.keep_best: nothing measures 'fid' during training; add it to train.metrics"),
    ({"metrics_features": "nothing"}, "train.metrics_features: no features called 'nothing'"),
    ({"metrics": ("fid",)}, "train.metrics_features: fid is of the published Inception features"),
    ({"metrics": ("is",), "keep_best": "is"}, "train.metrics_features: is needs a classifier, and features 'pixels'"),
    ({"metrics": ("balance",), "keep_best": "balance"}, "train.metrics_features: balance needs a classifier"),
    ({"metrics": (), "keep_best": "eval_loss"}, "train.metrics_every: is of train.metrics, and there are none"),
]


@pytest.mark.parametrize("change, message", BAD, ids=range(len(BAD)))
def test_settings_that_cannot_be(tmp_path, change, message):
    settings = {**TOY, "train": {**TOY["train"], **change}}
    with pytest.raises(ConfigError) as error:
        train(from_dict(settings), tmp_path)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_metrics_that_cannot_be_measured_are_refused_before_the_training(tmp_path, monkeypatch):
    """Of too few samples, of one part of the data, of floats in features that take 8-bit images."""

    def refused(metrics, message, **sections):
        settings = {**TOY, "train": {**TOY["train"], "metrics": metrics, "keep_best": None}, **sections}
        with pytest.raises(ConfigError, match=f"^{message}"):
            setup(from_dict(settings), tmp_path)

    few = {"sampling": {**TOY["sampling"], "num": 3, "grid_images": 3}}
    refused(("fd", "pr"), "train.metrics: pr looks for the 3 nearest of the other samples, and there are 3 in", **few)
    one_part = {"data": {**TOY["data"], "eval_split": None}}
    refused(("memorisation",), "train.metrics: memorisation compares samples with training and held-out", **one_part)
    made = Features("bytes", Convention("bytes"), 2, lambda variables, images: (images, None), discrete=True)
    monkeypatch.setitem(FEATURES, "pixels", lambda shape: made)
    refused(
        ("fd",), "train.metrics_features: features 'bytes' are of 8-bit images, and examples of this run are floats"
    )


def test_a_run_that_has_kept_none(tmp_path):
    settings = {**TOY, "train": {"steps": 4, "batch_size": 32, "sample_every": 0, "eval_every": 0}}
    train(from_dict(settings), tmp_path)
    with pytest.raises(WorkdirError, match="has kept no best parameters; train with train.keep_best"):
        load_run(tmp_path, best=True)
