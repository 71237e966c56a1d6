"""The command on a convolutional network: the same samples on one device, on eight, and after kill -9; flat memory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import refdata

from sgmjax.commands import train

pytestmark = pytest.mark.slow

TINY = {
    "data": {"name": "digits"},
    "sde": {"name": "psld"},
    "model": {"name": "ncsnpp", "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)},
    "train": {"steps": 200, "batch_size": 64, "sample_every": 0, "eval_every": 0},
    "sampling": {"steps": 10, "num": 16, "batch_size": 16, "grid_images": 16},
}
NUM = 2048  # pieces are whole, so that there may be more
LOCAL = refdata.ROOT / "launch" / "local.py"
METRICS = "--metrics=fd,kid,mind,pr"
MEMORY = (
    "import resource, sys; from sgmjax.commands import evaluate; status = evaluate.main(sys.argv); "
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024); sys.exit(status)"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.py").write_text(
        f"from sgmjax.config import complete\ndef get_config(): return complete({TINY!r})\n"
    )
    assert train.main(["train", f"--config={folder}/tiny.py", f"--workdir={folder}/run"]) == 0
    return folder / "run"


def start(run: Path, *words: str, devices: int = 1) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(refdata.ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MEMORY, f"--workdir={run}", METRICS, "--features=pixels", *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> int:
    """Waits; the largest memory it took, in MiB."""
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    found = re.search(r"peak (\d+)", out)
    assert found is not None
    return int(found[1])


def result(run: Path) -> tuple[np.ndarray, dict]:
    """All samples in order, and the metrics; and makes room for another evaluation."""
    (folder,) = (run / "metrics").glob("samples_*")
    samples = np.concatenate([np.load(file) for file in sorted((folder / "samples").glob("*.npy"))])[:NUM]
    numbers = json.loads((run / "metrics" / "report_step200.json").read_text())["numbers"]
    (run / "metrics").rename(run / f"metrics_{len(list(run.glob('metrics_*')))}")
    return samples, numbers


def test_samples_and_metrics_are_the_same_on_one_device_and_on_eight_and_after_kill_9(run):
    words = (f"--num={NUM}", "--batch_size=64")
    end(start(run, *words))
    samples, numbers = result(run)
    assert len(np.unique(samples.reshape(NUM, -1), axis=0)) == NUM

    end(start(run, *words, devices=8))
    eight, others = result(run)
    np.testing.assert_array_equal(eight, samples)
    assert others == pytest.approx(numbers, rel=1e-6)

    killed = start(run, *words)
    deadline = time.monotonic() + 300
    while not list((run / "metrics").glob("samples_*/samples/*.npy")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (run / "metrics" / "report_step200.json").exists()
    end(start(run, *words, devices=8))
    again, others = result(run)
    np.testing.assert_array_equal(again, samples)
    assert others == pytest.approx(numbers, rel=1e-6)


def test_two_processes_draw_the_same_samples(run, tmp_path):
    """Two processes of two devices each, and one of one: samples of both commands, and the metrics."""
    commands = {
        "evaluate": [f"--workdir={run}", METRICS, "--features=pixels", "--num=512", "--batch_size=64"],
        "sample": [f"--workdir={run}", "--num=64"],
    }
    drawn = {}
    for launcher in ([sys.executable], [sys.executable, str(LOCAL), "--processes=2", "--devices=2", "--"]):
        for name, words in commands.items():
            out = [f"--out={tmp_path / name}{len(launcher)}"] if name == "sample" else []
            env = {**os.environ, "PYTHONPATH": str(refdata.ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
            done = subprocess.run(
                [*launcher, "-m", f"sgmjax.{name}", *words, *out], env=env, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, done.stdout + done.stderr
        with np.load(tmp_path / f"sample{len(launcher)}.npz") as file:
            drawn[len(launcher)] = (*result(run), file["samples"])
    (samples, numbers, few), (others, other_numbers, other_few) = drawn.values()
    np.testing.assert_array_equal(others[:512], samples[:512])
    np.testing.assert_array_equal(other_few, few)
    assert other_numbers == pytest.approx(numbers, rel=1e-6)


def test_memory_does_not_grow_with_the_number_of_samples(run):
    peaks = []
    for num in (1000, 10_000):
        peaks.append(end(start(run, f"--num={num}", "--batch_size=500")))
        result(run)
    print(f"peak memory {peaks[0]} MiB for 1,000 samples, {peaks[1]} MiB for 10,000")
    assert (
        peaks[1] - peaks[0] < 300
    )  # all samples and features of 10,000 in every form are less; blocks are of one size
