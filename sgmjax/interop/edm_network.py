"""EDM's snapshots as denoisers: SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM), as our networks and parameters.

SongUNet is the U-Net of score-SDE in other words, so it becomes `models.NCSNpp`: its blocks are taken by their names,
`16x16_block0` of the encoder, and its attention, which stands inside of a block, becomes a layer of its own. Class
labels enter where they do there, before the embedding's first layer (`labels_at="features"`). Augmentation labels are
zero when sampling, so their weights are passed over.

    official = read_edm("edm-cifar10-32x32-uncond-vp.pkl")
    model, params = edm_denoiser(official, sdes.psld())

DhariwalUNet is `models.ADM`. Not here: other preconditionings than EDM's, and SongUNet's decoder with skips.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from sgmjax import models, sdes
from sgmjax._inputs import InputError, shown
from sgmjax.interop.configs import OfficialNetwork
from sgmjax.interop.edm import OfficialEDM
from sgmjax.interop.weights import finish, leaf, place, record_calls
from sgmjax.model import DenoiserModel

_BLOCK = {
    "norm0": "norm_0", "conv0": "conv_0", "affine": "time_dense", "norm1": "norm_1", "conv1": "conv_1",
    "skip": "shortcut",
}  # fmt: skip
_NAME = re.compile(r"(enc|dec)\.(\d+)x\d+_([a-z]+)(\d*|_[a-z]+)(?:\.(.+))?\.(weight|bias)")
_DEFAULTS = {
    "label_dim": 0, "model_channels": 128, "channel_mult": [1, 2, 2, 2], "channel_mult_emb": 4,
    "num_blocks": 4, "attn_resolutions": [16], "dropout": 0.1, "embedding_type": "positional", "channel_mult_noise": 1,
    "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1], "sigma_data": 0.5,
    "model_type": "DhariwalUNet",
}  # fmt: skip


_ADM_DEFAULTS = {
    "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]
}  # fmt: skip
_NAMES = {"SongUNet": "ncsnpp", "DhariwalUNet": "adm"}
NETWORKS: dict[str, Any] = {"ncsnpp": models.NCSNpp, "adm": models.ADM}


def edm_denoiser(official: OfficialEDM, sde: sdes.SDE) -> tuple[DenoiserModel, dict[str, Any]]:
    """The denoiser of a snapshot, which samples with `sde`, and its parameters.

    Args:
        official: from `read_edm`.
        sde: any process.

    Returns:
        The model, and the parameters for it, float32.

    Raises:
        InputError: a network or a preconditioning that is not here, weights that do not fit.
    """
    told = _told(official)
    network = NETWORKS[_name(told)](**network_settings(official), out_channels=told["img_channels"])
    params = edm_params(official, network)
    return DenoiserModel(sde, network, parameterization="edm", sigma_data=float(told["sigma_data"])), params


def edm_params(official: OfficialEDM, network: Any) -> dict[str, Any]:
    """Our parameters of a snapshot, for a network of `network_settings`.

    Raises:
        InputError: the first weight that does not fit.
    """
    return _convert(OfficialNetwork(network, edm_shape(official)), _told(official), official.state_dict)


def edm_shape(official: OfficialEDM) -> tuple[int, int, int]:
    """The shape of an image, (H, W, C)."""
    told = _told(official)
    return told["img_resolution"], told["img_resolution"], told["img_channels"]


def edm_settings(official: OfficialEDM) -> dict[str, Any]:
    """The configuration of a run that has learnt this denoiser, for `config.from_dict`: sampled as published.

    Raises:
        InputError: as `network_settings`.

    Examples:
        >>> kwargs = {"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet", "model_channels": 128}
        >>> official = interop.OfficialEDM("EDMPrecond", kwargs, {}, {})  # as `read_edm` gives it
        >>> interop.edm_settings(official)["sampling"]["steps"]  # as published
        35
    """
    told = _told(official)
    side, _, channels = edm_shape(official)
    known = {(32, 3): {"name": "cifar10", "flip": True}}
    return {
        "data": known.get((side, channels), {"name": "folder", "image_size": side}),
        "sde": {"name": "edm", "sigma_max": 80.0},
        "model": {"name": _name(told), **network_settings(official)},
        "objective": {
            "parameterization": "edm",
            "time_conditioning": "log_sigma",
            "time_sampling": "log_normal",
            "sigma_data": float(told["sigma_data"]),
        },
        "sampling": {
            "sampler": "edm", "steps": 35 if side < 64 else 79, "grid": "rho", "t_min": 0.002 / 80,
            "denoise": "tweedie",
        },
    }  # fmt: skip


def _told(official: OfficialEDM) -> dict[str, Any]:
    """What the network of a snapshot was made with.

    Raises:
        InputError: a network or a preconditioning that is not here.
    """
    told = official.init_kwargs
    if official.class_name != "EDMPrecond":
        raise InputError(f"the snapshot's network is a {shown(official.class_name)}; only EDMPrecond is known here")
    if told.get("model_type", "DhariwalUNet") not in _NAMES:
        raise InputError(f"model_type is {shown(told['model_type'])}; known are {' and '.join(_NAMES)}")
    for key in ("img_resolution", "img_channels"):
        if not isinstance(told.get(key), int):
            raise InputError(f"the snapshot does not say its network's {key}")
    defaults = _DEFAULTS if told.get("model_type") == "SongUNet" else _DEFAULTS | _ADM_DEFAULTS
    return {**defaults, **told}


def _name(told: dict[str, Any]) -> str:
    """Of our network, in `models.NETWORKS`."""
    return _NAMES[told["model_type"]]


def network_settings(official: OfficialEDM) -> dict[str, Any]:
    """The fields of our network for a snapshot's, but for the channels.

    Raises:
        InputError: a network or a preconditioning that is not here.
    """
    told = _told(official)
    common = {
        "nf": told["model_channels"],
        "ch_mult": tuple(told["channel_mult"]),
        "num_res_blocks": told["num_blocks"],
        "attn_resolutions": tuple(told["attn_resolutions"]),
        "dropout": told["dropout"],
    }
    common |= {"num_classes": told["label_dim"]} if told["label_dim"] else {}
    if told["channel_mult_emb"] != 4:
        raise InputError(f"channel_mult_emb is {told['channel_mult_emb']}; only 4 is known here")
    if _name(told) == "adm":
        return common
    encoder, decoder = told["encoder_type"], told["decoder_type"]
    if encoder not in ("standard", "residual") or decoder != "standard":
        raise InputError(
            f"SongUNet with encoder_type={encoder!r}, decoder_type={decoder!r}: known are 'standard' or 'residual', "
            "and 'standard'"
        )
    fourier = told["embedding_type"] == "fourier"
    if told["channel_mult_noise"] != 1 + fourier:
        raise InputError("SongUNet's channel_mult_noise: known are 1 with positional and 2 with Fourier embeddings")
    settings = common | {
        "progressive_input": "residual" if encoder == "residual" else "none",
        "embedding_type": told["embedding_type"],
    }
    filters = tuple(told["resample_filter"])
    settings |= {"fir": True, "fir_kernel": filters} if filters != (1, 1) else {}
    settings |= {"fourier_log": False} if fourier else {}
    return settings | ({"labels_at": "features"} if told["label_dim"] else {})


def _convert(network: OfficialNetwork, told: dict[str, Any], state_dict: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters from the official ones; every key is used, every parameter filled."""
    _, shapes = record_calls(network)
    side = network.event_shape[0]
    params: dict[tuple[str, ...], np.ndarray] = {}
    plain = {"map_layer0": "time_dense_0", "map_layer1": "time_dense_1"}
    for key, value in state_dict.items():
        if not key.startswith("model."):
            raise InputError(f"state dict key '{key}' is not used by this network")
        name = key.removeprefix("model.")
        root = name.split(".")[0]
        if name.endswith("resample_filter") or root in ("map_augment", "map_label"):
            continue
        if name == "map_noise.freqs":
            place(params, shapes, key, ("fourier", "frequencies"), value)
        elif root in plain:
            path, array = leaf(name, value, (plain[root],))
            place(params, shapes, key, path, array)
        else:
            for path, array in _block(name, value, side, adm=_name(told) == "adm"):
                place(params, shapes, key, path, array)
    if told["label_dim"]:
        weight, bias = state_dict["model.map_label.weight"], state_dict.get("model.map_label.bias", 0.0)  # ADM has none
        scale = 1.0 if _name(told) == "adm" else math.sqrt(told["label_dim"])
        classes = scale * np.eye(told["label_dim"] + 1, told["label_dim"], dtype=np.float32)  # the last: no class
        table = classes @ weight.T + bias
        place(params, shapes, "model.map_label.weight", ("label_embed", "embedding"), table)
    return finish(params, shapes)


def _block(name: str, value: np.ndarray, side: int, *, adm: bool) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Paths and arrays of one official weight of the encoder or the decoder."""
    if adm and name.partition(".")[0] in ("out_norm", "out_conv"):
        return [leaf(name, value, (name.partition(".")[0],))]
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"state dict key '{name}' is not used by this network")
    half, resolution, kind, index, inner, _ = match.groups()
    level = int(math.log2(side // int(resolution)))
    layer = {
        ("enc", "conv", ""): "conv_in",
        ("enc", "down", ""): f"down_{level - 1}_resample",
        ("enc", "block", index): f"down_{level}_block_{index}",
        ("enc", "aux", "_residual"): f"down_{level - 1}_pyramid",
        ("dec", "in", "0"): "mid_block_0",
        ("dec", "in", "1"): "mid_block_1",
        ("dec", "up", ""): f"up_{level + 1}_resample",
        ("dec", "block", index): f"up_{level}_block_{index}",
        ("dec", "aux", "_norm"): "out_norm",
        ("dec", "aux", "_conv"): "out_conv",
    }.get((half, kind, index))
    if layer is None:
        raise InputError(f"state dict key '{name}' is not used by this network")
    if not inner:
        return [leaf(name, value, (layer, "conv") if kind == "aux" and half == "enc" else (layer,))]
    if inner in _BLOCK:
        return [leaf(name, value, (layer, _BLOCK[inner]))]
    attention = "mid_attn" if kind == "in" else f"up_{level}_attn" if half == "dec" else f"down_{level}_attn_{index}"
    attention = layer if adm else attention
    if inner == "norm2":
        return [leaf(name, value, (attention, "attn_norm" if adm else "norm"))]
    if value.ndim == 4:
        value = value[:, :, 0, 0]
    if inner == "proj":
        return [leaf(name, value, (attention, "out"))]
    if inner != "qkv":
        raise InputError(f"state dict key '{name}' is not used by this network")
    # The rows are, head by head, (channel, which of the three): the three alternate whatever the number of heads.
    parts = zip(("query", "key", "value"), (value[i::3] for i in range(3)))
    return [leaf(name, part, (attention, which)) for which, part in parts]
