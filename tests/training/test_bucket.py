"""A run whose folder is in a bucket is the run whose folder is on a disk: its numbers, its interruptions, its lock."""

from __future__ import annotations

import json
import signal
import threading
import time

import jax
import numpy as np
import pytest
from training import tiny
from training.test_loop import SLOW, finish, outcome, start

import sgmjax
from sgmjax._files import local_copy, modified, sizes, user_path
from sgmjax.training import lock
from sgmjax.training import train as training
from sgmjax.training.checkpoint import Checkpointer
from sgmjax.training.trouble import TroubleError
from sgmjax.training.workdir import WorkdirError


def train(folder, **options):
    sections = {"train": {"sample_every": 15, **options.pop("train", {})}}
    data = {"dataset": tiny.dataset(), "eval_dataset": tiny.dataset(50)}
    return training.train(tiny.config(**sections), folder, task=tiny.Task(), **data, **options)


def rows(folder) -> list[dict]:
    path = folder / "metrics.jsonl"
    timing = ("examples_per_second", "host_ms")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: value for name, value in row.items() if name not in timing} for row in lines]


def variables(folder) -> list[np.ndarray]:
    found = sgmjax.load_run(folder, task=tiny.Task, say=lambda text: None).variables
    return [np.asarray(x) for x in jax.tree.leaves(found)]


def same(ours, theirs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(variables(ours), variables(theirs), strict=True))


@pytest.fixture(scope="module")
def pair(bucket, tmp_path_factory, one_device):
    """The same run on a disk and in a bucket."""
    folders = tmp_path_factory.mktemp("run"), user_path("gs://bucket/tests/run")
    for folder in folders:
        assert train(folder, train={"steps": 30}).status == "finished"
    return folders


def test_the_numbers_are_those_on_a_disk(pair):
    disk, there = pair
    assert rows(there) == rows(disk) and [row["step"] for row in rows(there)] == list(range(5, 31, 5))
    assert same(there, disk)
    with np.load(disk / "samples" / "final.npz") as one:
        with np.load(local_copy(there / "samples" / "final.npz", "samples")) as other:
            assert set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)
    assert (there / "samples" / "step_15.png").read_bytes() == (disk / "samples" / "step_15.png").read_bytes()

    def kept(folder):  # names that Orbax and TensorBoard do not make up anew each time, but for the bucket's marks
        names = {name for name in sizes(folder) if "/d/" not in name and "commit_success" not in name}
        return {name for name in names if not name.startswith("tensorboard/")}

    assert kept(there) == kept(disk)
    assert any(name.startswith("tensorboard/events.out") for name in sizes(there))


def test_a_complete_run_is_left_alone_and_goes_on_when_more_is_asked(pair, capsys):
    disk, there = pair
    assert train(there, train={"steps": 30}).status == "complete"
    assert f"{there} is complete: 30 steps, samples in {there}/samples/final.npz" in capsys.readouterr().out
    for folder in pair:
        assert train(folder, train={"steps": 40}).step == 40
    assert same(there, disk) and rows(there) == rows(disk)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside(bucket, one_device, capsys):
    there = user_path("gs://bucket/tests/damaged")
    train(there)
    assert Checkpointer(there, read_only=True).steps() == [10, 20]
    whole = sizes(there / "checkpoints" / "20")
    victim = next(name for name in whole if name.startswith("train/") and "/d/" in name)
    (there / "checkpoints" / "20" / victim).unlink()
    assert train(there, train={"steps": 30}).status == "finished"
    assert f"checkpoint 20 is damaged ({victim} is missing); going on with checkpoint 10" in capsys.readouterr().out
    assert set(sizes(there / "damaged" / "20")) == set(whole) - {victim}
    assert Checkpointer(there, read_only=True).steps() == [20, 30]


@pytest.mark.slow
def test_a_checkpoint_that_was_never_finished_is_none(bucket, one_device, capsys):
    """As of a process that was killed while it wrote: in a bucket the folder has its name from the beginning."""
    there = user_path("gs://bucket/tests/unfinished")
    train(there)
    (there / "checkpoints" / "20" / "commit_success.txt").unlink()
    assert Checkpointer(there, read_only=True).steps() == [10]
    assert train(there, train={"steps": 30}).status == "finished"
    assert "going on from step 10 of 30" in capsys.readouterr().out
    assert Checkpointer(there, read_only=True).steps() == [20, 30]


@pytest.mark.slow
def test_restart_moves_the_run_aside(bucket, one_device):
    there = user_path("gs://bucket/tests/restart")
    train(there)
    before = {name: size for name, size in sizes(there / "checkpoints").items()}
    assert train(there, restart=True).status == "finished"
    assert sizes(there / "earlier" / "1" / "checkpoints") == before
    assert Checkpointer(there, read_only=True).steps() == [10, 20]


def test_a_bucket_that_is_not_there_is_one_line(bucket):
    with pytest.raises(WorkdirError) as error:
        train("gs://none/run")
    assert str(error.value) == (
        "cannot write in the run folder gs://none/run: there is no such bucket; is the bucket there, and may this "
        "account write in it?"
    )


@pytest.mark.slow
def test_a_bucket_that_is_lost_is_one_line(bucket, one_device, monkeypatch):
    import gcsfs.retry

    there = user_path("gs://bucket/tests/lost")

    def refuse(*_, **__):
        raise gcsfs.retry.HttpError({"code": 403, "message": "may not write"})

    monkeypatch.setattr("sgmjax._files.Mirror._upload", refuse)
    with pytest.raises(TroubleError, match="the bucket of gs://bucket/tests/lost could not be written .*may not"):
        train(there)
    monkeypatch.undo()
    assert train(there).status == "finished"


# --------------------------------------------------------------------------------------------------------------- locks
def test_one_run_at_a_time(bucket):
    there = user_path("gs://bucket/tests/lock")
    with lock.RunLock(there, lambda text: None) as held:
        with pytest.raises(WorkdirError, match=r"gs://bucket/tests/lock is in use: process \d+ on .* trains there"):
            lock.RunLock(there, lambda text: None)
        held.check()
        assert list(sizes(there)) == ["run.lock"]
    assert not sizes(there)


def test_signs_of_life_are_written(bucket, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    there = user_path("gs://bucket/tests/beat")
    with lock.RunLock(there, lambda text: None):
        found = set()
        deadline = time.monotonic() + 20
        while len(found) < 3 and time.monotonic() < deadline:
            found.add(modified(there / lock.NAME))
            time.sleep(0.05)
    assert len(found) == 3


def test_a_silent_holder_is_taken_over_by_one(bucket, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "STALE", 2.0)
    there, said, got, refused = user_path("gs://bucket/tests/silent"), [], [], []
    (there / lock.NAME).write_text(json.dumps({"host": "node7", "pid": 12, "since": "noon", "nonce": "theirs"}))
    time.sleep(0.5)  # longer than a living one is silent

    def try_it():
        try:
            got.append(lock.RunLock(there, said.append))
        except Exception as error:
            refused.append(error)

    threads = [threading.Thread(target=try_it) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(got) == 1 and len(refused) == 2 and all("is in use" in str(error) for error in refused), refused
    assert "taking over the lock of process 12 on node7 (since noon), which has ended without releasing it" in said
    got[0].release()
    assert not sizes(there)


# ----------------------------------------------------------------------------------------------------------- processes
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_ends_with_the_same_bits(bucket, tmp_path, number, monkeypatch):
    disk, there = tmp_path / "run", user_path(f"gs://bucket/tests/{number.name}")
    finish(start(disk, **SLOW))
    process = start(there, **SLOW)
    deadline = time.monotonic() + 120
    while not (there / "checkpoints" / "16" / "commit_success.txt").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0), err
    assert "going on from step" in finish(start(there, **SLOW))
    ours, theirs = outcome(there), outcome(disk)
    assert all(np.array_equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))
    assert np.array_equal(ours[1], theirs[1]) and ours[2] == theirs[2]
    assert rows(there) == rows(disk)
