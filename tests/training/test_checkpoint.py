"""Checkpoints: what went in comes out, on any devices; a damaged one is noticed and the one before it is used."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from training import tiny

from sgmjax import sharding as sh
from sgmjax.training import checkpoint
from sgmjax.training.checkpoint import Checkpointer, CheckpointError, damage
from sgmjax.training.optimizer import make_optimizer
from sgmjax.training.state import create

OPTIMIZER = make_optimizer(tiny.config().optimizer)


def initial(key):
    return create(tiny.Task(width=64).init(key), OPTIMIZER)


def make(devices=1, fsdp=1, seed=0):
    """A state on some devices, and its abstract form."""
    mesh = sh.make_mesh(fsdp, jax.devices()[:devices])
    shapes = jax.eval_shape(initial, jax.random.key(0))
    shardings = sh.state_shardings(mesh, shapes, min_size=1)
    abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, shardings)
    return jax.jit(initial, out_shardings=shardings)(jax.random.key(seed)), abstract


def equal(a, b) -> bool:
    pairs = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Checkpoints of steps 1, 2 and 3, made with seeds 1, 2 and 3, of which the last two are kept."""
    path = tmp_path_factory.mktemp("run")
    checkpointer = Checkpointer(path, keep=2)
    for step in (1, 2, 3):
        checkpointer.save(step, make(seed=step)[0], {"step": step})
    checkpointer.close()
    return path


def test_only_the_newest_are_kept(folder):
    assert Checkpointer(folder, read_only=True).steps() == [2, 3]


@pytest.mark.parametrize(("saved", "restored"), [((1, 1), (8, 2)), ((8, 2), (1, 1)), ((8, 4), (4, 1))])
def test_restored_on_other_devices(tmp_path, saved, restored):
    state, _ = make(*saved)
    with jax.set_mesh(sh.make_mesh()):
        writer = Checkpointer(tmp_path)
        writer.save(7, state, {"some": ["json", 1.5]})
        writer.close()
    _, abstract = make(*restored)
    reader = Checkpointer(tmp_path)
    found, meta = reader.restore(lambda step: abstract)
    reader.close()
    assert equal(found, state) and meta == {"format": 2, "some": ["json", 1.5]}
    wanted = jax.tree.map(lambda s: s.sharding, abstract)
    assert jax.tree.map(lambda x: x.sharding, found) == wanted


def test_averaged_parameters_alone(folder):
    state, abstract = make(seed=3)
    step, found = Checkpointer(folder, read_only=True).restore_variables(abstract.averaged)
    assert step == 3 and equal(found, state.averaged)


def test_trained_parameters_alone(tmp_path):
    """Those of the same checkpoint that are not averaged, without reading the optimiser's state."""
    state, abstract = make(seed=3)
    state = dataclasses.replace(state, params=jax.tree.map(lambda p: p + 1, state.params))
    writer = Checkpointer(tmp_path)
    writer.save(4, state, {})
    writer.close()
    step, (params, _) = Checkpointer(tmp_path, read_only=True).restore_variables(abstract.averaged, averaged=False)
    assert step == 4 and equal(params, state.params) and not equal(params, state.ema_params)


def test_nothing_to_restore(tmp_path):
    _, abstract = make()
    assert Checkpointer(tmp_path / "none", read_only=True).restore_variables(abstract.averaged) is None
    assert not (tmp_path / "none").exists()
    empty = Checkpointer(tmp_path)
    assert empty.restore(lambda step: abstract) is None
    empty.close()


def test_saving_copies_before_it_returns(tmp_path):
    """The state is donated to the next step at once; what is being written must not change under it."""
    scramble = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    checkpointer = Checkpointer(tmp_path, keep=10)
    for step in range(1, 6):
        state, abstract = make(seed=step)
        checkpointer.save(step, state, {})
        jax.block_until_ready(scramble(state))
    checkpointer.wait()
    shutil.rmtree(tmp_path / "checkpoints" / "5")
    checkpointer.close()
    again = Checkpointer(tmp_path)
    found, _ = again.restore(lambda step: abstract)
    again.close()
    assert equal(found, make(seed=4)[0])


def files_of(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and f.name != "sums.json")


def test_every_truncated_file_is_noticed(folder, tmp_path):
    names = files_of(folder / "checkpoints" / "3")
    assert any(name.startswith("train/") for name in names) and any(name.startswith("ema/") for name in names)
    for name in names:
        copy = tmp_path / "3"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / "checkpoints" / "3", copy)
        assert damage(copy) is None
        content = (copy / name).read_bytes()
        for broken, words in (
            (content[: len(content) // 2], f"{name} has {len(content) // 2} of {len(content)} bytes"),
            (content[:-1] + bytes([content[-1] ^ 1]), f"{name} has changed"),
        ):
            (copy / name).write_bytes(broken)
            assert damage(copy) == words
        (copy / name).unlink()
        assert damage(copy) == f"{name} is missing"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("sealed", [True, False])
def test_damaged_newest(folder, tmp_path, sealed):
    """With the checksums, and without them (a run killed at the moment after a checkpoint was written)."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints" / "3"
    truncate(newest / "meta" / "metadata")
    if not sealed:
        (newest / "sums.json").unlink()
    said = []
    checkpointer = Checkpointer(tmp_path)
    found, meta = checkpointer.restore(lambda step: make()[1], said.append)
    assert equal(found, make(seed=2)[0]) and meta == {"format": 2, "step": 2}
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith("checkpoint 3 is damaged (") and said[0].endswith("; going on with checkpoint 2")
    # its place is free again, and nothing was thrown away
    checkpointer.save(3, make(seed=5)[0], {"step": 3})
    checkpointer.close()
    assert (tmp_path / "damaged" / "3" / "meta").is_dir()
    reader = Checkpointer(tmp_path, read_only=True)
    assert equal(reader.restore_variables(make()[1].averaged)[1], make(seed=5)[0].averaged)


@pytest.mark.parametrize("what", [".", "ema", "a file"])
@pytest.mark.parametrize("when", ["damage", "_read"])
def test_a_checkpoint_that_its_training_deletes_meanwhile(folder, tmp_path, monkeypatch, what, when):
    """Between the listing and the reading comes the next one, and this one goes, or begins to."""
    place, said = tmp_path / "checkpoints", []
    shutil.copytree(folder / "checkpoints" / "2", place / "2")
    owner = checkpoint if when == "damage" else Checkpointer
    original = getattr(owner, when)

    def late(*args):
        if not (place / "3").exists():
            shutil.copytree(folder / "checkpoints" / "3", place / "3")
            if (place / "2" / what).is_dir():
                shutil.rmtree(place / "2" / what)
            else:
                (place / "2" / "ema" / "_METADATA").unlink()
        return original(*args)

    reader = Checkpointer(tmp_path, read_only=True)
    assert reader.steps() == [2]
    monkeypatch.setattr(owner, when, late)
    found = reader.restore_variables(make()[1].averaged, said.append)
    assert found is not None and found[0] == 3 and equal(found[1], make(seed=3)[0].averaged) and said == []


def test_a_reader_of_a_folder_that_is_emptied(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    reader = Checkpointer(tmp_path, read_only=True)

    def late(path):
        shutil.rmtree(path, ignore_errors=True)
        return damage(path)

    monkeypatch.setattr(checkpoint, "damage", late)
    assert reader.restore_variables(make()[1].averaged, pytest.fail) is None


def test_all_damaged(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for step in ("2", "3"):
        truncate(tmp_path / "checkpoints" / step / "ema" / "_METADATA")
    said = []
    reader = Checkpointer(tmp_path, read_only=True)
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be read"):
        reader.restore_variables(make()[1].averaged, said.append)
    assert [text[:12] for text in said] == ["checkpoint 3", "checkpoint 2"]
    assert said[1].endswith("; there is no older one")
    assert (tmp_path / "checkpoints" / "3").is_dir()  # reading moves nothing
