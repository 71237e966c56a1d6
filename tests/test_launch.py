"""The scripts of `launch/`: processes find each other, failures and signals get through."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import refdata
import yaml

from sgmjax import sharding
from sgmjax.commands.train import read_flags

LAUNCH = refdata.ROOT / "launch"

SUM_OVER_DEVICES = """
import jax
import numpy as np
from sgmjax import sharding

assert sharding.initialize_distributed()
mesh = sharding.make_mesh()
first = jax.local_device_count() * jax.process_index()
mine = np.arange(first, first + jax.local_device_count(), dtype=np.float32)
x = sharding.put_batch({"x": mine}, sharding.batch_sharding(mesh))["x"]
total = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated(mesh))(x)
print("total", float(total), "of", jax.device_count(), "in", jax.process_count())
"""


def local(*arguments: str, script: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LAUNCH / "local.py"), *arguments, "--", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_two_processes_share_one_array():
    done = local("--processes=2", "--devices=3", script=SUM_OVER_DEVICES)
    assert done.returncode == 0, done.stdout + done.stderr
    for process in range(2):  # 0 + 1 + ... + 5, seen by both
        assert f"[{process}] total 15.0 of 6 in 2" in done.stdout


FIRST = """
import jax
from sgmjax import sharding as sh
sh.initialize_distributed()
def read():
    assert jax.process_index() == 0, "read twice"
    return said
for said in ("it is cut short: \u00fc", None, ""):
    print("heard", repr(sh.of_the_first(read)))
"""


def test_what_one_process_reads_all_hear_of():
    done = local("--processes=2", script=FIRST)
    assert done.returncode == 0, done.stderr
    for process in range(2):
        for said in ("it is cut short: \u00fc", None, ""):
            assert f"[{process}] heard {said!r}" in done.stdout


def test_a_failing_process_ends_the_others_with_its_status():
    script = "import os, sys, time\nif os.environ['JAX_PROCESS_ID'] == '1': sys.exit(7)\ntime.sleep(60)"
    start = time.monotonic()
    assert local("--processes=3", script=script).returncode == 7
    assert time.monotonic() - start < 30


def test_a_process_ended_by_a_signal_is_named_in_one_line_and_cpp_logs_are_not_copied(tmp_path):
    """The lines are those that JAX 0.10.2 printed when process 0 of two was killed, here when the other has spoken."""
    script = (
        "import os, signal, sys, time\n"
        f"spoken = {str(tmp_path / 'spoken')!r}\n"
        "if os.environ['JAX_PROCESS_ID'] == '0':\n"
        "    while not os.path.exists(spoken): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "print('E1125 20:23:51.139363     676 coordination_service_agent.cc:289] Polled an error from coordination')\n"
        "print('F1125 20:23:51.139372     676 client.h:80] Terminating process because the JAX distributed service')\n"
        "print('Additional GRPC error information from remote target coordination_service while calling /xla.x:')\n"
        "print(':UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:\"Socket closed\"}')\n"
        "print('F1125 20:23:51.139372     676 other.cc:80] a bug')\n"
        "print('error: of ours', flush=True)\n"
        "open(spoken, 'w').close()\n"
        "time.sleep(60)"
    )
    done = local("--processes=2", script=script)
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stdout.splitlines() == ["[1] F1125 20:23:51.139372     676 other.cc:80] a bug", "[1] error: of ours"]
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("process 0 of 2 was ended by SIGKILL; the others")


def test_sigterm_reaches_every_process():
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0)))\n"
        "print('ready')\n"
        "time.sleep(60)"
    )
    command = [sys.executable, str(LAUNCH / "local.py"), "--processes=2", "--", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert {child.stdout.readline().strip() for _ in range(2)} == {"[0] ready", "[1] ready"}
        child.send_signal(signal.SIGTERM)
        rest = child.stdout.read().split("\n")
        assert child.wait(timeout=30) == 0
    assert {"[0] saved", "[1] saved"} <= set(rest)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_pod_script_prints_its_commands_and_wants_a_shared_work_folder():
    script = str(LAUNCH / "tpu_pod.sh")
    environment = {**os.environ, "TPU_NAME": "slice", "ZONE": "zone-a", "DRY_RUN": "1"}
    without = subprocess.run([script, "--config=a.py"], env=environment, capture_output=True, text=True, check=False)
    assert without.returncode == 2 and "--workdir" in without.stderr
    if shutil.which("git") is None or not (refdata.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    arguments = ["--config=configs/psld_cifar.py", "--workdir=/mnt/a b"]
    done = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=True)
    copy, start = done.stdout.strip().split("\n", 1)
    assert "scp" in copy and "slice:sgmjax.tar.gz" in copy and "--worker=all" in copy
    assert "-m\\ sgmjax.train" in start or "-m sgmjax.train" in start


GCLOUD = """#!/bin/sh
# What the slice is, and is next: a line of the file `states`, of which `create` and `delete` and a failed run take one.
echo "$*" >> calls
case "$*" in
    *describe*)
        now=$(head -n 1 states)
        case $now in
            ABSENT) echo "ERROR: NOT_FOUND: Resource slice was not found" >&2; exit 1 ;;
            NOBODY) echo "ERROR: you do not have an active account" >&2; exit 1 ;;
        esac
        echo "$now" ;;
    *create* | *delete*) sed -i 1d states ;;
    *ssh*) sed -i 1d runs.left; test -s runs.left || exit 0; sed -i 1d states; exit 1 ;;
esac
"""


@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("git") is None, reason="no bash or git")
@pytest.mark.parametrize(
    ("states", "lost", "accelerator", "status", "expected"),
    [
        (["READY"], 0, "", 0, ["scp", "ssh"]),
        (["ABSENT"], 0, "", 2, []),
        (["NOBODY"], 0, "v4-32", 1, []),
        (["ABSENT", "READY"], 0, "v4-32", 0, ["create", "scp", "ssh"]),
        # taken away during the run: deleted, created, gone on with
        (["READY", "PREEMPTED", "ABSENT", "READY"], 1, "v4-32", 0,
         ["scp", "ssh", "delete", "create", "scp", "ssh"]),
        (["READY", "READY"], 1, "v4-32", 1, ["scp", "ssh"]),  # a run that failed by itself is not started again
        (["READY", "PREEMPTED"], 1, "", 1, ["scp", "ssh"]),
    ],
    ids=["there", "absent", "no account", "created", "preempted", "failed", "not ours to create"],
)  # fmt: skip
def test_the_pod_script_creates_its_slice_and_goes_on_after_a_preemption(
    tmp_path, states, lost, accelerator, status, expected
):
    if not (refdata.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    (tmp_path / "runs.left").write_text("lost\n" * (lost + 1))
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU_NAME": "slice", "ZONE": "zone-a"}
    environment |= {"ACCELERATOR": accelerator, "SPOT": "1", "WAIT": "0"}
    command = [str(LAUNCH / "tpu_pod.sh"), "--workdir=gs://bucket/run"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    words = [word for call in calls for word in ("create", "delete", "scp", "ssh") if f"tpu-vm {word}" in call]
    assert words == expected
    for call in calls:
        if "tpu-vm create" in call:
            assert "--accelerator-type=v4-32" in call and "--spot" in call
    if states == ["NOBODY"]:
        assert "active account" in done.stderr
    if status == 2:
        assert "is ABSENT; set ACCELERATOR (as v4-32) to have it created" in done.stderr


def test_the_jobset_starts_a_run_whose_processes_find_each_other(monkeypatch):
    """Its command is one of ours, and its variables give every pod the same first host and a number of its own."""
    document = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (hosts,) = document["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "sgmjax.train"]
    values, config, _ = read_flags(["train", *container["command"][3:]])
    assert values.workdir == "/shared/runs/psld_cifar" and config.data.data_dir == "/shared/data"
    variables = {entry["name"]: entry for entry in container["env"]}
    count = job["parallelism"]
    assert job["completions"] == count == int(variables["JAX_NUM_PROCESSES"]["value"])
    assert job["completionMode"] == "Indexed"
    index = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    name = document["metadata"]["name"]  # hosts are called JOBSET-JOB-0-INDEX.JOBSET
    host, port = variables["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert host == f"{name}-{hosts['name']}-0-0.{name}" and container["ports"] == [{"containerPort": int(port)}]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    given = {"JAX_COORDINATOR_ADDRESS": f"{host}:{port}", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": "1"}
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: told.append(args))
    sharding.initialize_distributed(given)
    assert told == [(f"{host}:{port}", count, 1)]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("name", ["tpu_pod.sh", "slurm.sbatch"])
def test_shell_scripts_parse(name):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


NOT_IN_BASH_3 = (
    r";;&|;&|\b(mapfile|readarray|coproc)\b|\b(declare|local|typeset) -[a-zA-Z]*[Ang]|&>>|\|&|\$\{\w+(,|\^|@)"
)
NOT_IN_BSD = (
    r"mktemp (--|-p|-t|[^-\n]*--)|\bsed -i |\breadlink -f|\brealpath\b|\bdate -d|\bgrep -P|\bxargs -r|\bstat -c"
)


def test_what_runs_on_a_laptop_runs_on_macos():
    """Whose bash is 3.2 and whose tools are BSD's."""
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert scripts
    for script in scripts:
        code = "\n".join(line for line in script.read_text().splitlines() if not line.startswith("#"))
        for pattern in (NOT_IN_BASH_3, NOT_IN_BSD):
            assert not re.search(pattern, code), (script.name, re.search(pattern, code))
        for place in re.findall(r".*\bmktemp\b.*", code):
            assert re.search(r'mktemp -d "[^"]*X{6}"', place), place  # ends in the Xs: BSD's fills in no others


def test_the_pod_script_leaves_nothing_behind(tmp_path):
    if not (refdata.ROOT / ".git").exists() or not (shutil.which("bash") and shutil.which("git")):
        pytest.skip("not a git checkout, or no bash")
    given = {"TPU_NAME": "slice", "ZONE": "zone-a", "DRY_RUN": "1", "TMPDIR": str(tmp_path)}
    command = [str(LAUNCH / "tpu_pod.sh"), "--workdir=gs://bucket/run"]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=True)
    assert f"{tmp_path}/sgmjax." in done.stdout and "sgmjax.tar.gz slice:sgmjax.tar.gz" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(("given", "cpus"), [({"SLURM_CPUS_PER_TASK": "5"}, "5"), ({}, "8")])
def test_slurm_tasks_get_the_cores_of_the_job(tmp_path, given, cpus):
    """srun does not take them over by itself since Slurm 22.05."""
    (tmp_path / "srun").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/told"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    environment |= given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(LAUNCH / "slurm.sbatch"), "--workdir=/shared/a b"], env=environment, check=True)
    told = (tmp_path / "told").read_text().splitlines()
    program = told.index(".venv/bin/python")
    assert f"--cpus-per-task={cpus}" in told[:program] and "--kill-on-bad-exit=0" in told[:program]
    assert told[program + 1 :] == ["-m", "sgmjax.train", "--workdir=/shared/a b"]


def train(folder: Path, *, processes: int, devices: int) -> list[dict]:
    """Twenty steps on a 2-D set; the lines of metrics.jsonl."""
    settings = {
        "data.name": "ring", "data.num_samples": 1000, "model.width": 16, "model.depth": 1, "train.batch_size": 16,
        "train.steps": 20, "train.steps_per_dispatch": 1, "train.log_every": 5, "train.checkpoint_every": 20,
        "train.eval_every": 20, "train.sample_every": 0, "sampling.sampler": "em", "sampling.steps": 3,
        "sampling.num": 8, "sampling.batch_size": 8, "sampling.grid_images": 8,
    }  # fmt: skip
    command = [sys.executable, str(LAUNCH / "local.py"), f"--processes={processes}", f"--devices={devices}", "--"]
    command += ["-m", "sgmjax.train", f"--config={refdata.ROOT / 'configs' / 'psld_toy.py'}", f"--workdir={folder}"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=refdata.ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "samples" / "final.npz").is_file()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path):
    one, two = (train(tmp_path / str(n), processes=n, devices=4 // n) for n in (1, 2))
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, two)]
    assert len(losses[0]) == 4
    # Each process reads its half of the same shuffled epoch, and noise is drawn for the whole batch alike, so only
    # the order in which examples are added up differs.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_process_ends_the_others_within_a_minute(tmp_path: Path, killed: int):
    """Also where no launcher looks after them, as on several machines: they hear of it from JAX."""
    words = ["-m", "sgmjax.train", f"--config={refdata.ROOT / 'configs' / 'psld_toy.py'}", f"--workdir={tmp_path}/run"]
    words += ["--config.train.steps=1000000", "--config.train.log_every=10", "--config.train.checkpoint_every=20"]
    words += ["--config.train.eval_every=0", "--config.train.sample_every=0", "--config.model.width=8"]
    launcher = runpy.run_path(str(LAUNCH / "local.py"))
    port = launcher["free_port"]()
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    with contextlib.ExitStack() as stack:
        processes = []
        for i in range(2):
            file = stack.enter_context(logs[i].open("w"))
            environment = launcher["environment"](i, 2, 1, port)
            options = {"env": environment, "cwd": refdata.ROOT, "stdout": subprocess.DEVNULL, "stderr": file}
            processes.append(stack.enter_context(subprocess.Popen([sys.executable, *words], **options)))
            stack.callback(processes[i].kill)
        deadline = time.monotonic() + 300
        while not (tmp_path / "run" / "checkpoints" / "20").is_dir():
            assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
            time.sleep(0.2)
        processes[killed].kill()
        assert processes[1 - killed].wait(timeout=60) != 0
    said = logs[1 - killed].read_text()
    assert "lost another one" in said or "another task died" in said, said  # in a reduction; between two
