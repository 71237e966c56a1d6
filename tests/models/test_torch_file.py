"""Checkpoint files that are broken, hostile, or hold other things than weights: one line each, and nothing is run."""

from __future__ import annotations

import argparse
import collections
import enum
import pathlib
import pickle
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest

from sgmjax import interop
from sgmjax._inputs import InputError
from sgmjax.interop import torch_file
from sgmjax.interop.weights import arrays_of

torch = pytest.importorskip("torch")

NETWORK = interop.OfficialNetwork(
    interop.from_cld_config({"name": "mlp", "sde": "cld"}).module.clone(hidden_dim=2), (4,)
)
SIZES = [(2, 5), (2, 2), (2, 2), (2, 2), (2, 2)]


class Runs:
    """Pickles into a call, as a malicious file does."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Settings(dict):
    """A dictionary of a class of one's own, with attributes."""


class Colour(enum.Enum):
    RED = 1


def weights() -> dict:
    rng = np.random.default_rng(0)
    out = collections.OrderedDict()
    for i, shape in enumerate(SIZES):
        out[f"module.main.{2 * i}.weight"] = torch.tensor(rng.standard_normal(shape), dtype=torch.float32)
        out[f"module.main.{2 * i}.bias"] = torch.tensor(rng.standard_normal(shape[:1]), dtype=torch.float32)
    return out


def contents(**changes) -> dict:
    """A checkpoint of CLD-SGM's form."""
    model = weights()
    state = {"model": model, "ema": {"decay": 0.9, "shadow_params": [2 * v for v in model.values()]}, "step": 7}
    return state | {"optimizer": {"state": {}, "param_groups": []}} | changes


def read(path, value=None, **options):
    if value is not None:
        torch.save(value, path, **options)
    return interop.read_cld(path, NETWORK)


def refused(path, message: str) -> str:
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    said = str(caught.value)
    assert "\n" not in said and "trust" not in said and "weights_only" not in said
    return said


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint(tmp_path, old):
    """In the form of today, and of PyTorch before 1.6, which wrote the published ones."""
    value = contents()
    found = read(tmp_path / "a.pth", value, _use_new_zipfile_serialization=not old)
    assert found.step == 7
    kernel = value["model"]["module.main.2.weight"].numpy().T
    np.testing.assert_array_equal(found.params["dense_1"]["kernel"], kernel)
    np.testing.assert_array_equal(found.ema_params["dense_1"]["kernel"], 2 * kernel)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("where", ["beside the weights", "as a weight", "as everything"])
@pytest.mark.parametrize("function", ["posix", "builtins", "pathlib"])
def test_nothing_pickled_is_run(tmp_path, function, where, old):
    mark = tmp_path / "mark"
    call = {
        "posix": Runs(__import__("os").system, f"touch {mark}"),
        "builtins": Runs(exec, f"import os; os.mkdir({str(mark)!r})"),
        "pathlib": Runs(pathlib.Path.touch, mark),
    }[function]
    value = contents()
    if where == "as a weight":
        value["model"]["module.main.2.bias"] = call
    else:
        value = call if where == "as everything" else value | {"extra": call}
    torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    said = refused(tmp_path / "a.pth", "a.pth")
    assert function != "posix" or "refers to posix.system, so that it is more than weights" in said
    assert function != "builtins" or "calls exec: it is made to run programs, and is not opened" in said
    assert not mark.exists()
    if function == "builtins" and where == "as everything":  # the file would have done it
        pickle.loads(pickle.dumps(call))
        assert mark.exists()


@pytest.mark.parametrize(
    "extra",
    [
        argparse.Namespace(lr=1e-3, of=[1, 2]),
        np.float64(3.0),
        np.arange(3),
        Settings(a=1),
        collections.defaultdict(dict, a={}),
        {pathlib.PurePosixPath("a"): Colour.RED},
        {Colour.RED},
    ],
    ids=str,
)
def test_objects_beside_the_weights_are_passed_over(tmp_path, extra):
    """Settings, paths and scores that training programs save with the weights."""
    assert read(tmp_path / "a.pth", contents(extra=extra)).step == 7


def test_attributes_are_kept(tmp_path):
    torch.save({"args": argparse.Namespace(lr=1e-3, of=[1, 2])}, tmp_path / "a.pth")
    found = torch_file.load(tmp_path / "a.pth")["args"]
    assert not isinstance(found, argparse.Namespace) and vars(found) == {"lr": 1e-3, "of": [1, 2]}


def archive(path, *names):
    with zipfile.ZipFile(path, "w") as out:
        for name in names:
            out.writestr(name, "hello")


def image(path):
    pytest.importorskip("PIL.Image").fromarray(np.zeros((4, 4), np.uint8)).save(path, format="png")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_text("import os\nprint('hello')\n"), "is not a PyTorch checkpoint$"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(b"\x80\x02"), "is not a PyTorch checkpoint$"),
        (lambda p: p.write_bytes(pickle.dumps({"model": {}}, 2)), "is not a PyTorch checkpoint$"),
        (lambda p: p.write_bytes(bytes(range(256)) * 9), "is not a PyTorch checkpoint$"),
        (lambda p: archive(p, "a.txt"), "is not a PyTorch checkpoint$"),
        (lambda p: archive(p, "a/data.pkl"), "is not a PyTorch checkpoint$"),
        (
            lambda p: np.savez(p.with_suffix(""), a=np.zeros(3)) or p.with_suffix(".npz").rename(p),
            "is not a PyTorch checkpoint$",
        ),
        (
            lambda p: np.save(p.with_suffix(""), np.zeros(3)) or p.with_suffix(".npy").rename(p),
            "is not a PyTorch checkpoint$",
        ),
        (image, "is not a PyTorch checkpoint$"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: None, "No such file"),
        (lambda p: torch.save([1, 2], p), "no entry 'model'"),
        (lambda p: torch.save(None, p), "no entry 'model'"),
        (lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), p), "is a TorchScript program"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_files(tmp_path, write, message):
    write(tmp_path / "a.pth")
    refused(tmp_path / "a.pth", message)


@pytest.mark.parametrize("old", [False, True])
def test_files_that_are_cut_short(tmp_path, old):
    torch.save(contents(), tmp_path / "whole.pth", _use_new_zipfile_serialization=not old)
    whole = (tmp_path / "whole.pth").read_bytes()
    for size in np.linspace(1, len(whole) - 1, 23).astype(int):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        refused(tmp_path / "cut.pth", "is damaged|not a PyTorch checkpoint")


def test_a_flipped_bit_is_found(tmp_path):
    """In a weight too, where PyTorch itself sees nothing wrong."""
    value = contents()
    torch.save(value, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    weight = value["model"]["module.main.0.weight"].numpy().tobytes()
    place = whole.index(weight)
    (tmp_path / "a.pth").write_bytes(whole[:place] + bytes([weight[0] ^ 1]) + whole[place + 1 :])
    assert torch.load(tmp_path / "a.pth", weights_only=True)["step"] == 7
    refused(tmp_path / "a.pth", "is damaged: the checksum of whole/data/. in it is wrong")
    for place in range(0, len(whole), 97):
        (tmp_path / "a.pth").write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        try:
            assert read(tmp_path / "a.pth").step == 7  # padding, or a date
        except InputError as error:
            assert "\n" not in str(error)


def set_element(index, value, dtype=torch.float32):
    tensor = torch.zeros(2, 2, dtype=dtype)
    tensor[index] = value
    return tensor


BAD_WEIGHTS = {
    "nan": (lambda: set_element((0, 1), float("nan")), r"\[0, 1\] is nan: it must be finite"),
    "infinite": (lambda: set_element((1, 0), float("-inf"), torch.bfloat16), r"\[1, 0\] is -inf"),
    "too large": (lambda: set_element((1, 1), 1e39, torch.float64), r"\[1, 1\] is 1e\+39: the largest is 3\.4"),
    "complex": (lambda: torch.zeros(2, 2, dtype=torch.complex64), "type complex64"),
    "integers": (lambda: torch.zeros(2, 2, dtype=torch.int8), "type int8"),
    "booleans": (lambda: torch.zeros(2, 2, dtype=torch.bool), "type bool"),
    "meta": (lambda: torch.zeros(2, 2, device="meta"), "is on the device 'meta'"),
    "sparse": (lambda: torch.zeros(2, 2).to_sparse(), "is sparse"),
    "rows": (lambda: torch.zeros(2, 2).to_sparse_csr(), "is sparse"),
    "repeated": (lambda: torch.zeros(1, 1).expand(2**40, 2**20), "repeats few numbers"),
    "shape": (lambda: torch.zeros(3, 2), "has shape"),
    "list": (lambda: [[0.0, 0.0], [0.0, 0.0]], "is a list, expected a tensor"),
    "none": (lambda: None, "is a NoneType, expected a tensor"),
    "text": (lambda: "0", "is a str, expected a tensor"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_each_weight_is_a_finite_real_number(tmp_path, kind, averaged):
    make, message = BAD_WEIGHTS[kind]
    value = contents()
    if averaged:
        value["ema"]["shadow_params"][2] = make()
    else:
        value["model"]["module.main.2.weight"] = make()
    torch.save(value, tmp_path / "a.pth")
    said = refused(tmp_path / "a.pth", message)
    assert "main.2.weight" in said


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights(tmp_path):
    value = contents()
    value["model"]["module.main.2.weight"] = torch.quantize_per_tensor(torch.zeros(2, 2), 0.1, 0, torch.qint8)
    torch.save(value, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "main.2.weight' is quantised")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    value = contents()
    value["model"] = {key: tensor.to(dtype) for key, tensor in value["model"].items()}
    found = read(tmp_path / "a.pth", value).params["dense_2"]["kernel"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, value["model"]["module.main.4.weight"].to(torch.float64).numpy().T)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "'step' is -1: must be a whole number of steps, 0 to 2,147,483,647"),
        ({"step": 2**31}, "'step' is 2147483648"),
        ({"step": 2**80}, "'step' is 1208925819614629174706176"),
        ({"step": 1.5}, "'step' is 1.5"),
        ({"step": float("nan")}, "'step' is nan"),
        ({"step": True}, "'step' is True"),
        ({"step": "7"}, "'step' is 7"),
        ({"step": None}, "'step' is None"),
        ({"step": torch.tensor([7])}, "'step' is"),
        ({"model": None}, "'model' is a NoneType, expected a dict"),
        ({"model": [1, 2]}, "'model' is a list, expected a dict"),
        ({"model": "weights"}, "'model' is a str, expected a dict"),
        ({"model": {3: torch.zeros(2)}}, "'model' has the key 3, where names of weights belong"),
        ({"model": {}}, "the state dict lacks 10 parameters, the first being 'dense_0/bias'"),
        ({"ema": {"shadow_params": []}}, "'ema' has 0 arrays and the model 10 parameters"),
        ({"ema": None}, "no entry 'shadow_params'"),
        ({"ema": {"shadow_params": {"a": 1}}}, "'shadow_params' is a dict, expected a list"),
        ({"ema": {"shadow_params": 3}}, "'shadow_params' is a int, expected a list"),
    ],
)
def test_entries_are_what_they_should_be(tmp_path, changes, message):
    torch.save(contents(**changes), tmp_path / "a.pth")
    refused(tmp_path / "a.pth", message)


def test_a_step_may_be_a_tensor(tmp_path):
    assert read(tmp_path / "a.pth", contents(step=torch.tensor(9))).step == 9


def test_arrays_are_checked_as_tensors_are():
    assert arrays_of({"module.a": np.float64([1.0]), "module.n": np.int64(3)})["a"].dtype == np.float32
    found = arrays_of({"a": np.asarray([1.5], ml_dtypes.bfloat16)})["a"]
    assert found.dtype == np.float32 and found[0] == 1.5
    for value, message in (
        (np.float32([0, np.nan]), r"the state dict: 'a'\[1\] is nan"),
        (np.zeros(2, complex), "complex128"),
        (np.zeros(2, object), "object"),
        (np.asarray(["x"]), "'a' has numbers of type <U1"),
    ):
        with pytest.raises(InputError, match=message):
            arrays_of({"a": value})


@pytest.mark.parametrize(
    ("reader", "value", "message"),
    [
        ("psld", {"state_dict": None, "global_step": 1}, "'state_dict' is a NoneType, expected a dict"),
        ("psld", {"state_dict": {1: None}, "global_step": 1}, "state dict key 1 belongs to no network"),
        ("psld", {"state_dict": {"score_fn.a": None}, "global_step": 1}, "'score_fn': 'a' is a NoneType"),
        ("psld", {"state_dict": {}, "global_step": 1}, "neither 'score_fn.' nor 'clf_fn.'"),
        ("ncsnv2", [None, {}, 1, 2], "the model is a NoneType, expected a dict"),
        ("ncsnv2", [{"a": torch.zeros(1, dtype=torch.complex64)}, {}, 1, 2], "the model: 'a' has numbers of type"),
        ("ncsnv2", [{}, {}, 1, 2, [3]], "the average is a list, expected a dict"),
        ("lsgm", {"vae_state_dict": [], "args": None}, "'vae_state_dict' is a list, expected a dict"),
        ("lsgm", {"vae_state_dict": {}, "args": [1]}, "'args' is a list, expected a namespace"),
        ("lsgm", {"vae_state_dict": {}, "args": argparse.Namespace()}, "config has no 'dataset'"),
        (
            "lsgm",
            {"vae_state_dict": {}, "args": argparse.Namespace(
                dataset="mnist", arch_instance="res_mbconv", num_channels_enc=[1])},
            r"config's 'num_channels_enc' is \[1\], expected a number",
        ),
    ],
)  # fmt: skip
def test_the_other_readers(tmp_path, reader, value, message):
    torch.save(value, tmp_path / "a.pt")
    read_file = getattr(interop, f"read_{reader}")
    with pytest.raises(ValueError, match=message) as caught:
        read_file(tmp_path / "a.pt") if reader == "lsgm" else read_file(tmp_path / "a.pt", NETWORK)
    assert "\n" not in str(caught.value)
