"""Bad input of every kind over all commands: refused in one line, in seconds, with the run folder as it was.

The cases are made here: every flag of every command with values that it cannot have, every setting of a config with a
value of another type, files that are broken in every way, run folders that were edited. What is right stands in the
tables `ALLOWED` and `HARMLESS`; all else must be refused.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from test_inputs import BROKEN

from sgmjax import _cli
from sgmjax import config as settings
from sgmjax.commands import evaluate, export_checkpoint, import_checkpoint, noise_levels, sample, train, tune_grid

pytestmark = pytest.mark.slow

COMMANDS = {
    "train": train.main,
    "sample": sample.main,
    "evaluate": evaluate.main,
    "noise_levels": noise_levels.main,
    "tune_grid": tune_grid.main,
    "import_checkpoint": import_checkpoint.main,
    "export_checkpoint": export_checkpoint.main,
}
SECONDS = 120  # that a refusal may take, on a busy machine


class Outcome(NamedTuple):
    status: Any
    out: str
    err: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    words = [f"--workdir={folder}", "--config=psld_toy", *_overrides(TINY)]
    assert train.main(["train", *words]) == 0
    return folder


TINY = {
    "data.num_samples": 200,
    "model.width": 8,
    "model.depth": 1,
    "optimizer.warmup_steps": 1,
    "optimizer.ema_decay": 0.5,
    "train.steps": 4,
    "train.steps_per_dispatch": 1,
    "train.batch_size": 16,
    "train.log_every": 2,
    "train.sample_every": 0,
    "train.eval_every": 0,
    "train.checkpoint_every": 2,
    "sampling.num": 16,
    "sampling.batch_size": 16,
    "sampling.steps": 4,
}


def _overrides(values: dict[str, Any]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in values.items()]


def call(capfd, command: str, words: list[str]) -> Outcome:
    """A command as the shell would call it; an exception that leaves it is a failure of the test."""

    def too_long(number, frame):
        raise TimeoutError(f"{command} {words} still works after {SECONDS} s")

    capfd.readouterr()
    previous = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        status = COMMANDS[command]([command, *words])
    except SystemExit as stop:
        status = stop.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return Outcome(status, *capfd.readouterr())


def assert_refused(found: Outcome, *words: str) -> None:
    assert found.status in (1, 2), found
    lines = found.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in found.out, found
    assert lines[0].count("error:") == 1, lines[0]
    for word in words:
        assert word in lines[0], lines[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    """What the files of a folder hold; JAX's and Python's own caches aside."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------------------------------------------------------- flags
def flags_of(command: str) -> dict[str, str]:
    """The flags of a command and their types, from the command itself."""
    found: dict[str, str] = {}

    def record(values, argv, ranges=None):
        found.update({name: values[name].flag_type() for name in values})
        raise _cli.UsageError("only the flags were wanted")

    original, _cli.parse_flags = _cli.parse_flags, record
    try:
        COMMANDS[command]([command])
    finally:
        _cli.parse_flags = original
    return found


BAD_NUMBERS = {
    "int": ["1.5", "x", "", "nan", "1e3", "-1", "0", str(10**20), str(2**64), "1_0_", "0x", "True"],
    "float": ["x", "", "nan", "inf", "-inf", "1e400", "-1", "0", "1,5", "None"],
}
# What a flag may be, of the values above.
ALLOWED = {("seed", "0"), ("guidance", "0"), ("noise", "0"), ("refine", "0")}


def flag_cases() -> Iterator[Any]:
    for command in COMMANDS:
        for name, kind in sorted(flags_of(command).items()):
            for value in BAD_NUMBERS.get(kind, ()):
                if (name, value) not in ALLOWED:
                    yield pytest.param(command, name, value, id=f"{command}-{name}-{value}")


@pytest.mark.parametrize(("command", "name", "value"), list(flag_cases()))
def test_numbers_of_flags(finished, capfd, command, name, value):
    before = snapshot(finished)
    words = {
        "train": ["--config=psld_toy", f"--workdir={finished}"],
        "sample": [f"--workdir={finished}"],
        "evaluate": [f"--workdir={finished}", "--metrics=bpd"],
        "noise_levels": ["--data=digits"],
        "tune_grid": [f"--workdir={finished}", "--sampler=unipc"],
        "import_checkpoint": ["--source=psld", "--config=psld_digits", "--checkpoint=none.ckpt"],
        "export_checkpoint": [f"--workdir={finished}", "--format=psld", f"--out={finished}/none.ckpt"],
    }[command]
    assert_refused(call(capfd, command, [*words, f"--{name}={value}"]), name)
    assert snapshot(finished) == before


# ------------------------------------------------------------------------------------------------------------- settings
def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and name != "options":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def setting_cases() -> Iterator[Any]:
    """Every setting of two configs with values of other types; those that a setting may have are left out."""
    for config in ("psld_cifar", "lsgm_mnist"):
        values = settings.to_dict(_cli.read_config(config, [])[0])
        for name, value in leaves(values):
            bad: list[Any] = [{"a": 1}, float("nan"), float("inf"), "no such word", [[[]]], b"bytes", 1j]
            if isinstance(value, str):
                bad = [{"a": 1}, float("nan"), 7, [1], True]
            for item in bad:
                yield pytest.param(config, name, item, id=f"{config}-{name}-{item!r}")


# Settings that are text, so that any text will do, or of which a case above is a right value.
HARMLESS = {
    "data.data_dir": (str,), "data.split": (str,), "data.eval_split": (str,), "latent.vae_from": (str,),
    "sampling.options": (dict,), "data.path": (str,), "sampling.denoise": (bool,),
    "train.keep_best": (str,),  # `train` says it, which knows what will be measured
}  # fmt: skip


@pytest.mark.parametrize(("config", "name", "value"), list(setting_cases()))
def test_settings_of_another_type(config, name, value):
    if isinstance(value, HARMLESS.get(name, ())):
        pytest.skip("a right value")
    with pytest.raises(settings.ConfigError) as info:
        _cli.read_config(config, [(name, value)])
    text = str(info.value)
    assert name.split(".")[-1] in text and "\n" not in text and len(text) < 1000, text


# ---------------------------------------------------------------------------------------------------------------- files
def file_cases() -> Iterator[Any]:
    for flag in ("inpaint", "input"):
        for kind in [
            *BROKEN,
            "missing",
            "folder",
            "fifo",
            "complex",
            "nan",
            "inf",
            "shape",
            "none",
            "words",
            "dates",
            "huge",
        ]:
            yield pytest.param(flag, kind, id=f"{flag}-{kind}")


def _write(path: Path, kind: str, names: tuple[str, ...]) -> None:
    arrays = {
        "complex": np.ones((4, 2), complex),
        "nan": np.full((4, 2), np.nan, np.float32),
        "inf": np.full((4, 2), np.inf),
        "shape": np.ones((4, 3, 5), np.float32),
        "none": np.zeros((0, 2), np.float32),
        "words": np.array([["a", "b"]]),
        "dates": np.zeros((4, 2), "datetime64[s]"),
        "huge": np.full((4, 2), 1e300),
    }
    if kind in arrays:
        np.savez(path, **dict.fromkeys(names, arrays[kind][0] if "mask" in names and kind != "none" else arrays[kind]))
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in BROKEN:
        path.write_bytes(BROKEN[kind])


@pytest.mark.parametrize(("flag", "kind"), list(file_cases()))
def test_files_of_arrays(finished, tmp_path, capfd, flag, kind):
    path = tmp_path / "given.npz"
    _write(path, kind, ("mask",) if flag == "inpaint" else ("x",))
    words = [f"--workdir={finished}", f"--{flag}={path}", f"--out={tmp_path}/out"]
    words += [] if flag == "inpaint" else ["--start_time=0.5"]
    assert_refused(call(capfd, "sample", words), f"--{flag}")
    assert {p.name for p in tmp_path.iterdir()} <= {"given.npz"}


@pytest.mark.parametrize("kind", [*BROKEN, "missing", "folder", "fifo"])
@pytest.mark.parametrize("source", import_checkpoint.SOURCES)
def test_checkpoints_that_are_none(tmp_path, capfd, source, kind):
    path = tmp_path / "given.ckpt"
    _write(path, kind, ())
    config = {"ncsnv2": "ncsnv2_digits"}.get(source, "psld_digits")
    words = [f"--source={source}", f"--config={config}", f"--checkpoint={path}", f"--workdir={tmp_path}/run"]
    assert_refused(call(capfd, "import_checkpoint", words), "given.ckpt")
    assert not (tmp_path / "run" / "config.json").exists()


# ---------------------------------------------------------------------------------------------------------- run folders
def _deep(depth: int) -> str:
    return '{"config": ' + "[" * depth + "]" * depth + "}"


EDITS: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "list": lambda text: "[1, 2]",
    "number": lambda text: "7",
    "null": lambda text: "null",
    "deep": lambda text: _deep(100_000),
    "no config": lambda text: json.dumps({"data": json.loads(text)["data"]}),
    "no data": lambda text: json.dumps({"config": json.loads(text)["config"]}),
    "words for a shape": lambda text: _edit(text, "data", "shape", ["two"]),
    "a negative shape": lambda text: _edit(text, "data", "shape", [-2]),
    "an empty shape": lambda text: _edit(text, "data", "shape", []),
    "a number for a shape": lambda text: _edit(text, "data", "shape", 2),
    "a giant shape": lambda text: _edit(text, "data", "shape", [10**12]),
    "words for classes": lambda text: _edit(text, "data", "num_classes", "many"),
    "an unknown setting": lambda text: _edit(text, "config", "speed", 1),
    "another width": lambda text: _edit(text, "config", "model", {"name": "mlp", "width": 16, "depth": 1}),
    "another network": lambda text: _edit(text, "config", "model", {"name": "cld_toy_mlp"}),
    "another process": lambda text: _edit(text, "config", "sde", {"name": "vp"}),
    "a list for a section": lambda text: _edit(text, "config", "model", [1]),
    "a seed of words": lambda text: _edit(text, "config", "seed", "seven"),
}


def _edit(text: str, section: str, key: str, value: Any) -> str:
    content = json.loads(text)
    content[section][key] = value
    return json.dumps(content)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize("edit", EDITS)
def test_edited_configs_of_runs(finished, tmp_path, capfd, command, edit):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    file = folder / "config.json"
    file.write_text(EDITS[edit](file.read_text()))
    before = snapshot(folder)
    assert_refused(call(capfd, command, [f"--workdir={folder}"]))
    assert snapshot(folder) == before


WORDS = [
    ("train", ["--config="]),
    ("train", ["--config=/dev/zero"]),
    ("train", ["--config=psld_toy", "--workdir="]),
    ("train", ["--config=psld_toy", "--config.="]),
    ("train", ["--config=psld_toy", "--config.train=5"]),
    ("train", ["--config=psld_toy", "--config.train.batch_size=2000000000"]),
    ("sample", ["--workdir=RUN/config.json"]),
    ("sample", ["--workdir=/dev/null"]),
    ("sample", ["--workdir=RUN", "--out=/dev/null/x"]),
    ("sample", ["--workdir=RUN", "--out=/proc/x"]),
    ("sample", ["--workdir=RUN", "--inpaint="]),
    ("sample", ["--workdir=RUN", "--inpaint=left"]),
    ("sample", ["--workdir=RUN", "--labels=0"]),
    ("sample", ["--workdir=RUN", "--labels=-1"]),
    ("sample", ["--workdir=RUN", "--guidance=2"]),
    ("sample", ["--workdir=RUN", "--classifier=RUN", "--labels=0"]),
    ("sample", ["--workdir=RUN", "--classifier=/nowhere", "--labels=0"]),
    ("sample", ["--workdir=RUN", "--colorize"]),
    ("sample", ["--workdir=RUN", "--reconstruct"]),
    ("sample", ["--workdir=RUN", "--interpolate_samples"]),
    ("sample", ["--workdir=RUN", "--start_time=2"]),
    ("sample", ["--workdir=RUN", "--sampler=ode", "--inpaint=half", "--method=replacement"]),
    ("sample", ["--workdir=RUN", "--inpaint=half", "--method=ddrm"]),
    ("sample", ["--workdir=RUN", "--inpaint=half", "--noise=0"]),
    ("sample", ["--workdir=RUN", "--inpaint=half", "--noise=-1"]),
    ("sample", ["--workdir=RUN", "--inpaint=half", "--method_options=scale=2"]),
    ("sample", ["--workdir=RUN", "--inpaint=half", "--method=mmps", "--resample=2"]),
    ("sample", ["--workdir=RUN", "--method=mmps"]),
    ("sample", ["--workdir=RUN", "--inverse=half"]),
    ("sample", ["--workdir=RUN", "--inverse=super_resolution"]),
    ("sample", ["--workdir=RUN", "--inverse=super_resolution:2"]),
    ("sample", ["--workdir=RUN", "--inverse=random:2"]),
    ("sample", ["--workdir=RUN", "--inverse=random:0.5", "--inpaint=half"]),
    ("sample", ["--workdir=RUN", "--inverse=random:0.5", "--method=replacement"]),
    ("sample", ["--workdir=RUN", "--sampler=ggf", "--start_time=0.5"]),
    ("sample", ["--workdir=RUN", "--sampler=pc", "--options=snr=nan"]),
    ("sample", ["--workdir=RUN", "--sampler=pc", "--options=snr"]),
    ("sample", ["--workdir=RUN", "--sampler=pc", "--options=snr='a'"]),
    ("sample", ["--workdir=RUN", "--denoise=maybe"]),
    ("sample", ["--workdir=RUN", "--grid=levels"]),
    ("sample", ["--workdir=RUN", "--sampler=edm"]),
    ("sample", ["--workdir=RUN", "--input=/dev/zero", "--start_time=0.5"]),
    ("evaluate", ["--workdir=RUN", "--metrics="]),
    ("evaluate", ["--workdir=RUN", "--metrics=speed"]),
    ("evaluate", ["--workdir=RUN", "--metrics=frechet"]),
    ("evaluate", ["--workdir=RUN", "--metrics=nelbo"]),
    ("evaluate", ["--workdir=RUN", "--solver=Magic"]),
    ("evaluate", ["--workdir=RUN", "--metrics=bpd,bpd", "--out=/tmp/x"]),
    ("evaluate", ["--workdir=RUN", "--out=RUN"]),
    ("evaluate", ["--workdir=RUN", "--t_min=1.5"]),
    ("sample", ["--workdir=RUN", "--sampler=unipc", "--grid=tuned"]),
    ("tune_grid", []),
    ("tune_grid", ["--workdir=RUN", "--sampler=ode"]),
    ("tune_grid", ["--workdir=RUN", "--sampler=em", "--refine=5"]),
    ("tune_grid", ["--workdir=RUN", "--sampler=unipc", "--steps=70"]),
    ("tune_grid", ["--workdir=RUN", "--sampler=unipc", "--steps=1"]),
    ("tune_grid", ["--workdir=RUN", "--sampler=unipc", "--options=order=9"]),
    ("tune_grid", ["--workdir=RUN", "--sampler=unipc", "--process=cld", "--process.gama=1"]),
    ("noise_levels", []),
    ("noise_levels", ["--data=digits", "--config=ncsnv2_digits"]),
    ("noise_levels", ["--data=folder"]),
    ("noise_levels", ["--data=nonsense"]),
    ("noise_levels", ["--data=digits", "--sigma_max=1", "--sigma_min=2"]),
    ("noise_levels", ["--data=digits", "--sigma_min=1e-300"]),
    ("export_checkpoint", ["--workdir=RUN", "--format=magic", "--out=x"]),
    ("export_checkpoint", ["--workdir=RUN", "--format=psld"]),
    ("export_checkpoint", ["--workdir=RUN", "--format=cld", "--out=RUN/none.pth"]),
    ("export_checkpoint", ["--workdir=RUN", "--format=safetensors", "--out=RUN/none.pth"]),
    ("import_checkpoint", ["--source=magic"]),
    ("import_checkpoint", ["--source=psld", "--config=lsgm_mnist", "--checkpoint=x"]),
    ("import_checkpoint", ["--source=psld", "--config=psld_celeba64", "--checkpoint=x", "--image_shape=64,64"]),
    ("import_checkpoint", ["--source=psld", "--config=psld_celeba64", "--checkpoint=x", "--image_shape=64,64,1e9"]),
    ("import_checkpoint", ["--source=psld", "--config=psld_digits", "--checkpoint=x", "--num_classes=-3"]),
]  # fmt: skip


@pytest.mark.parametrize(("command", "words"), WORDS, ids=[f"{c} {' '.join(w)}" for c, w in WORDS])
def test_words_that_cannot_work(finished, capfd, command, words):
    before = snapshot(finished)
    assert_refused(call(capfd, command, [word.replace("RUN", str(finished)) for word in words]))
    assert snapshot(finished) == before


def test_there_are_enough_cases():
    assert sum(1 for _ in (*flag_cases(), *file_cases(), *setting_cases())) + len(WORDS) > 100
