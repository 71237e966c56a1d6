"""EDM's snapshots: weights and arguments are had, and the source code in the file is not run."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import tiers

from sgmjax import interop, load_run
from sgmjax._inputs import InputError
from sgmjax.commands import export_checkpoint, import_checkpoint
from sgmjax.interop import edm
from sgmjax.samplers.plan import Plan

torch = pytest.importorskip("torch")


class EasyDict(dict):
    """As dnnlib's, which the official program pickles."""


class Network(torch.nn.Module):
    """Pickles as EDM's persistent classes do: a call of `_reconstruct_persistent_obj` with the source code."""

    source = ""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self._init_args, self._init_kwargs = args, kwargs

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": Network.source, "class_name": type(self).__name__}
        return sys.modules[edm.MODULE]._reconstruct_persistent_obj, (meta | {"state": self.__dict__},)


class Inner(Network):
    def __init__(self, width):
        super().__init__(width=width)
        self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3) + width)
        self.register_buffer("filter", torch.tensor([1.0, 3.0, 3.0, 1.0]))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.register_parameter("bias", None)


class EDMPrecond(Network):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.sigma_data = 0.5
        self.model = Inner(4)
        self.enc = torch.nn.ModuleDict({"8x8_conv": torch.nn.Conv2d(2, 3, 3), "8x8_block": Inner(5)})
        self.view = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).T)  # strides that are not the usual ones


@pytest.fixture
def official(monkeypatch):
    """The official modules, as far as a pickle names them: only while writing."""
    module, parent, library = (types.ModuleType(name) for name in (edm.MODULE, "torch_utils", "dnnlib.util"))

    def _reconstruct_persistent_obj(meta):
        exec(meta["module_src"], {})

    _reconstruct_persistent_obj.__module__, _reconstruct_persistent_obj.__qualname__ = edm.MODULE, edm.FUNCTION
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    library.EasyDict = EasyDict
    monkeypatch.setattr(EasyDict, "__module__", library.__name__)
    for one in (module, parent, library, types.ModuleType("dnnlib")):
        monkeypatch.setitem(sys.modules, one.__name__, one)


def snapshot(path, mark, protocol=4, **changes):
    """Writes a snapshot; whoever runs the code in it makes the folder `mark`."""
    Network.source = f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\n"
    network = EDMPrecond(
        img_resolution=32, label_dim=0, channel_mult=[2, 2], model_type="SongUNet", dtype=torch.float16
    )
    data = {"ema": network, "dataset_kwargs": EasyDict(path="data.zip", resolution=32), "loss_fn": None} | changes
    path.write_bytes(pickle.dumps(data, protocol))
    return network


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_snapshot(official, tmp_path, protocol):
    network = snapshot(tmp_path / "a.pkl", tmp_path / "mark", protocol)
    assert edm.is_edm(tmp_path / "a.pkl")
    for name in (edm.MODULE, "torch_utils", "dnnlib.util", "dnnlib"):
        del sys.modules[name]
    found = interop.read_edm(tmp_path / "a.pkl")
    assert found.class_name == "EDMPrecond" and found.dataset_kwargs == {"path": "data.zip", "resolution": 32}
    assert found.init_kwargs == {
        "img_resolution": 32, "label_dim": 0, "channel_mult": [2, 2], "model_type": "SongUNet", "dtype": "dtype",
    }  # fmt: skip
    official_state = network.state_dict()
    assert list(found.state_dict) == list(official_state)
    for name, tensor in official_state.items():
        np.testing.assert_array_equal(found.state_dict[name], tensor.numpy(), err_msg=name)
        assert found.state_dict[name].dtype == np.float32
    assert not (tmp_path / "mark").exists()


def test_the_file_would_have_run_it(official, tmp_path):
    snapshot(tmp_path / "a.pkl", tmp_path / "mark")
    pickle.loads((tmp_path / "a.pkl").read_bytes())
    assert (tmp_path / "mark").exists()


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["beside", "as the network", "as a weight", "as an argument"])
@pytest.mark.parametrize("function", [os.mkdir, exec, getattr])
def test_calls_in_a_snapshot_do_nothing(official, tmp_path, where, function):
    mark = tmp_path / "mark"
    arguments = {os.mkdir: (str(mark),), exec: (f"import os; os.mkdir({str(mark)!r})",), getattr: (str(mark), "upper")}
    call = Runs(function, *arguments[function])
    network = snapshot(tmp_path / "a.pkl", mark)
    if where == "as a weight":
        network._buffers["filter"] = call
    elif where == "as an argument":
        network._init_kwargs["label_dim"] = call
    else:
        network = call if where == "as the network" else network
    extra = {"extra": call} if where == "beside" else {}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": network, **extra}, 4))
    if where in ("beside", "as an argument"):
        found = interop.read_edm(tmp_path / "a.pkl")
        assert found.init_kwargs["label_dim"] == (0 if where == "beside" else function.__name__)
    else:
        with pytest.raises(InputError, match="a.pkl"):
            interop.read_edm(tmp_path / "a.pkl")
    assert not mark.exists()


def test_what_is_no_snapshot(official, tmp_path, capsys):
    file = tmp_path / "a.pkl"
    snapshot(file, tmp_path / "mark")
    whole = file.read_bytes()

    def refused(content, message):
        file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 4))
        with pytest.raises(InputError, match=message) as caught:
            interop.read_edm(file)
        assert "\n" not in str(caught.value)

    for size in (0, 2, 100, len(whole) // 2, len(whole) - 1):
        refused(whole[:size], "is damaged, or no snapshot of EDM")
    refused(whole[:500] + bytes(300) + whole[800:], "is damaged, or no snapshot of EDM|must be finite|is no")
    refused({"weights": np.zeros(3)}, "it has no network 'ema'")
    refused([1, 2], "it has no network 'ema'")
    refused({"ema": torch.nn.Linear(2, 2)}, "it has no network 'ema'")
    with pytest.raises(InputError, match="No such file"):
        interop.read_edm(tmp_path / "b.pkl")
    file.write_bytes(whole)
    words = ["import", f"--checkpoint={file}", f"--workdir={tmp_path / 'run'}"]
    assert import_checkpoint.main(words) == 2
    err = capsys.readouterr().err
    assert "the snapshot does not say its network's img_channels" in err
    assert err.count("\n") == 1 and not (tmp_path / "run").exists() and not (tmp_path / "mark").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers.alike(["ddpmpp", "ddpmpp_labels"], ["ddpmpp_labels"]))
def test_a_snapshot_as_a_run(official, tmp_path, capsys, name):
    """The networks of `edm_song.npz` in a file of the official form, imported, and sampled with PSLD."""
    with np.load(Path(__file__).with_name("edm_song.npz")) as archive:
        recorded = {key.removeprefix(f"{name}/"): archive[key] for key in archive if key.startswith(f"{name}/")}
    network = _Network(**json.loads(str(recorded["kwargs"])))
    for key, value in recorded.items():
        if key.startswith("state/"):
            *path, last = key.removeprefix("state/").split(".")
            place = network
            for part in path:
                if part not in place._modules:
                    place.add_module(part, torch.nn.Module())
                place = place._modules[part]
            place.register_parameter(last, torch.nn.Parameter(torch.tensor(value)))
    type(network).__name__ = "EDMPrecond"
    file = tmp_path / "network-snapshot-000128.pkl"
    file.write_bytes(pickle.dumps({"ema": network, "dataset_kwargs": EasyDict(path="data.zip")}, 4))
    for module in (edm.MODULE, "torch_utils", "dnnlib.util", "dnnlib"):
        del sys.modules[module]
    run = tmp_path / "run"
    assert import_checkpoint.main(["import", f"--checkpoint={file}", f"--workdir={run}"]) == 0
    out = capsys.readouterr().out
    assert "is a snapshot of EDM" in out and "its own settings make the config" in out and "step 1000" in out
    words = ["export", f"--workdir={run}", "--format=scoresde", f"--out={tmp_path / 'a.pth'}"]
    assert export_checkpoint.main(words) == 2
    assert "scoresde predict the noise of a process, and this run's is a denoiser" in capsys.readouterr().err
    loaded = load_run(run, process={"name": "psld", "beta_min": 6.0, "beta_max": 6.0})
    assert loaded.task.event_shape == (8, 8, 3) and loaded.task.sde.name == "psld"
    labels = None if name == "ddpmpp" else np.asarray([2, 0, 1], np.int32)
    x, sigma = np.moveaxis(recorded["x"], 1, -1).astype(np.float32), recorded["sigma"].astype(np.float32)
    found = loaded.task.model.denoiser(loaded.variables.params, labels=labels)(x, sigma)
    if labels is None:  # of the others one has no class
        expected = np.moveaxis(recorded["D"], 1, -1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    samples, info = loaded.sample(jax.random.key(0), 2, Plan(steps=4))
    assert samples.shape == (2, 8, 8, 3) and np.isfinite(samples).all() and info.nfe == 4


class _Network(Network):
    """As `EDMPrecond`, filled by names."""
