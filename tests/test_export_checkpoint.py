"""A run's checkpoint as one file: the official layouts through the commands, and safetensors."""

from __future__ import annotations

import functools

import jax
import numpy as np
import official_files
import pytest

from sgmjax.commands import export_checkpoint, import_checkpoint, sample
from sgmjax.interop import torch_file
from sgmjax.training import workdir
from sgmjax.training.load import load_run

torch = pytest.importorskip("torch")
FORMATS = {"scoresde": "scoresde", "cld": "cld", "psld": "psld", "classifier": "psld"}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Of a source: the run folder of a small official checkpoint, and the checkpoint; made once."""
    return functools.cache(lambda name: _imported(name, tmp_path_factory.mktemp(name)))


def _imported(name, folder):
    official_files.save(name, official_files.content_of(name), folder / "official")
    words = [f"--checkpoint={folder / 'official'}", f"--workdir={folder / 'run'}"]
    words.append(f"--config={official_files.config_file(folder, official_files.settings_of(name))}")
    if name == "classifier":
        words.append(f"--num_classes={official_files.CLASSES}")
    assert import_checkpoint.main(["import_checkpoint", *words]) == 0
    return folder / "run", folder / "official"


def export(run, layout, out, *words) -> int:
    return export_checkpoint.main(["export", f"--workdir={run}", f"--format={layout}", f"--out={out}", *words])


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_there_and_back(name, imported, tmp_path, capsys):
    """official -> run -> official, and run -> safetensors -> run: not a bit is lost, and not a name."""
    run, official = imported(name)
    words = ["--num_scales=20"] if name == "scoresde" else []
    assert export(run, FORMATS[name], tmp_path / "again", *words) == 0
    before, after = torch_file.load(official), torch_file.load(tmp_path / "again")
    assert set(before) == set(after)
    leaves = [jax.tree_util.tree_leaves_with_path(found) for found in (before, after)]
    assert len(leaves[0]) == len(leaves[1])
    for (path, a), (there, b) in zip(*leaves, strict=True):
        assert path == there
        equal = torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        assert equal, path
    key = "model" if "model" in before else "state_dict"
    assert list(before[key]) == list(after[key])

    file = tmp_path / "run.safetensors"
    assert export(run, "safetensors", file) == 0
    assert import_checkpoint.main(["import", f"--checkpoint={file}", f"--workdir={tmp_path / 'new'}"]) == 0
    assert "step 5 of" in capsys.readouterr().out
    for averaged in (True, False):
        one, *others = (load_run(place, averaged=averaged) for place in (run, file, tmp_path / "new"))
        for other in others:
            assert (other.step, other.config) == (one.step, one.config) and type(other.task) is type(one.task)
            same(other.variables, one.variables)
    records = [workdir.read_record(place) for place in (run, file, tmp_path / "new")]
    assert records[0] == records[1] and records[0]["config"] == records[2]["config"]
    assert workdir.read_data(file) == workdir.read_data(run) == workdir.read_data(tmp_path / "new")


@pytest.mark.slow
def test_samples_of_a_file_are_those_of_its_folder(imported, tmp_path):
    run, _ = imported("psld")
    assert export(run, "safetensors", tmp_path / "one.safetensors") == 0
    for place in (run, tmp_path / "one.safetensors"):
        assert sample.main(["sample", f"--workdir={place}", "--num=8"]) == 0
    found = [sorted((folder / "samples").glob("*.npz")) for folder in (run, tmp_path / "one")]
    assert [file.name for file in found[0]] == [file.name for file in found[1]] != []
    with np.load(found[0][0]) as a, np.load(found[1][0]) as b:
        np.testing.assert_array_equal(a["samples"], b["samples"])


@pytest.mark.slow
@pytest.mark.reference
def test_a_run_with_a_vae(imported, tmp_path):
    """The networks' state too."""
    run, _ = imported("lsgm")
    assert export(run, "safetensors", tmp_path / "a.safetensors") == 0
    one, other = load_run(run, averaged=False), load_run(tmp_path / "a.safetensors", averaged=False)
    same(other.variables, one.variables)
    assert set(other.variables.state) == {"batch_stats", "spectral", "prior_spectral", "active"}
    assert export(run, "psld", tmp_path / "a.ckpt") == 2
    assert not (tmp_path / "a.ckpt").exists()


def test_what_cannot_be_exported_is_one_line(imported, tmp_path, capsys):
    run, _ = imported("psld")
    capsys.readouterr()
    for layout, out, message in (
        (
            "scoresde",
            "a.pth",
            "error: --format: scoresde has no process 'psld', which this run has; it has vp, subvp, ve",
        ),
        ("safetensors", "a.pth", "must end in .safetensors"),
        ("psld", "", "--out"),
        ("psld", ".", "is a folder"),
    ):
        assert export(run, layout, tmp_path / out if out else "") == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    assert export(tmp_path / "nothing", "psld", tmp_path / "a.ckpt") == 2
    assert "no run in" in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))
