"""Every source of `import_checkpoint`: recognised, converted, or refused in one line with nothing written or run."""

from __future__ import annotations

import os
import re

import numpy as np
import official_files
import pytest
import tiers
from official_files import CLASSES, SOURCES, fresh, pieces
from official_files import run_import as run

from sgmjax import interop
from sgmjax.commands import sample
from sgmjax.training.load import load_run

torch = pytest.importorskip("torch")

HOW = ("renamed", "misshapen", "missing", "infinite", "truncated", "corrupt", "hostile")


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


@pytest.mark.parametrize("how", tiers.alike(HOW, HOW[1:]))  # the heaviest: networks are made
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


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    from sgmjax.training.run import Run

    def fail(self, *arguments):
        (self.path / "half").write_text("")
        raise OSError(28, "No space left on device", str(self.path))

    monkeypatch.setattr(Run, "adopt", fail)
    official_files.save("psld", pieces("psld"), tmp_path / "file")
    assert run(tmp_path, "psld") == 2
    assert not list((tmp_path / "runs").iterdir())


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
