"""Whole runs: interrupted in every way, gone on with, refused, and ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from refdata import ROOT
from training import tiny

from sgmjax import sharding as sh
from sgmjax._files import local_copy
from sgmjax.evaluation import draw
from sgmjax.training import train as training
from sgmjax.training import workdir
from sgmjax.training.checkpoint import Checkpointer
from sgmjax.training.interrupt import Interrupt
from sgmjax.training.phase import NonFiniteError
from sgmjax.training.run import Run

STEPS = 40


def start(folder: Path, **arguments) -> subprocess.Popen:
    """The tiny run as a process of its own, with one device."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "error", tiny.__file__, str(folder), json.dumps(arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    return out


def rows(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    deadline = time.monotonic() + 90
    while not (found := rows(folder)) or found[-1]["step"] < step:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def outcome(folder: Path) -> tuple[list[np.ndarray], np.ndarray, bytes]:
    """Every array of the last checkpoint, the final samples, the last picture drawn while training."""
    checkpointer = Checkpointer(folder)
    state, _ = checkpointer.restore(lambda step: abstract(folder))
    checkpointer.close()
    with np.load(local_copy(folder / "samples" / "final.npz", "samples")) as final:
        samples = final["samples"]
    return jax.device_get(jax.tree.leaves(state)), samples, (folder / "samples" / "step_30.png").read_bytes()


def abstract(folder: Path):
    (phase,) = training.phases_of(tiny.config(), [(tiny.Task(), 20)])
    return Run([phase], tiny.dataset(), folder, tiny.config().train, record={}).abstract


def comparable(folder: Path) -> list[dict]:
    timing = ("examples_per_second", "host_ms")
    return [{name: value for name, value in row.items() if name not in timing} for row in rows(folder)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    out = finish(start(folder, train={"steps": STEPS, "sample_every": 15, "checkpoint_every": 8}))
    assert "status finished 40" in out
    return folder


SLOW = {"train": {"steps": STEPS, "sample_every": 15, "checkpoint_every": 8}, "task": {"delay": 0.03}}


@pytest.mark.parametrize(
    ("number", "places"),
    [
        (signal.SIGKILL, (25,)),
        pytest.param(signal.SIGTERM, (25,), marks=pytest.mark.slow),  # by the command: test_commands.py
        pytest.param(signal.SIGKILL, (10, 25), marks=pytest.mark.slow),
    ],
)
def test_interrupted_run_ends_with_the_same_bits(uninterrupted, tmp_path, number, places):
    """At places that are no checkpoint's; the checkpoints in turn are not at the log's places."""
    for i, at in enumerate(places):
        process = start(tmp_path, **SLOW)
        wait_for_step(process, tmp_path, at)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 0, err  # of tiny.py; the command's is 143, see test_commands.py
            assert f"stopped by {number.name} after step" in out and "status interrupted" in out
            saved = Checkpointer(tmp_path, read_only=True).steps()[-1]
            assert saved >= at and f"after step {saved}, saved" in out
        if i > 0:
            assert "going on from step" in out
    assert "status finished 40" in finish(start(tmp_path, **SLOW))

    for ours, expected in zip(outcome(tmp_path), outcome(uninterrupted), strict=True):
        if isinstance(expected, list):
            assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))
        else:
            assert np.array_equal(ours, expected) if isinstance(expected, np.ndarray) else ours == expected
    # nothing twice, nothing missing, and the very same numbers
    assert [row["step"] for row in rows(tmp_path)] == list(range(5, STEPS + 1, 5))
    assert comparable(tmp_path) == comparable(uninterrupted)


def train(folder: Path, task=None, **sections):
    task = task or tiny.Task()
    config = tiny.config(**sections)
    return training.train(config, folder, task=task, dataset=tiny.dataset(), eval_dataset=tiny.dataset(50))


def test_complete_run_is_left_alone(tmp_path, capsys):
    assert train(tmp_path).status == "finished"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    task = tiny.Task()
    capsys.readouterr()
    assert train(tmp_path, task).status == "complete"
    assert task.traces == 0
    assert capsys.readouterr().out == f"{tmp_path} is complete: 20 steps, samples in {tmp_path}/samples/final.npz\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    # more steps are a reason to go on
    assert train(tmp_path, train={"steps": 30}).step == 30
    with np.load(tmp_path / "samples" / "final.npz") as final:
        assert final["step"] == 30 and final["samples"].shape == (40, 2) and final["samples"].dtype == np.float32


def test_run_folder(tmp_path):
    train(tmp_path, train={"sample_every": 10})
    for name in ("config.json", "metrics.jsonl", "samples/step_10.png", "samples/final.png", "samples/final.npz"):
        assert (tmp_path / name).stat().st_size > 0
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    record = json.loads((tmp_path / "config.json").read_text())
    assert (
        record["data"] == {"shape": [2], "num_classes": None, "discrete": False, "given": True}
        and record["versions"]["jax"] == jax.__version__
    )
    assert workdir.read_config(tmp_path) == tiny.config(train={"sample_every": 10})
    logged = rows(tmp_path)
    assert {"loss", "mse", "grad_norm", "examples_per_second", "host_ms", "bad_steps"} <= set(logged[0])
    assert [row["step"] for row in logged if "eval_loss" in row] == [10, 20]


def test_held_out_loss_is_of_all_data():
    """Against the mean over the data in one batch, for a loss without noise; 48 examples in batches of 16."""
    task = tiny.Task(noisy=False)
    mesh, variables, held_out = sh.make_mesh(), task.init(jax.random.key(3)), tiny.dataset(48)
    loss = draw.make_eval_loss(task.loss, mesh, jax.tree.map(lambda _: sh.replicated(mesh), variables))
    found = draw.held_out_metrics(loss, variables, jax.random.key(0), held_out, 16, None, mesh)
    batch = {"x": held_out.arrays()["x"]}
    expected = task.loss(variables, jax.random.key(0), batch, step=0, ema=None, train=False)[0]
    assert found == {"loss": pytest.approx(float(expected), rel=1e-5), "mse": found["loss"]}


def test_refuses_a_folder_of_another_config(tmp_path):
    train(tmp_path)
    for sections in ({"train": {"batch_size": 32}}, {"optimizer": {"learning_rate": 0.02}}):
        with pytest.raises(workdir.WorkdirError) as caught:
            train(tmp_path, **sections)
        ((section, settings),) = sections.items()
        ((name, value),) = settings.items()
        text = str(caught.value)
        assert f"{section}.{name}: {tiny.SETTINGS[section][name]} there, {value} now" in text
        assert "choose another --workdir" in text and "\n" not in text


def test_goes_on_with_changed_settings_that_do_not_matter(tmp_path):
    train(tmp_path)
    changed = {"train": {"steps": 25, "log_every": 1, "keep_checkpoints": 5}, "sampling": {"num": 8}}
    assert train(tmp_path, **changed).step == 25
    assert workdir.read_config(tmp_path) == tiny.config(**changed)


def test_more_steps_are_recorded_where_what_is_learnt_depends_on_them(tmp_path, capsys):
    """By the cosine of the learning rate: after 10 of 10 steps it has come down, after 10 of 20 it is half way."""
    for minimum, told in ((None, False), (1e-5, True)):
        folder, optimizer = tmp_path / str(minimum), {"learning_rate_min": minimum}
        train(folder, train={"steps": 10}, optimizer=optimizer)
        train(folder, train={"steps": 20}, optimizer=optimizer)
        line = "from step 10 on train.steps is 20, before 10; what depends on it (learning_rate_min"
        assert (line in capsys.readouterr().out) == told
        changes = json.loads((folder / "config.json").read_text()).get("changes", [])
        assert ([change["setting"] for change in changes] == ["train.steps"]) == told


@pytest.mark.parametrize("where", ["file", "below a file"])
def test_folder_that_cannot_be_written(tmp_path, where):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" if where == "file" else tmp_path / "file" / "run"
    task = tiny.Task()
    with pytest.raises(workdir.WorkdirError, match="cannot write in the run folder .*file.*choose another"):
        train(folder, task)
    assert task.traces == 0


def test_no_space(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    task = tiny.Task()
    with pytest.raises(
        workdir.WorkdirError, match="not enough disk space in .*2 checkpoints need 17 MB, 1 MB are free"
    ):
        train(tmp_path, task)
    assert task.traces == 0


def test_too_many_bad_steps_stop_the_run(tmp_path):
    """All batches turn bad after step 10; the checkpoint of step 10 stays what it was."""
    train(tmp_path, train={"steps": 10})
    expected = run_arrays(tmp_path)
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, tiny.Task(bad=-5.0), train={"steps": 60, "max_bad_steps": 7})
    text = str(caught.value)
    assert "not finite in 7 steps in a row, up to step 17;" in text
    assert "optimizer.learning_rate" in text and "the last checkpoint before them is step 10" in text
    for a, b in zip(run_arrays(tmp_path), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows(tmp_path)[-1]["loss"] is None  # NaN is no JSON
    # with the cause removed the run goes on
    assert train(tmp_path, train={"steps": 20}).status == "finished"


def run_arrays(folder: Path) -> list[np.ndarray]:
    checkpointer = Checkpointer(folder)
    state, _ = checkpointer.restore(lambda step: abstract(folder))
    checkpointer.close()
    return jax.device_get(jax.tree.leaves(state))


def test_damaged_checkpoint_in_a_run(tmp_path, capsys):
    train(tmp_path)
    for path in (tmp_path / "checkpoints" / "20" / "train").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "samples" / "final.npz").unlink()
    capsys.readouterr()
    assert train(tmp_path).status == "finished"
    out = capsys.readouterr().out
    assert "checkpoint 20 is damaged (train/" in out and "; going on with checkpoint 10\n" in out
    assert "going on from step 10 of 20" in out
    assert [row["step"] for row in rows(tmp_path)] == [5, 10, 15, 20]


@pytest.fixture
def ctrl_c():
    """SIGINT acts as in a terminal; a process started in the background may have been told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_ignored_stays_ignored(ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN and not interrupt.check(1)


def test_first_ctrl_c_is_noted_and_the_second_acts(ctrl_c):
    def wait(arrived=lambda: False):  # another thread may be given the signal, and then this one hears of it later
        deadline = time.monotonic() + 60
        while not arrived() and time.monotonic() < deadline:
            time.sleep(0.01)

    with Interrupt() as interrupt:
        assert not interrupt.check(1)
        os.kill(os.getpid(), signal.SIGINT)
        wait(lambda: interrupt.received)
        assert interrupt.check(2) and interrupt.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            wait()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_fewer_devices_and_split_parameters_go_on(uninterrupted, tmp_path):
    """A run of one process with one device goes on here, with eight, its parameters split over two."""
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    assert train(tmp_path, train={"steps": STEPS + 10, "fsdp": 2}).step == STEPS + 10
