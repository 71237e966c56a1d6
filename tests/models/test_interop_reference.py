"""Official networks and checkpoints: our outputs against the recorded ones, on whatever cases the folder has."""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata
import tiers

from sgmjax import interop

PREFIXES = ("scoresde_", "psld_", "cld_")
NETS = [case for prefix in PREFIXES for case in refdata.files(f"nets/{prefix}*.json")]
CHECKPOINTS = [case for prefix in PREFIXES for case in refdata.files(f"checkpoints/{prefix}*.json")]
READERS = {"scoresde": interop.read_scoresde, "psld": interop.read_psld, "cld": interop.read_cld}


def _channels_last(array):
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def _network(path, sample):
    config = json.loads(path.read_text())
    source = path.stem.partition("_")[0]
    if source == "scoresde":
        return interop.from_scoresde_config(config)
    if source == "psld":
        return interop.from_psld_config(config, image_size=sample.shape[-1])
    return interop.from_cld_config(config)


def _load(path):
    arrays = refdata.load_npz(path)
    prefix = "state_dict/"
    weights = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    cond = arrays["time"] if "time" in arrays else arrays["labels"]
    cond = jnp.asarray(cond, jnp.int32 if np.issubdtype(cond.dtype, np.integer) else jnp.float32)
    return arrays, weights, cond


def _tolerance(network):
    """Relative to the output's scale; the Fourier angle 2 pi W log(t) costs digits in float32."""
    return 1e-4 if getattr(network.module, "embedding_type", None) == "fourier" else 1e-5


def _output(network, params, x, cond):
    apply = jax.jit(network.module.apply, compiler_options={"xla_backend_optimization_level": 0})
    return np.asarray(apply({"params": params}, jnp.asarray(_channels_last(x)), cond))


@pytest.mark.parametrize("path", tiers.each(NETS, 2))
def test_network_outputs(path):
    arrays, weights, cond = _load(refdata.beside(path, ".npz"))
    network = _network(path, arrays["input"])
    assert network.event_shape == _channels_last(arrays["input"]).shape[1:]
    params = interop.convert_weights(network, {f"module.{key}": value for key, value in weights.items()})
    expected = _channels_last(arrays["output_f64"])
    output = _output(network, params, arrays["input"], cond)
    assert output.dtype == np.float32
    assert np.abs(output - expected).max() <= _tolerance(network) * np.abs(expected).max()


@pytest.mark.parametrize("path", NETS)
def test_network_weights_must_match_exactly(path):
    arrays, weights, _ = _load(refdata.beside(path, ".npz"))
    network = _network(path, arrays["input"])
    for key in weights:
        if key == "sigmas":  # computed from the config, so it may be absent
            continue
        if key.endswith("Dense_0.weight") and not network.module.conditional:
            continue
        without = {k: v for k, v in weights.items() if k != key}
        with pytest.raises(ValueError, match="lacks 1 parameters"):
            interop.convert_weights(network, without)
        break
    key = list(weights)[-1]
    with pytest.raises(ValueError, match=f"state dict key '{key}'"):
        interop.convert_weights(network, weights | {key: np.concatenate([weights[key]] * 2)})
    with pytest.raises(ValueError, match="'extra.3.weight'"):
        interop.convert_weights(network, weights | {"extra.3.weight": np.zeros(3)})
    root = key.split(".")[0]
    with pytest.raises(ValueError, match=f"'{root}.999.weight'"):
        interop.convert_weights(network, weights | {f"{root}.999.weight": np.zeros(3)})
    with pytest.raises(ValueError, match="Conv_7"):
        interop.convert_weights(network, weights | {key.rpartition(".")[0] + ".Conv_7.weight": np.zeros(3)})
    if "sigmas" in weights:
        with pytest.raises(ValueError, match="sigmas"):
            interop.convert_weights(network, weights | {"sigmas": weights["sigmas"] * 1.1})


@pytest.mark.parametrize("path", tiers.each(CHECKPOINTS, 2))
def test_checkpoint_outputs(path):
    pytest.importorskip("torch")
    arrays, _, cond = _load(refdata.beside(path, "_expected.npz"))
    network = _network(path, arrays["input"])
    source = path.stem.partition("_")[0]
    file = refdata.beside(path, ".pth", ".ckpt")
    checkpoint = READERS[source](file, network)
    assert checkpoint.step > 0
    names = [name for name in arrays if name.endswith("output_f32")]
    assert names
    for name in names:
        params = checkpoint.ema_params if name.startswith("ema") else checkpoint.params
        expected = _channels_last(arrays[name])
        output = _output(network, params, arrays["input"], cond)
        # The recorded side is float32 here, so both sides round.
        assert np.abs(output - expected).max() <= 2 * _tolerance(network) * np.abs(expected).max()
    averaged = any(name.startswith("ema") for name in names)
    assert averaged == (checkpoint.ema_params is not None)
    if averaged:
        differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), checkpoint.params, checkpoint.ema_params)
        assert any(jax.tree.leaves(differs))


@pytest.mark.parametrize("path", CHECKPOINTS)
def test_unreadable_checkpoints(path, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    arrays, _, _ = _load(refdata.beside(path, "_expected.npz"))
    network = _network(path, arrays["input"])
    read = READERS[path.stem.partition("_")[0]]
    file = refdata.beside(path, ".pth", ".ckpt")
    with pytest.raises(ValueError, match="absent.pth: No such file"):
        read(tmp_path / "absent.pth", network)
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated.pth is damaged: its end is missing"):
        read(truncated, network)
    torch.save({"weights": 1}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no entry '(model|state_dict)'"):
        read(tmp_path / "other.pth", network)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install 'sgmjax\[torch\]'"):
        read(file, network)
