"""A run in one file of safetensors: what is in it, what does not fit, what is broken."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sgmjax._inputs import InputError
from sgmjax.commands import import_checkpoint
from sgmjax.tasks import Variables
from sgmjax.training import tensors
from sgmjax.training.load import load_run


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


PARAMS = {"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3) / 7, "bias": np.zeros(3, np.float32)}}
STATE = {"mean": np.ones(3, np.float32), "count": np.int32(4)}
ABSTRACT = jax.eval_shape(lambda: Variables(jax.tree.map(jnp.asarray, PARAMS), jax.tree.map(jnp.asarray, STATE)))


def written(path):
    averaged = jax.tree.map(lambda leaf: leaf + 1, PARAMS)
    tensors.write(path, {"config": {"seed": 1}}, 12, PARAMS, averaged, STATE)
    return averaged


def test_the_tensors_of_a_file(tmp_path):
    averaged = written(tmp_path / "a.safetensors")
    step, raw, average = tensors.read(tmp_path / "a.safetensors", ABSTRACT)
    assert step == 12 and tensors.read_record(tmp_path / "a.safetensors") == {"config": {"seed": 1}}
    same(raw, Variables(PARAMS, STATE))
    same(average, Variables(averaged, STATE))
    with open(tmp_path / "a.safetensors", "rb") as file:  # the header is JSON, for any program to read
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["params/layer/kernel"]["shape"] == [2, 3] and header["__metadata__"]["format"] == "sgmjax"


def test_equal_runs_are_equal_files(tmp_path):
    for i in range(8):  # of 24 orders of four words
        written(tmp_path / f"{i}.safetensors")
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def changed(path, change, *, checked=False):
    """The file with other tensors, as another program would write them."""
    import safetensors.numpy

    with safetensors.safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
        metadata = dict(file.metadata())
    if not checked:
        del metadata["sha256"]
    change(arrays, metadata)
    safetensors.numpy.save_file(arrays, path, metadata)


def test_bfloat16_is_read_as_what_it_is(tmp_path):
    file = tmp_path / "a.safetensors"
    written(file)

    def half(arrays, metadata):
        for name in arrays:
            if arrays[name].dtype == np.float32:
                arrays[name] = arrays[name].astype(ml_dtypes.bfloat16)

    changed(file, half)
    _, raw, _ = tensors.read(file, ABSTRACT)
    rounded = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), PARAMS)
    same(raw.params, rounded)
    assert raw.params["layer"]["kernel"].dtype == np.float32


KERNEL = "params/layer/kernel"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a, m: a.pop(KERNEL), "tensor 'params/layer/kernel' is missing"),
        (lambda a, m: a.update(other=a[KERNEL]), "tensor 'other' which the network of its config does not have"),
        (lambda a, m: a.update({KERNEL: a[KERNEL][:1]}), r"has shape \(1, 3\), and the network of its config \(2, 3\)"),
        (lambda a, m: a.update({KERNEL: a[KERNEL].astype(np.int32)}), "has numbers of type int32, expected float32"),
        (lambda a, m: a.update({KERNEL: a[KERNEL] / 0}), "must be finite"),
        (lambda a, m: m.update(step="x"), "'step' is x"),
        (lambda a, m: m.update(step="9" * 30), "'step' is 999"),
        (lambda a, m: m.update(format="pt"), "was not written by sgmjax"),
        (lambda a, m: m.pop("config.json"), "was not written by sgmjax"),
        (lambda a, m: m.update({"sha256": "0"}), "is damaged: its numbers are not those that were written"),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
def test_files_that_do_not_fit(change, message, tmp_path):
    written(tmp_path / "a.safetensors")
    changed(tmp_path / "a.safetensors", change)
    with pytest.raises(InputError, match=message) as caught:
        tensors.read(tmp_path / "a.safetensors", ABSTRACT)
    assert "\n" not in str(caught.value)


def test_broken_files(tmp_path, capsys):
    """Cut, flipped, of something else: one line, by the function and by the command, which writes nothing."""
    file = tmp_path / "a.safetensors"
    written(file)
    whole = file.read_bytes()
    cut = [whole[:size] for size in (0, 4, 60, len(whole) - 5)]
    for content in [*cut, whole + b"more", b"\xff" * 100, whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]]:
        file.write_bytes(content)
        with pytest.raises(InputError, match="is damaged") as caught:
            tensors.read(file, ABSTRACT)
        assert "\n" not in str(caught.value)
    file.write_bytes(cut[2])
    for words in (["import", f"--checkpoint={file}", f"--workdir={tmp_path / 'run'}"],):
        assert import_checkpoint.main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and "is damaged" in err and err.count("\n") == 1
    with pytest.raises(InputError, match="No such file"):
        load_run(tmp_path / "b.safetensors")
    assert not (tmp_path / "run").exists()


def test_averages_alone_in_half_precision(tmp_path):
    """They are the parameters being trained too; what the networks carry keeps its type."""
    averaged = jax.tree.map(lambda leaf: leaf + 1, PARAMS)
    file = tmp_path / "a.safetensors"
    tensors.write(file, {"config": {}}, 12, None, averaged, STATE)
    _, raw, average = tensors.read(file, ABSTRACT)
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), averaged)
    same(average, Variables(rounded, STATE))
    same(raw, Variables(rounded, STATE))
    changed(file, lambda arrays, metadata: arrays.pop("ema/layer/bias"))
    with pytest.raises(InputError, match="tensor 'ema/layer/bias' is missing"):
        tensors.read(file, ABSTRACT)
    large = {"layer": {"kernel": np.full((2, 3), 1e5, np.float32), "bias": PARAMS["layer"]["bias"]}}
    with pytest.raises(InputError, match="'ema/layer/kernel' has numbers above 65504"):
        tensors.write(file, {"config": {}}, 12, None, large, STATE)
