"""A whole LSGM run of the least size: the VAE, then the VAE with its prior; killed there, gone on with, sampled."""

from __future__ import annotations

import json
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sgmjax.config import from_dict
from sgmjax.training import run as running
from sgmjax.training.interrupt import Interrupt
from sgmjax.training.train import train

VAE_STEPS, SAVED, STEPS = 2, 3, 4
OPTIMIZER = {"name": "adamax", "learning_rate": 1e-2, "warmup_steps": 0, "ema_decay": 0.5, "ema_warmup": False}
SETTINGS = {
    "data": {"name": "digits", "binarize": "static", "eval_split": None},
    "vae": {
        "encoder_channels": 4, "decoder_channels": 4, "ch_mult": (1, 1), "groups_per_scale": 1, "latents_per_group": 2,
        "preprocess_cells": 1, "postprocess_cells": 1, "encoder_cells": 1, "decoder_cells": 1, "decoder": "bin",
        "cells": "res_bnswish2", "squeeze_excite": False,
    },
    "sde": {"name": "vp"},
    "model": {"name": "ncsnpp", "nf": 4, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "dropout": 0.1},
    "objective": {"t_min": 0.01, "time_conditioning": "t999"},
    "optimizer": OPTIMIZER | {"name": "adamw"},
    "latent": {
        "vae_steps": VAE_STEPS, "vae_optimizer": OPTIMIZER, "vae_finetune": OPTIMIZER | {"name": "adamw"},
        "prior_spectral_weight": 1e-3, "prior_spectral_convolutions": False,
    },
    "train": {
        "steps": STEPS, "batch_size": 8, "log_every": 1, "eval_every": 0, "sample_every": 0, "checkpoint_every": SAVED,
        "keep_checkpoints": 3,
    },
    "sampling": {"sampler": "em", "steps": 2, "num": 8, "batch_size": 8},
}  # fmt: skip


class Killed(Interrupt):
    """Copies the run folder as a process killed in the step after `SAVED` leaves it, and lets the run go on."""

    whole = copy = None

    def check(self, step):
        if step == SAVED + 1 and not self.copy.exists():
            deadline = time.monotonic() + 300
            while not (self.whole / "checkpoints" / str(SAVED)).is_dir():  # written in the background
                assert time.monotonic() < deadline
                time.sleep(0.01)
            shutil.copytree(self.whole, self.copy, ignore=shutil.ignore_patterns("run.lock"))
        return super().check(step)


def arrays(folder, step):
    """Every array of a checkpoint."""
    items = ("train", "ema", "model_state")
    return {name: ocp.StandardCheckpointer().restore(folder / "checkpoints" / str(step) / name) for name in items}


def rows(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in row.items() if name not in ("examples_per_second", "host_ms")} for row in found]


@pytest.fixture(scope="module")
def runs(one_device, tmp_path_factory):  # test_latent.py has eight
    """A whole run's folder, and what a process killed in the second stage would have left of it."""
    folder = tmp_path_factory.mktemp("lsgm")
    whole, copy = folder / "whole", folder / "copy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Killed, "whole", whole)
        patch.setattr(Killed, "copy", copy)
        patch.setattr(running, "Interrupt", Killed)
        result = train(from_dict(SETTINGS), whole)
    assert (result.status, result.step) == ("finished", STEPS)
    return whole, copy


def test_a_run_trains_the_vae_then_both_and_draws(runs):
    whole, _ = runs
    with np.load(whole / "samples" / "final.npz") as final:
        assert final["samples"].shape == (8, 8, 8, 1) and final["samples"].dtype == np.uint8 and final["nfe"] > 0
        assert len(np.unique(final["samples"])) > 2  # means of pixels, not one value everywhere
    assert ["prior_loss" in row for row in rows(whole)] == [False] * VAE_STEPS + [True] * (STEPS - VAE_STEPS)
    first, last = (arrays(whole, step)["train"]["params"] for step in (VAE_STEPS, STEPS))
    for group in ("vae", "prior"):
        pairs = zip(jax.tree.leaves(first[group]), jax.tree.leaves(last[group]), strict=True)
        assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


@pytest.mark.slow
def test_a_run_killed_in_the_second_stage_ends_with_the_same_bits(runs, capsys):
    whole, copy = runs
    assert not (copy / "checkpoints" / str(STEPS)).exists() and not (copy / "samples" / "final.npz").exists()
    result = train(from_dict(SETTINGS), copy)
    assert (result.status, result.step) == ("finished", STEPS)
    assert f"going on from step {SAVED} of {STEPS}" in capsys.readouterr().out
    ours, theirs = arrays(copy, STEPS), arrays(whole, STEPS)
    assert all(jax.tree.leaves(ours["model_state"][name]) for name in ("batch_stats", "spectral", "active"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert rows(copy) == rows(whole)
    with np.load(copy / "samples" / "final.npz") as a, np.load(whole / "samples" / "final.npz") as b:
        np.testing.assert_array_equal(a["samples"], b["samples"])
