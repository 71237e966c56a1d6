"""The run folder under use and abuse: locks, restarts, changed settings, lost checkpoints, files in the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiers
from training import tiny

from sgmjax import _cli
from sgmjax.config import ConfigError
from sgmjax.evaluation import pictures
from sgmjax.training import earlier, lock, trouble, workdir
from sgmjax.training import train as training
from sgmjax.training.checkpoint import Checkpointer, CheckpointError, MismatchError
from sgmjax.training.logging import MetricsWriter
from sgmjax.training.phase import NonFiniteError
from sgmjax.training.run import Run
from sgmjax.training.seal import damage, is_sealed, seal


def train(folder: Path, task=None, *, allow_changes=(), restart=False, **sections):
    return training.train(
        tiny.config(**sections),
        folder,
        task=task or tiny.Task(),
        dataset=tiny.dataset(),
        allow_changes=allow_changes,
        restart=restart,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Twenty steps, checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("run") / "finished"
    train(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ----------------------------------------------------------------------------------------------------- lost checkpoints
def spoil(folder: Path, *steps: int) -> None:
    for step in steps:
        for path in (folder / "checkpoints" / str(step)).rglob("*"):
            if path.is_file() and path.name != "sums.json":
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_run_whose_checkpoints_are_lost_is_not_begun_anew_unasked(folder, capsys):
    """Not at the first launch, which sets them aside, nor at the second, which finds none."""
    spoil(folder, 10, 20)
    metrics = (folder / "metrics.jsonl").read_bytes()
    for _ in range(3):
        with pytest.raises((CheckpointError, workdir.WorkdirError)) as error:
            train(folder, train={"steps": 30})
        assert "--restart" in one_line(error)
        assert (folder / "metrics.jsonl").read_bytes() == metrics
    assert "had taken 20 steps" in str(error.value) and "damaged/" in str(error.value)
    assert train(folder, train={"steps": 15}, restart=True).step == 15
    assert (folder / "earlier" / "1" / "metrics.jsonl").read_bytes() == metrics
    assert (folder / "earlier" / "1" / "damaged" / "20").is_dir()
    assert Checkpointer(folder, read_only=True).steps() == [10, 15]


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/20"])
def test_a_run_whose_checkpoints_were_removed(folder, gone):
    shutil.rmtree(folder / gone)
    if gone == "checkpoints":
        with pytest.raises(workdir.WorkdirError, match="had taken 20 steps .* and no checkpoint; .* --restart"):
            train(folder, train={"steps": 30})
    else:
        assert train(folder, train={"steps": 30}).step == 30  # from step 10


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(tmp_path):
    training.setup(tiny.config(), tmp_path, task=tiny.Task(), dataset=tiny.dataset())
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n')
    assert train(tmp_path).status == "finished"


def test_restart_of_an_empty_folder_moves_nothing(tmp_path):
    assert train(tmp_path, restart=True).status == "finished"
    assert not (tmp_path / "earlier").exists()


# ------------------------------------------------------------------------------------------------- another structure
def test_a_whole_checkpoint_of_another_network_is_not_called_damaged(folder, capsys):
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    for task, words in (
        (tiny.Task(width=48), "in has shape (3, 32) there and has shape (3, 48) in the network of the config"),
        (tiny.Task(width=64), "has shape (3, 64)"),
    ):
        with pytest.raises(MismatchError) as error:
            train(folder, task, train={"steps": 30})
        assert words in one_line(error) and "damaged" not in one_line(error)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before
    assert not (folder / "damaged").exists() and "damaged" not in capsys.readouterr().out
    assert train(folder, train={"steps": 30}).step == 30


def test_memory_that_runs_out_while_reading_is_not_damage(folder, monkeypatch):
    def full(self, *args, **kwargs):
        raise MemoryError("no more")

    run = training.setup(tiny.config(train={"steps": 30}), folder, task=tiny.Task(), dataset=tiny.dataset())
    checkpointer = Checkpointer(folder)
    monkeypatch.setattr(checkpointer._manager, "restore", full)
    with pytest.raises(CheckpointError, match="is whole but could not be read: no more"):
        checkpointer.restore(lambda step: run.abstract)
    checkpointer.close()
    assert (folder / "checkpoints" / "20").is_dir() and not (folder / "damaged").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sums.json", "[1, 2]"),
        pytest.param("sums.json", '{"a": 3}', marks=pytest.mark.slow),
        pytest.param("sums.json", "{}", marks=pytest.mark.slow),
        ("sums.json", "[" * 100_000),
        pytest.param("meta/metadata", "{}", marks=pytest.mark.slow),
        pytest.param("meta/metadata", "[]", marks=pytest.mark.slow),
        ("meta/metadata", '{"key": 3, "key_impl": "fry", "data": null, "window": []}'),
    ],
    ids=range(7),
)
def test_valid_json_of_another_form_is_damage(folder, capsys, name, content):
    path = folder / "checkpoints" / "20" / name
    path.write_text(content)
    if name != "sums.json":
        (path.parents[1] / "sums.json").unlink()
    assert train(folder, train={"steps": 30}).step == 30
    out = capsys.readouterr().out
    assert "checkpoint 20 is damaged (" in out and "going on from step 10 of 30" in out


def test_a_checkpoint_without_checksums_gets_them_when_it_has_been_read(folder):
    (folder / "checkpoints" / "20" / "sums.json").unlink()
    train(folder, train={"steps": 30, "keep_checkpoints": 5})
    assert is_sealed(folder / "checkpoints" / "20") and damage(folder / "checkpoints" / "20") is None


@pytest.mark.parametrize("item", ["ema", "train"])
def test_a_checkpoint_that_was_finished_without_a_file_is_damaged(folder, capsys, item):
    """Though its checksums, taken of what was there, are right."""
    checkpoint = folder / "checkpoints" / "20"
    (checkpoint / item / "_METADATA").unlink()
    seal(checkpoint)
    assert damage(checkpoint) is None
    assert train(folder, train={"steps": 30}).step == 30
    assert f"checkpoint 20 is damaged ({item}/_METADATA is missing); going on with" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------- changed settings
def test_changes_that_are_allowed_are_made_and_recorded(folder):
    changed = {"train": {"batch_size": 32, "steps": 40}, "optimizer": {"learning_rate": 1e-3}}
    with pytest.raises(workdir.WorkdirError) as error:
        train(folder, **changed)
    assert "or --allow_changes=optimizer.learning_rate,train.batch_size" in one_line(error)
    with pytest.raises(workdir.WorkdirError, match="train.batch_size: 16 there, 32 now"):
        train(folder, allow_changes=("optimizer.learning_rate",), **changed)
    assert train(folder, allow_changes=("optimizer.learning_rate", "train.batch_size"), **changed).step == 40
    record = json.loads((folder / "config.json").read_text())["changes"]
    assert record == [
        {"step": 20, "setting": "optimizer.learning_rate", "old": 1e-2, "new": 1e-3},
        {"step": 20, "setting": "train.batch_size", "old": 16, "new": 32},
    ]
    # said once, it holds; and what was recorded stays
    assert train(folder, **{**changed, "train": {"batch_size": 32, "steps": 45}}).step == 45
    assert json.loads((folder / "config.json").read_text())["changes"] == record
    meta = json.loads((folder / "checkpoints" / "45" / "meta" / "metadata").read_text())
    assert meta["data"]["position"] == 20 * 16 + 25 * 32  # the same stream of examples goes on


def test_moments_outlive_a_change_of_the_learning_rate(folder):
    """With a rate too small to move anything in float32 the first new step still knows the old moments: mu decays."""
    tiny_rate = {"optimizer": {"learning_rate": 1e-30}, "train": {"steps": 25, "checkpoint_every": 5}}
    train(folder, allow_changes=("optimizer.learning_rate",), **tiny_rate)
    run = training.setup(
        tiny.config(train={"steps": 30}), folder.parent / "x", task=tiny.Task(), dataset=tiny.dataset()
    )
    reader = Checkpointer(folder, read_only=True)
    state, _ = reader.restore(lambda step: run.abstract)
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == np.int32 and leaf.shape == ()]
    assert all(int(count) == 25 for count in counts) and counts


@pytest.mark.parametrize(
    "name", ["sde.name", "model.width", "seed", "data.name", "optimizer.name", "train.steps", "nonsense"]
)
def test_changes_that_no_run_can_take(folder, name):
    with pytest.raises(ConfigError, match=f"--allow_changes: '{name}': ") as error:
        train(folder, allow_changes=(name,), train={"steps": 30})
    one_line(error)


def test_an_optimizer_of_another_form_is_refused(folder):
    with pytest.raises(ConfigError, match="cannot be turned on or off"):
        train(folder, allow_changes=("optimizer.grad_clip",), optimizer={"grad_clip": None}, train={"steps": 30})


# ---------------------------------------------------------------------------------------------------------- side files
def test_final_samples_that_are_no_archive_are_drawn_again(folder):
    with np.load(folder / "samples" / "final.npz") as final:
        expected = final["samples"]
    for content in (b"", b"PK\x03\x04", (folder / "samples" / "final.npz").read_bytes()[:200]):
        (folder / "samples" / "final.npz").write_bytes(content)
        assert train(folder).status == "finished"
        with np.load(folder / "samples" / "final.npz") as final:
            np.testing.assert_array_equal(final["samples"], expected)


def test_lines_that_are_no_metrics_are_left_out_and_counted(folder, capsys):
    path = folder / "metrics.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + b'\xff\xfe\n[1]\n{"step": "x"}\n{"loss": 1}\n' + b"[" * 100_000 + b'\n{"step": 3')
    assert train(folder, train={"steps": 30}).step == 30
    assert "metrics.jsonl: 6 lines that cannot be read left out" in capsys.readouterr().out
    assert path.read_bytes().startswith(good)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5, 10, 15, 20, 25, 30]


@pytest.mark.parametrize(
    "name", tiers.alike(["metrics.jsonl", "samples/final.npz", "samples/final.png", "tensorboard"], ["metrics.jsonl"])
)
def test_what_stands_in_the_way_is_moved(folder, capsys, name):
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("mine")
    else:
        path.unlink()
        path.mkdir()
        (path / "mine").write_text("mine")
    assert train(folder, train={"steps": 30}).step == 30
    assert f"it is now {path.name}.aside1" in capsys.readouterr().out
    kept = path.with_name(f"{path.name}.aside1")
    assert (kept / "mine" if kept.is_dir() else kept).read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "samples"])
def test_what_cannot_be_made_again_is_one_line(folder, name):
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(workdir.WorkdirError, match=str(path)) as error:
        train(folder, train={"steps": 30})
    one_line(error)


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: "[" * 100_000,
        lambda record: json.dumps(record | {"data": {"shape": ["two"], "num_classes": None}}),
        lambda record: json.dumps(record | {"data": {"shape": 2, "num_classes": None}}),
        lambda record: json.dumps(record | {"data": {"shape": [2], "num_classes": "many"}}),
        lambda record: json.dumps(record | {"data": [1]}),
        lambda record: json.dumps([1]),
        lambda record: "",
    ],
    ids=range(7),
)
def test_configs_that_are_none(folder, edit):
    path = folder / "config.json"
    path.write_text(edit(json.loads(path.read_text())))
    with pytest.raises(workdir.WorkdirError) as error:
        workdir.read_config(folder)
        workdir.read_data(folder)
    assert str(path) in one_line(error)


def test_partial_files_of_a_killed_process_are_removed(folder):
    for name in ("config.json.partial", "samples/final.npz.partial", "metrics.jsonl.partial"):
        (folder / name).write_text("half")
    train(folder, train={"steps": 30})
    assert not list(folder.rglob("*.partial"))


def test_home_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train(Path("~/run")).workdir == tmp_path / "run"
    assert Checkpointer("~/run", read_only=True).steps() == [10, 20]
    assert workdir.read_config("~/run") == tiny.config() and not (tmp_path / "~").exists()


# --------------------------------------------------------------------------------------------------------------- locks
HOLD = """
import sys, time
from pathlib import Path
from sgmjax.training.lock import RunLock
held = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_a_dead_ones_lock_taken_over(holder, tmp_path):
    said = []
    with pytest.raises(workdir.WorkdirError) as error:
        lock.RunLock(tmp_path)
    text = one_line(error)
    assert f"process {holder.pid} on {os.uname().nodename} (since 20" in text and "--workdir" in text
    holder.kill()
    holder.wait()
    with lock.RunLock(tmp_path, said.append) as ours:
        assert len(said) == 1 and f"process {holder.pid}" in said[0]
        ours.check()
        assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    assert list(tmp_path.iterdir()) == []


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path):
    """After a restart of the machine, or when numbers come round again."""
    for change in ({"started": 1}, {"boot": "another"}):
        content = lock._identity() | {"pid": os.getppid(), "nonce": "theirs"} | change
        (tmp_path / lock.NAME).write_text(json.dumps(content))
        if "boot" in change:  # as one of another machine: it counts as gone when it has long been silent
            os.utime(tmp_path / lock.NAME, (time.time() - 400,) * 2)
        with lock.RunLock(tmp_path, lambda text: None):
            pass
        assert not (tmp_path / lock.NAME).exists()


def test_one_of_another_machine_holds_it_while_it_gives_signs_of_life(tmp_path):
    (tmp_path / lock.NAME).write_text(json.dumps({"host": "node7", "pid": 12, "since": "noon", "nonce": "theirs"}))
    with pytest.raises(workdir.WorkdirError, match=r"process 12 on node7 \(since noon\) trains there"):
        lock.RunLock(tmp_path)


def test_of_many_that_take_over_one_gets_it(tmp_path):
    (tmp_path / lock.NAME).write_text(json.dumps(lock._identity() | {"started": 1, "nonce": "dead"}))
    got, refused = [], []

    def take():
        try:
            got.append(lock.RunLock(tmp_path, lambda text: None))
        except workdir.WorkdirError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 7
    got[0].release()


def test_the_lock_is_released_when_a_run_fails(tmp_path):
    with pytest.raises(NonFiniteError):
        train(tmp_path, tiny.Task(bad=-5.0), train={"steps": 60, "max_bad_steps": 7})
    assert not (tmp_path / "run.lock").exists()


def test_training_where_another_trains(holder, tmp_path):
    task = tiny.Task()
    with pytest.raises(workdir.WorkdirError, match=f"process {holder.pid} on "):
        train(tmp_path, task)
    assert task.traces == 0 and not (tmp_path / "config.json").exists()


# ------------------------------------------------------------------------------------------- full disks, lost processes
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        pytest.param(OSError(errno.EDQUOT, "quota"), marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_afterwards(tmp_path, monkeypatch, error):
    """While the final samples are written: nothing half written stays, and the same command ends the run."""

    def full(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pictures.np, "savez_compressed", full)
        with pytest.raises(
            trouble.TroubleError, match="its checkpoints are whole, and with room made the same"
        ) as caught:
            train(tmp_path)
    one_line(caught)
    assert not list(tmp_path.rglob("*.partial")) and not (tmp_path / "run.lock").exists()
    assert train(tmp_path).status == "finished"


def test_what_a_full_disk_looks_like_from_below():
    tensorstore = ValueError('RESOURCE_EXHAUSTED: Error writing "x": [OS error 28: ENOSPC No space left on device]')
    nested = RuntimeError("save failed")
    nested.__cause__ = ExceptionGroup("two", [KeyError("a"), tensorstore])
    assert trouble.full_disk(tensorstore) == trouble.full_disk(nested) == errno.ENOSPC
    assert trouble.full_disk(ValueError("RESOURCE_EXHAUSTED: out of device memory")) is None
    assert trouble.full_disk(OSError(errno.EACCES, "no")) is None


def test_other_errors_keep_their_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), trouble.explained(tmp_path):
        1 / 0
    with pytest.raises(trouble.TroubleError, match="cannot write .*/x/y: No such file"), trouble.explained(tmp_path):
        (tmp_path / "x" / "y").write_text("")


def test_a_lost_process_is_told_from_other_errors(monkeypatch, tmp_path):
    gloo = jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4711")
    with pytest.raises(jax.errors.JaxRuntimeError), trouble.explained(tmp_path):  # one process has nobody to lose
        raise gloo
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(trouble.LostProcessError) as error, trouble.explained(tmp_path):
        raise gloo
    assert "process 0 of 2 lost another one (Connection closed by peer [127.0.0.1]:4711)" in one_line(error)
    with pytest.raises(jax.errors.JaxRuntimeError), trouble.explained(tmp_path):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


def too_large(*args):
    """What the device says of itself."""
    return jax.numpy.zeros(2**50, "uint8").block_until_ready()


def test_too_little_memory_is_one_line(tmp_path, capsys):
    with pytest.raises(trouble.TroubleError) as error, trouble.explained(tmp_path):
        too_large()
    message = str(error.value)
    assert message.startswith("out of memory (RESOURCE_EXHAUSTED: ") and "\n" not in message
    assert all(name in message for name in ("train.batch_size", "train.grad_accumulation", "model.remat=True"))
    with pytest.raises(trouble.TroubleError, match="^out of memory .MemoryError.: "), trouble.explained(tmp_path):
        raise MemoryError
    assert _cli.serve([], lambda argv: argv, too_large) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: out of memory (RESOURCE_EXHAUSTED: ") and err.count("\n") == 1
    assert "a smaller --batch_size" in err


def test_events_that_cannot_be_written_do_not_stop_a_run(tmp_path, capsys):
    hook = threading.excepthook
    writer = MetricsWriter(tmp_path)
    events = writer._events
    assert events is not None

    def full(event):
        raise OSError(errno.ENOSPC, "No space left on device")

    events._writer.file_writer.event_writer._ev_writer.write_event = full
    deadline = time.monotonic() + 20
    step = 0
    while events._writer is not None and time.monotonic() < deadline:
        writer.write(step := step + 1, {"loss": 1.0})
        time.sleep(0.01)
    writer.write(step + 1, {"loss": 2.0})
    writer.close()
    assert "TensorBoard's events cannot be written" in capsys.readouterr().out
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == step + 1
    assert threading.excepthook is hook


def test_a_second_process_is_refused_before_it_reads_the_data(holder, tmp_path, monkeypatch):
    def load(*args):
        raise AssertionError("the data were read")

    monkeypatch.setattr("sgmjax.data.load", load)
    for restart in (False, True):
        with pytest.raises(workdir.WorkdirError, match=f"process {holder.pid} on "):
            training.setup(tiny.config(), tmp_path, restart=restart)
    assert not (tmp_path / "earlier").exists()


def test_sweeping_leaves_the_locks_of_others_at_the_door(tmp_path):
    with lock.RunLock(tmp_path):
        young, old = tmp_path / f"{lock.NAME}.young", tmp_path / f"{lock.NAME}.old"
        for file in (young, old):
            file.write_text("{}")
        os.utime(old, (time.time() - 3600,) * 2)
        earlier.tidy(tmp_path, print)
        assert young.exists() and not old.exists()


def test_a_run_that_lost_its_lock_writes_no_more(tmp_path):
    """Another process took over while this one stood still: its checkpoints are the other's business."""

    class Loses(tiny.Task):
        def loss(self, variables, key, batch, **options):
            (tmp_path / lock.NAME).write_text(json.dumps({"host": "node7", "pid": 12, "since": "noon", "nonce": "x"}))
            return super().loss(variables, key, batch, **options)

    with pytest.raises(workdir.WorkdirError, match="process 12 on node7 .since noon. took the run over"):
        train(tmp_path, Loses())
    assert Checkpointer(tmp_path, read_only=True).steps() == []
    assert json.loads((tmp_path / lock.NAME).read_text())["nonce"] == "x"  # not released for the other


def test_changes_count_from_the_step_that_could_be_read(folder):
    """Not from the newest, which is damaged; and a run that cannot go on records nothing."""
    before = (folder / "config.json").read_text()
    settings = {"train": {"steps": 30, "batch_size": 32}}
    for path in (folder / "checkpoints" / "20" / "train").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(CheckpointError):
        train(folder, tiny.Task(width=8), allow_changes=("train.batch_size",), **settings)
    assert (folder / "config.json").read_text() == before
    train(folder, allow_changes=("train.batch_size",), **settings)
    changes = json.loads((folder / "config.json").read_text())["changes"]
    assert changes == [{"step": 10, "setting": "train.batch_size", "old": 16, "new": 32}]


def test_a_checkpoint_that_the_disk_has_no_room_for_is_removed(tmp_path, monkeypatch):
    """When nothing is being written any more: another checkpoint may be on its way when the disk is found full."""
    whole = []

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    class Slow(Checkpointer):
        def save(self, step, state, meta):
            super().save(step, state, meta)
            (self.directory / "6.orbax-checkpoint-tmp" / "ema").mkdir(parents=True, exist_ok=True)

        def close(self):
            whole.append((self.directory / "6.orbax-checkpoint-tmp").is_dir())
            super().close()

    monkeypatch.setattr(pictures.np, "savez_compressed", full)
    monkeypatch.setattr("sgmjax.training.run.Checkpointer", Slow)
    with pytest.raises(trouble.TroubleError, match="the disk is full"):
        train(tmp_path)
    assert whole == [True]
    assert sorted(item.name for item in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]


def test_a_file_that_cannot_be_read_is_not_said_to_be_written(tmp_path):
    with pytest.raises(trouble.TroubleError, match="cannot read /nowhere/image.png: No"), trouble.explained(tmp_path):
        Path("/nowhere/image.png").read_bytes()
    beside = tmp_path.with_name(f"{tmp_path.name}_data") / "image.png"  # whose name begins as the run folder's
    with pytest.raises(trouble.TroubleError, match="cannot read .*_data/image.png: No"), trouble.explained(tmp_path):
        beside.read_bytes()


def test_data_that_are_not_those_of_the_checkpoint_are_one_line(tmp_path, capsys):
    """Which only the checkpoint can tell: an image folder that has grown, here a set of another size."""
    from sgmjax.commands import train as command

    words = ["train", "--config=psld_toy", f"--workdir={tmp_path}", "--config.data.name=ring"]
    assert train(tmp_path).status == "finished"
    (tmp_path / "samples" / "final.npz").unlink()

    def other(config, folder, **options):
        phases = training.phases_of(tiny.config(), [(tiny.Task(), 20)])
        return Run(phases, tiny.dataset(60), tmp_path, tiny.config().train, record={"config": {}})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "setup", other)
        assert command.main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "num_examples=100, this run has num_examples=60" in err
