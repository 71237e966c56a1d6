"""score_sde's JAX original: names, shapes and outputs of its modules, and its checkpoints.

`scoresde_jax.npz` was recorded by running the modules of yang-song/score_sde (0acb9e0) under Flax 0.12: `config` the
official settings, and by case their changes and the names and shapes of the parameters; the arrays their outputs in
float32. A parameter of these networks is drawn by `parameter` here and there.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
import refdata
from flax import serialization, traverse_util

from sgmjax import interop
from sgmjax.interop import scoresde_jax

RECORDED = dict(np.load(Path(__file__).with_name("scoresde_jax.npz")))
CONFIG = json.loads(str(RECORDED.pop("config")))
NETS = refdata.files("nets/scoresde_*.json")


def parameter(name, shape):
    value = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return (value / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
    factor, offset = {"scale": (0.2, 1.0), "W": (1.0, 0.0)}.get(name.rpartition("/")[2], (0.2, 0.0))
    return (offset + factor * value).astype(np.float32)


def network_of(case):
    return interop.from_scoresde_config(CONFIG["base"] | {"model": CONFIG["base"]["model"] | case["change"]})


def tree_of(flat):
    return traverse_util.unflatten_dict({tuple(name.split("/")): value for name, value in flat.items()})


def state_of(params, average, step=7):
    """A training state as flax saved it."""
    return {
        "step": np.int32(step),
        "optimizer": {"target": params, "state": {"step": np.int32(step), "param_states": {}}},
        "lr": np.float32(2e-4),
        "model_state": {},
        "ema_rate": np.float32(0.9999),
        "params_ema": average,
        "rng": np.zeros(2, np.uint32),
    }


@pytest.mark.parametrize("name", CONFIG["cases"])
def test_the_official_modules(name, tmp_path):
    """Through a file: each official parameter has its place, and the outputs are the official ones."""
    case = CONFIG["cases"][name]
    network = network_of(case)
    names = {"/".join(path) for path in scoresde_jax.official_names(network)}
    assert names == set(case["shapes"])
    params = tree_of({key: parameter(key, shape) for key, shape in case["shapes"].items()})
    average = jax.tree.map(lambda leaf: leaf / 2, params)
    (tmp_path / "checkpoint_1").write_bytes(serialization.msgpack_serialize(state_of(params, average)))
    read = interop.read_scoresde_jax(tmp_path / "checkpoint_1", network)
    assert read.step == 7
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a / 2, b), read.params, read.ema_params)
    x = np.random.default_rng(0).standard_normal((2, *network.event_shape)).astype(np.float32)
    fourier = getattr(network.module, "embedding_type", "") == "fourier"
    cond = np.asarray([0.3, 7.0] if fourier else [3.0, 700.0], np.float32)
    output = jax.jit(network.module.apply)({"params": read.params}, x, cond)
    expected = RECORDED[name]
    assert np.abs(output - expected).max() <= 1e-5 * np.abs(expected).max()  # both round in float32


def in_jax_layout(arrays, config):
    """The state dict of the PyTorch program as the JAX original has it: modules of one class are counted in turn.

    Written from the two official sources; knows nothing of our names.
    """
    model, ddpm = config["model"], config["model"]["name"] == "ddpm"
    layers: dict[int, dict[str, np.ndarray]] = {}
    for key, value in arrays.items():
        if key.startswith("state_dict/all_modules."):
            index, _, rest = key.removeprefix("state_dict/all_modules.").partition(".")
            if model["conditional"] or not rest.startswith("Dense_0"):  # else made there and not used
                layers.setdefault(int(index), {})[rest] = value
    counts: dict[str, int] = {}
    out = {}
    for _, layer in sorted(layers.items()):
        inner = {key.rpartition(".")[0] for key in layer}
        if "NIN_3" in inner:
            kind = "AttnBlock" if ddpm else "AttnBlockpp"
        elif "GroupNorm_1" in inner:
            kind = "ResnetBlockDDPM" if ddpm else "ResnetBlockBigGANpp"
        elif inner == {"Conv_0"} and layer["Conv_0.weight"].shape[-1] == 1:
            kind = "Combine"
        elif inner in ({"Conv_0"}, {"Conv2d_0"}):
            kind = "Downsample" if counts.get("Downsample", 0) < len(model["ch_mult"]) - 1 else "Upsample"
        elif "W" in layer:
            kind = "GaussianFourierProjection"
        else:
            kind = {4: "Conv", 2: "Dense", 1: "GroupNorm"}[layer["weight"].ndim]
        outer, counts[kind] = f"{kind}_{counts.get(kind, 0)}", counts.get(kind, 0) + 1
        for key, value in layer.items():
            sub, _, leaf = key.rpartition(".")
            if leaf == "weight" and value.ndim == 4:
                leaf, value = ("weight" if sub == "Conv2d_0" else "kernel"), value.transpose(2, 3, 1, 0)
            elif leaf == "weight":
                leaf, value = ("kernel", value.T) if value.ndim == 2 else ("scale", value)
            out["/".join(part for part in (outer, sub, leaf) if part)] = value
    return out


@pytest.mark.parametrize("path", NETS)
def test_recorded_networks_in_the_jax_layout(path):
    """The weights of the PyTorch program, renamed as the JAX original names them, give the recorded outputs."""
    arrays, config = refdata.load_npz(refdata.beside(path, ".npz")), json.loads(path.read_text())
    if config["model"]["name"] == "ncsnpp" and config["model"]["resblock_type"].lower() == "ddpm":
        pytest.skip("DDPM's blocks in NCSN++ do not run as published")
    network = interop.from_scoresde_config(config)
    params = scoresde_jax.convert(network, tree_of(in_jax_layout(arrays, config)))
    x = np.moveaxis(arrays["input"], 1, -1).astype(np.float32)
    cond = arrays["time"].astype(np.float32) if "time" in arrays else arrays["labels"].astype(np.int32)
    expected = np.moveaxis(arrays["output_f64"], 1, -1)
    output = jax.jit(network.module.apply)({"params": params}, x, cond)
    bound = 1e-4 if getattr(network.module, "embedding_type", "") == "fourier" else 1e-5
    assert np.abs(output - expected).max() <= bound * np.abs(expected).max()


def test_what_does_not_fit(tmp_path):
    case = CONFIG["cases"]["ddpmpp"]
    network = network_of(case)
    flat = {key: parameter(key, shape) for key, shape in case["shapes"].items()}
    whole, file = state_of(tree_of(flat), tree_of(flat)), tmp_path / "checkpoint_1"

    def refused(content, message):
        file.write_bytes(content if isinstance(content, bytes) else serialization.msgpack_serialize(content))
        with pytest.raises(ValueError, match=message) as caught:
            interop.read_scoresde_jax(file, network)
        assert "\n" not in str(caught.value)

    some = "ResnetBlockBigGANpp_0/Conv_0/kernel"
    changed = {key: value for key, value in flat.items() if key != some}
    refused(whole | {"params_ema": tree_of(changed)}, "lacks 1 parameters, the first being 'down_0_block_0/conv_0/ker")
    refused(whole | {"params_ema": tree_of(changed | {"Other_0/kernel": flat[some]})}, "'params_ema': 'Other_0/kernel'")
    refused(whole | {"params_ema": tree_of(flat | {some: flat[some][..., :3]})}, "has shape .* needs")
    refused(whole | {"params_ema": tree_of(flat | {some: flat[some] * np.inf})}, "must be finite")
    refused(whole | {"params_ema": tree_of(flat | {some: "text"})}, "is a str, expected a tensor")
    refused(whole | {"step": -1}, "'step' is -1")
    refused(whole | {"model_state": {"batch_stats": {"a": np.zeros(2)}}}, "'model_state' is not empty")
    refused({"params": {}}, "no entry 'optimizer'")
    refused(serialization.msgpack_serialize(whole)[:-100], "is damaged, or no flax checkpoint")
    refused(b"\x87\xff\xff", "is damaged, or no flax checkpoint")
    refused(b"\x01", "it holds a int")
