"""Two real processes of two virtual devices each: results of one process, files written once, resume in every bit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import refdata
from training import tiny

from sgmjax import sharding as sh
from sgmjax._files import local_copy, user_path
from sgmjax.training.checkpoint import Checkpointer
from sgmjax.training.run import Run
from sgmjax.training.train import setup

SETTINGS = {
    "train": {"steps": 20, "log_every": 1, "checkpoint_every": 5, "eval_every": 10, "sample_every": 10, "fsdp": 2},
    "sampling": {"num": 24, "batch_size": 8, "grid_images": 8},
}

# Trains as `training/tiny.py` does, and notes which files of the run folder this process opens to write. With a number
# as its third argument, process 1 is killed when it takes the batch of that step.
PROGRAM = """
import hashlib, json, os, signal, sys
folder, settings, dies = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
written = set()
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        written.add(os.path.abspath(arguments[0]))
sys.addaudithook(note)
import functools
from sgmjax import sharding as sh
sh.initialize_distributed()
import jax, numpy as np
from training import tiny
from sgmjax.evaluation import draw
from sgmjax.training import run as running
from sgmjax.training.train import train
sh.state_shardings = functools.partial(sh.state_shardings, min_size=1)
taken, stacked = 0, running._stacked
def counted(iterator, stride):
    global taken
    taken += 1
    if taken == dies and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return stacked(iterator, stride)
running._stacked = counted
drawn, call = hashlib.sha256(), draw.Sampler.__call__
def told(self, *arguments, **options):
    found = call(self, *arguments, **options)
    drawn.update(np.ascontiguousarray(found[0]).tobytes())
    return found
draw.Sampler.__call__ = told
result = train(tiny.config(**settings), folder, task=tiny.Task(), dataset=tiny.dataset(), eval_dataset=tiny.dataset(50))
inside = sorted(os.path.relpath(path, folder) for path in written if path.startswith(folder + os.sep))
print("told", json.dumps({"status": result.status, "step": result.step, "drawn": drawn.hexdigest(), "wrote": inside}))
"""


def launch(folder: Path, processes: int, dies: int = 0) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    """Four devices in so many processes; what each told at its end."""
    words = [str(refdata.ROOT / "launch" / "local.py"), f"--processes={processes}", f"--devices={4 // processes}", "--"]
    words += ["-c", PROGRAM, str(folder), json.dumps(SETTINGS), str(dies)]
    path = f"{refdata.ROOT}:{refdata.ROOT / 'tests'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, check=False)
    told = {int(i): json.loads(said) for i, said in re.findall(r"^\[(\d)\] told (.*)$", done.stdout, flags=re.M)}
    return done, [told[i] for i in sorted(told)]


def rows(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl but for what they say of time."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in ("examples_per_second", "host_ms", "time")} for row in lines]


def samples(folder: Path) -> np.ndarray:
    with np.load(local_copy(folder / "samples" / "final.npz", "samples")) as file:
        return file["samples"]


def state_of(folder: Path, other: Path):
    """All arrays of the newest checkpoint, on this process's devices."""
    settings = tiny.config(**SETTINGS)
    run = setup(settings, other, task=tiny.Task(), dataset=tiny.dataset(), eval_dataset=tiny.dataset(50))
    assert isinstance(run, Run)
    found = Checkpointer(folder, read_only=True).restore(lambda step: run.abstract)
    assert found is not None
    return jax.device_get(found[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("two") / "run"
    done, told = launch(folder, 2)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, told


@pytest.mark.slow
def test_losses_and_samples_are_those_of_one_process(whole, tmp_path):
    """And the same in both processes, in every bit, pictures while training included."""
    two, told = whole
    one = tmp_path / "one"
    done, alone = launch(one, 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(process["status"], process["step"]) for process in [*told, *alone]] == [("finished", 20)] * 3
    assert told[0]["drawn"] == told[1]["drawn"]
    assert len(rows(two)) == 20
    # Sums over devices of other processes are taken in another order.
    np.testing.assert_allclose([r["loss"] for r in rows(two)], [r["loss"] for r in rows(one)], rtol=1e-5)
    assert samples(two).shape == (24, 2)
    np.testing.assert_allclose(samples(two), samples(one), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_files_are_written_once(whole, tmp_path):
    """What Python opens, by its audit hook; what TensorStore writes by the bytes of the arrays."""
    folder, told = whole
    first, second = (set(process["wrote"]) for process in told)
    assert {"metrics.jsonl"} <= first and any(name.startswith("config.json") for name in first)
    assert not first & second
    assert all(name.startswith(".probe") for name in second)  # whether it may write there at all
    done, _ = launch(tmp_path / "one", 1)
    assert done.returncode == 0, done.stderr

    def size(run: Path) -> int:
        files = (run / "checkpoints" / "20").rglob("d/*")  # TensorStore's folders of data
        return sum(file.stat().st_size for file in files)

    names = [{str(f.relative_to(run)) for f in run.rglob("*") if f.is_file()} for run in (folder, tmp_path / "one")]
    outside = [{name for name in found if "checkpoints/" not in name and "tfevents" not in name} for found in names]
    assert outside[0] == outside[1]
    assert 0 < size(folder) < 1.5 * size(tmp_path / "one")  # arrays twice would be 2


@pytest.mark.slow
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_after_a_kill_the_same_command_goes_on_in_every_bit(whole, tmp_path, place, request):
    undisturbed, _ = whole
    folder = tmp_path / "run"
    if place == "bucket":
        request.getfixturevalue("bucket")
        folder = user_path("gs://bucket/two/run")
    done, told = launch(folder, 2, dies=17)  # the checkpoint of step 10 is complete, that of 15 perhaps
    assert done.returncode == 128 + 9 and told == []
    assert "process 1 of 2 was ended by SIGKILL" in done.stderr
    assert any((folder / "checkpoints" / step).is_dir() for step in ("10", "15"))
    assert not (folder / "checkpoints" / "20").exists()
    done, told = launch(folder, 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"going on from step 1[05] of 20", done.stdout + done.stderr)
    assert [process["step"] for process in told] == [20, 20]
    assert rows(folder) == rows(undisturbed)
    np.testing.assert_array_equal(samples(folder), samples(undisturbed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sh, "make_mesh", lambda fsdp=1, make=sh.make_mesh: make(fsdp, jax.devices()[:4]))
        ours, theirs = (state_of(run, tmp_path / "other") for run in (folder, undisturbed))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
