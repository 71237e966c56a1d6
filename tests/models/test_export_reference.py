"""Our parameters written in the official layouts, against the files that the official programs wrote."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import refdata

from sgmjax import interop
from sgmjax.config import OptimizerConfig
from sgmjax.interop import export, torch_file

PREFIXES = ("scoresde_", "psld_", "cld_")
NETS = [case for prefix in PREFIXES for case in refdata.files(f"nets/{prefix}*.json")]
CHECKPOINTS = [case for prefix in PREFIXES for case in refdata.files(f"checkpoints/{prefix}*.json")]
READERS = {"scoresde": interop.read_scoresde, "psld": interop.read_psld, "cld": interop.read_cld}


def _network(path, arrays):
    config, source = json.loads(path.read_text()), path.stem.partition("_")[0]
    if source == "psld":
        return interop.from_psld_config(config, image_size=arrays["input"].shape[-1])
    return (interop.from_scoresde_config if source == "scoresde" else interop.from_cld_config)(config)


@pytest.mark.parametrize("path", NETS)
def test_a_state_dict_goes_back_to_itself(path):
    """Names, order, shapes and every number of the official state dict."""
    arrays = refdata.load_npz(refdata.beside(path, ".npz"))
    official = {k.removeprefix("state_dict/"): v for k, v in arrays.items() if k.startswith("state_dict/")}
    official.pop("sigmas", None)
    network = _network(path, arrays)
    found = interop.official_weights(network, interop.convert_weights(network, official))
    assert list(found) == list(official)
    unread = "" if getattr(network.module, "conditional", True) else "Dense_0"
    for key, value in official.items():
        assert found[key].shape == value.shape and found[key].dtype == np.float32, key
        if not (unread and unread in key):  # a projection of the time that nothing reads
            np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("path", CHECKPOINTS)
def test_a_checkpoint_is_written_as_the_official_program_does(path, tmp_path):
    torch = pytest.importorskip("torch")
    source = path.stem.partition("_")[0]
    network = _network(path, refdata.load_npz(refdata.beside(path, "_expected.npz")))
    file = refdata.beside(path, ".pth", ".ckpt")
    read = READERS[source](file, network)
    settings = OptimizerConfig(ema_warmup=source != "psld")
    if source == "psld":
        whole = export.psld_checkpoint(network, read.params, read.ema_params, read.step, optimizer=settings)
    else:
        has = source == "scoresde"
        whole = export.scoresde_checkpoint(
            network, read.params, read.ema_params, read.step, optimizer=settings, sigmas=has
        )
    torch.save(whole, tmp_path / "ours.pt")
    theirs, ours = torch_file.load(file), torch.load(tmp_path / "ours.pt", weights_only=True)
    assert set(ours) == set(theirs)
    key = "state_dict" if source == "psld" else "model"
    assert list(ours[key]) == list(theirs[key])
    for name, tensor in theirs[key].items():
        assert ours[key][name].dtype == tensor.dtype and ours[key][name].shape == tensor.shape, name
        # The table of noise levels is computed, here and there, in float64: exp and log differ in the last digit.
        close = torch.allclose(ours[key][name], tensor, rtol=1e-14, atol=0) if name.endswith("sigmas") else None
        assert torch.equal(ours[key][name], tensor) if close is None else close, name
    groups = [found["optimizer_states"][0] if source == "psld" else found["optimizer"] for found in (ours, theirs)]
    assert len(groups[0]["param_groups"]) == len(groups[1]["param_groups"]) == 1
    assert groups[0]["param_groups"][0]["params"] == groups[1]["param_groups"][0]["params"]
    if source != "psld":
        assert set(ours["ema"]) == set(theirs["ema"]) and ours["step"] == theirs["step"]
        assert ours["ema"]["num_updates"] == theirs["ema"]["num_updates"]
        pairs = list(zip(ours["ema"]["shadow_params"], theirs["ema"]["shadow_params"], strict=True))
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    else:
        assert ours["global_step"] == theirs["global_step"]
    again = READERS[source](tmp_path / "ours.pt", network)
    assert again.step == read.step
    jax.tree.map(np.testing.assert_array_equal, again.params, read.params)
    jax.tree.map(np.testing.assert_array_equal, again.ema_params, read.ema_params)


@pytest.mark.parametrize(
    "change, layout, message",
    [
        ({"num_classes": 10}, "scoresde", "model.num_classes: 10 has no counterpart in scoresde"),
        ({"embedding_scale": 1000.0}, "psld", "model.embedding_scale: 1000.0"),
        ({"centered": False}, "psld", "data.centered: False"),
        ({"scale_by_sigma": True, "embedding_type": "fourier"}, "cld", "model.scale_by_sigma: True"),
        ({"out_channels": 6}, "scoresde", "3 channels in and 6 out"),
    ],
)
def test_networks_that_no_official_program_has(change, layout, message):
    from sgmjax.models import NCSNpp

    network = interop.OfficialNetwork(NCSNpp(nf=8, ch_mult=(1,)).clone(**change), (8, 8, 3))
    with pytest.raises(ValueError, match=message):
        interop.check_exportable(network, layout)
