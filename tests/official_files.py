"""Small checkpoints of the official programs, and the configs that have their networks."""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import refdata
from flax import serialization, traverse_util

from sgmjax import interop
from sgmjax.commands import import_checkpoint, published
from sgmjax.config import MODEL, from_dict
from sgmjax.interop import export, lsgm_settings, scoresde_jax, torch_file
from sgmjax.tasks import build

SIDE = 8
DATA = {"name": "folder", "image_size": SIDE, "eval_split": None}
NETWORK = {"name": "ncsnpp", "nf": 8, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "dropout": 0.0}
FOURIER = {"fir": True, "progressive_input": "residual", "embedding_type": "fourier"}
SAMPLING = {"sampler": "em", "steps": 2, "num": 8, "batch_size": 8, "grid_images": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "scoresde": {
        "data": DATA | {"centered": False},
        "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 30.0},
        "model": NETWORK | FOURIER | {"scale_by_sigma": True},
        "objective": {"parameterization": "score", "time_conditioning": "sigma", "reduce": "half_sum"},
    },
    "scoresde_jax": {"data": DATA, "sde": {"name": "vp"}, "model": NETWORK, "objective": {"time_conditioning": "t999"}},
    "cld": {"data": DATA, "sde": {"name": "cld"}, "model": NETWORK | FOURIER},
    "psld": {"data": DATA, "sde": {"name": "psld"}, "model": NETWORK},
    "classifier": {
        "data": DATA,
        "sde": {"name": "psld"},
        "model": {key: NETWORK[key] for key in ("nf", "ch_mult", "num_res_blocks", "attn_resolutions")}
        | {"name": "ncsnpp_classifier"},
    },
}
CLASSES = 3
# Whose checkpoints are taken from the recorded ones, there being nothing here that writes them.
RECORDED = {"ncsnv2": ("checkpoints/ncsnv2*.json", ".pth"), "lsgm": ("checkpoints/lsgm*.json", ".pt")}
SOURCES = [*SETTINGS, *(pytest.param(name, marks=pytest.mark.reference) for name in RECORDED)]


def settings_of(name: str) -> dict[str, Any]:
    """Settings of a run whose network and process a checkpoint has."""
    if name in SETTINGS:
        return ({} if name == "classifier" else {"sampling": SAMPLING}) | SETTINGS[name]
    file = recorded(name)
    if name == "lsgm":
        args = vars(torch_file.load(file)["args"])
        return lsgm_settings.make_settings(args, 100) | {"sampling": SAMPLING | {"denoise": False}}
    config = json.loads(file.with_suffix(".json").read_text())
    network, model = interop.from_ncsnv2_config(config), config["model"]
    levels = len(network.sigmas)
    sde = {"sigma_min": model["sigma_end"], "sigma_max": model["sigma_begin"], "sigma_dist": model["sigma_dist"]}
    sampler = {"sampler": "annealed_langevin", "grid": "levels", "steps": levels + 1, "options": {"steps_per_level": 1}}
    kind = "ncsnv2" if "v2" in type(network.module).__name__.lower() else "ncsn"
    return {
        "data": {"name": "folder", "image_size": network.event_shape[0], "centered": network.module.centered},
        "sde": {"name": "ve"} | sde,
        "model": {"name": kind} | {key: getattr(network.module, key) for key in MODEL.parameters(kind)},
        "objective": {
            "matching": "dsm",
            "weighting": "annealed",
            "parameterization": "score",
            "time_conditioning": "sigma" if kind == "ncsnv2" else "level",
            "time_sampling": "levels",
            "num_levels": levels,
            "reduce": "half_sum",
        },
        "sampling": sampler,
    }


def recorded(name: str) -> Path:
    """The first recorded checkpoint of a source; skips without one."""
    pattern, ending = RECORDED[name]
    found = sorted(refdata.REFERENCE.glob(pattern)) if refdata.REFERENCE.is_dir() else []
    if not found:
        pytest.skip(f"no {pattern} in {refdata.REFERENCE}" if refdata.REFERENCE.is_dir() else refdata.NO_REFERENCE)
    return refdata.beside(found[0], ending)


def content_of(name: str) -> Any:
    """What is in a checkpoint: random weights, step 5; or the recorded one."""
    if name in RECORDED:
        content = torch_file.load(recorded(name))
        return content | {"args": argparse.Namespace(**vars(content["args"]))} if name == "lsgm" else content
    config = from_dict(settings_of(name))
    classes = CLASSES if name == "classifier" else None
    task = build.task(config, published.shape_of(config.data), classes)
    network = published.official_network(config, task, num_scales=20 if name == "scoresde" else None)
    raw, average = (random_like(jax.eval_shape(task.init, jax.random.key(0)).params, seed) for seed in (0, 1))
    if name == "scoresde_jax":
        names = {ours: theirs for theirs, ours in scoresde_jax.official_names(network).items()}
        trees = [
            traverse_util.unflatten_dict({names[path]: leaf for path, leaf in traverse_util.flatten_dict(tree).items()})
            for tree in (raw, average)
        ]
        state = {"step": np.int32(5), "param_states": {}}
        return {
            "step": np.int32(5),
            "optimizer": {"target": trees[0], "state": state},
            "lr": np.float32(2e-4),
            "model_state": {},
            "ema_rate": np.float32(0.999),
            "params_ema": trees[1],
            "rng": np.zeros(2, np.uint32),
        }
    if name in ("psld", "classifier"):
        return export.psld_checkpoint(network, raw, average, 5, optimizer=config.optimizer)
    has = name == "scoresde"
    return export.scoresde_checkpoint(network, raw, average, 5, optimizer=config.optimizer, sigmas=has)


def random_like(shapes: Any, seed: int) -> Any:
    """Small random numbers of the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32) / 10, shapes)


def save(name: str, content: Any, path: Path) -> Path:
    """Writes a checkpoint as its program does."""
    import torch  # type: ignore[import-not-found]

    if name == "scoresde_jax":
        path.write_bytes(serialization.msgpack_serialize(content))
    else:
        torch.save(content, path)
    return path


def weights_of(name: str, content: Any) -> dict[str, Any]:
    """The dict of weights in a checkpoint, to be changed."""
    if name == "scoresde_jax":
        return next(layer for layer in content["optimizer"]["target"].values() if "kernel" in layer)
    if name == "ncsnv2":
        return content[0]
    return content[{"psld": "state_dict", "classifier": "state_dict", "lsgm": "vae_state_dict"}.get(name, "model")]


def config_file(folder: Path, settings: dict[str, Any], name: str = "official") -> Path:
    """A config file of these settings."""
    path = folder / f"{name}.py"
    path.write_text(f"from sgmjax.config import complete\n\n\ndef get_config():\n    return complete({settings!r})\n")
    return path


@functools.cache
def pieces(name: str) -> Any:
    """`content_of`, made once; for tests that change it there is `fresh`."""
    return content_of(name)


def fresh(name: str) -> Any:
    """A copy of the dicts and lists of `pieces`, to be changed."""

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return type(value)((key, copied(item)) for key, item in value.items())
        return [copied(item) for item in value] if isinstance(value, list) else value

    return copied(pieces(name))


def run_import(folder: Path, name: str, *words: str, config: bool = True) -> int:
    """The command on `folder/file`, into `folder/runs/a`, with the config of the checkpoint or without."""
    words = (*words, f"--workdir={folder / 'runs' / 'a'}")
    if name == "classifier":
        words += (f"--num_classes={CLASSES}",)
    if config:
        words += (f"--config={config_file(folder, settings_of(name))}",)
    return import_checkpoint.main(["import_checkpoint", f"--checkpoint={folder / 'file'}", *words])
