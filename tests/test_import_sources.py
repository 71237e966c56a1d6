"""Every source of `import_checkpoint`: recognised, converted, or refused in one line with nothing written or run."""

from __future__ import annotations

import functools
import os
import re

import jax
import numpy as np
import official_files
import pytest
from official_files import CLASSES, SOURCES

from sgmjax import _cli, interop
from sgmjax.commands import import_checkpoint, sample
from sgmjax.training.load import load_run

torch = pytest.importorskip("torch")


@functools.cache
def pieces(name: str):
    """The content of a checkpoint, made once; tests take copies."""
    return official_files.content_of(name)


def fresh(name: str):
    def copied(value):
        if isinstance(value, dict):
            return type(value)((key, copied(item)) for key, item in value.items())
        return [copied(item) for item in value] if isinstance(value, list) else value

    return copied(pieces(name))


def run(folder, name, *words, config=True) -> int:
    words = [*words, f"--workdir={folder / 'runs' / 'a'}"]
    if name == "classifier":
        words.append(f"--num_classes={CLASSES}")
    if config:
        words.append(f"--config={official_files.config_file(folder, official_files.settings_of(name))}")
    return import_checkpoint.main(["import_checkpoint", f"--checkpoint={folder / 'file'}", *words])


class Runs:
    """Pickles into a call, as a malicious file does."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def broken(name: str, how: str, folder) -> str:
    """Writes a broken checkpoint; returns what must be said of it."""
    content, path = fresh(name), folder / "file"
    weights = official_files.weights_of(name, content)
    key = next(k for k, v in weights.items() if getattr(v, "ndim", 0) > 1)
    if how == "renamed":
        weights[f"{key.rpartition('.')[0]}.renamed"] = weights.pop(key)
    elif how == "misshapen":
        weights[key] = weights[key][..., :1]
    elif how == "missing":
        del weights[key]
    elif how == "infinite":
        weights[key] = weights[key] * float("nan")
    elif how == "hostile":
        call = Runs(os.mkdir, str(folder / "mark"))
        content = [*content[:3], call, *content[4:]] if name == "ncsnv2" else content | {"step": call}
    official_files.save(name, content, path) if how != "hostile" or name != "scoresde_jax" else None
    whole = path.read_bytes() if path.exists() else b""
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "corrupt":
        middle = len(whole) // 2
        path.write_bytes(
            whole[:middle] + bytes(b ^ 0xFF for b in whole[middle : middle + 4000]) + whole[middle + 4000 :]
        )
    return {
        "renamed": "renamed",
        "misshapen": "shape",
        "missing": "lacks|'[^']*' ",
        "infinite": "nan",
        "truncated": "damaged",
        "corrupt": "damaged|is not used|must be finite|is no flax checkpoint|no 'optimizer'",
        "hostile": "posix.mkdir",
    }[how]


@pytest.mark.parametrize("how", ["renamed", "misshapen", "missing", "infinite", "truncated", "corrupt", "hostile"])
@pytest.mark.parametrize("name", SOURCES)
def test_broken_files(name, how, tmp_path, capsys):
    if (name, how) == ("scoresde_jax", "hostile"):
        pytest.skip("msgpack holds no programs")
    message = broken(name, how, tmp_path)
    assert run(tmp_path, name) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and re.search(message, err), err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_contradicts_the_file(name, tmp_path, capsys):
    official_files.save(name, pieces(name), tmp_path / "file")
    found = interop.recognise(tmp_path / "file")
    assert found.source == {"scoresde_jax": "scoresde", "classifier": "psld"}.get(name, name)
    other = "cld" if found.source != "cld" else "psld"
    assert run(tmp_path, name, f"--source={other}", config=False) == 2
    err = capsys.readouterr().err
    assert f"error: --source: {other}, but " in err and f"is {found.what} ({found.source})" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["psld", pytest.param("lsgm", marks=pytest.mark.reference)])
def test_a_failure_while_writing_leaves_nothing(name, tmp_path, monkeypatch):
    from sgmjax.training.run import Run

    def fail(self, *arguments):
        (self.path / "half").write_text("")
        raise OSError(28, "No space left on device", str(self.path))

    monkeypatch.setattr(Run, "adopt", fail)
    official_files.save(name, pieces(name), tmp_path / "file")
    assert run(tmp_path, name) == 2
    assert not list((tmp_path / "runs").iterdir())


def test_a_config_is_found_by_the_weights(tmp_path, monkeypatch, capsys):
    """The one that fits alone; of several that do their names; of none those of its kind."""
    configs = tmp_path / "configs"
    configs.mkdir()
    monkeypatch.setattr(_cli, "config_folders", lambda: [configs])
    official_files.save("cld", pieces("cld"), tmp_path / "file")
    settings = official_files.settings_of("cld")
    wider = settings | {"model": settings["model"] | {"nf": 16}}
    for one, name in ((wider, "wider"), (official_files.settings_of("psld"), "psld_of_eight")):
        official_files.config_file(configs, one, name)
    (configs / "broken.py").write_text("1 / 0\n")
    assert run(tmp_path, "cld", config=False) == 2
    err = capsys.readouterr().err
    assert "no config that comes with sgmjax has the network" in err and err.endswith("Those of this kind: wider\n")
    for name in ("one", "two"):
        official_files.config_file(configs, settings, name)
    assert run(tmp_path, "cld", config=False) == 2
    assert "--config: one, two all have the network of" in capsys.readouterr().err
    (configs / "two.py").unlink()
    assert not (tmp_path / "runs").exists()
    assert run(tmp_path, "cld", config=False) == 0
    said = capsys.readouterr().out
    assert "is a checkpoint of CLD-SGM\n" in said
    assert "its weights are of the network of one; cld(beta_min=4.0" in said and "t_min=1e-05" in said
    assert load_run(tmp_path / "runs" / "a").step == 5
    assert run(tmp_path, "cld", config=False) == 2  # the folder is taken
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.reference
def test_lsgm_is_checked_against_its_config(tmp_path, capsys):
    """Of the file's settings each that contradicts a config is named with both values."""
    official_files.save("lsgm", pieces("lsgm"), tmp_path / "file")
    for section, key, value in (
        ("sde", "beta_max", 19.0),
        ("vae", "latents_per_group", 2),
        ("objective", "t_min", 0.5),
    ):
        settings = official_files.settings_of("lsgm")
        before = settings.setdefault(section, {}).get(key)
        settings[section][key] = value
        config = official_files.config_file(tmp_path, settings)
        assert run(tmp_path, "lsgm", f"--config={config}", config=False) == 2
        err = capsys.readouterr().err
        assert f"{section}.{key}: {value} in the config" in err and f"was trained with {before!r} (" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["joint", "vae"])
def test_lsgm_becomes_a_run(kind, tmp_path, monkeypatch, capsys):
    """Both stages: each weight of the file is in the run, and its images are those of the file's VAE."""
    content = fresh("lsgm")
    settings = official_files.settings_of("lsgm")
    if kind == "vae":
        del content["dae_state_dict"]
        settings["latent"]["vae_steps"] = content["global_step"]
        settings["train"]["steps"] = content["global_step"] + 50
    official_files.save("lsgm", content, tmp_path / "file")
    monkeypatch.setattr(_cli, "config_folders", lambda: [])
    words = [] if kind == "joint" else [f"--config={official_files.config_file(tmp_path, settings)}"]
    assert run(tmp_path, "lsgm", *words, config=False) == 0
    assert ("its own settings make one" in capsys.readouterr().out) == (kind == "joint")
    raw, average = (load_run(tmp_path / "runs" / "a", averaged=flag) for flag in (False, True))
    read = interop.read_lsgm(tmp_path / "file")
    assert raw.step == average.step == read.step == content["global_step"]
    assert type(raw.task).__name__ == {"joint": "LatentTask", "vae": "VAETask"}[kind]
    for one in (raw, average):
        jax.tree.map(np.testing.assert_array_equal, one.variables.params["vae"], read.vae_variables["params"])
        jax.tree.map(
            np.testing.assert_array_equal, one.variables.state["batch_stats"], read.vae_variables["batch_stats"]
        )
    if kind == "joint":
        assert raw.config.sde.name == "vp" and raw.task.prior.nf == vars(content["args"])["num_channels_dae"]
        jax.tree.map(np.testing.assert_array_equal, raw.variables.params["prior"], read.prior_params)


@pytest.mark.slow
def test_a_classifier_of_psld_guides(tmp_path, capsys):
    """Two checkpoints become two runs, of which one guides the other."""
    for name in ("psld", "classifier"):
        (tmp_path / name).mkdir()
        official_files.save(name, pieces(name), tmp_path / name / "file")
        assert run(tmp_path / name, name) == 0
    score, classifier = (tmp_path / name / "runs" / "a" for name in ("psld", "classifier"))
    assert load_run(classifier).task.num_classes == CLASSES
    words = [f"--workdir={score}", f"--classifier={classifier}", "--labels=1", "--num=4", "--steps=2"]
    assert sample.main(["sample", *words, f"--out={tmp_path / 'out'}"]) == 0
    assert "4 samples" in capsys.readouterr().out
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["samples"].shape == (4, official_files.SIDE, official_files.SIDE, 3)
        assert arrays["labels"].tolist() == [1] * 4
