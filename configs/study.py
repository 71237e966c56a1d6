"""Every system of the papers at one budget, on MNIST or Fashion-MNIST: what docs/results.md compares.

Command:   python -m sgmjax.train --config=configs/study.py:psld            # into runs/study_psld
           python -m sgmjax.train --config=configs/study.py:psld,fashion_mnist
           all of them, their measurement and the table: python -m benchmarks.study --data=mnist
Data:      TFDS `mnist`, prepared once (python -m sgmjax.data.prepare mnist); Fashion-MNIST as the files of Debian's
           package dataset-fashion-mnist (elsewhere: --config.data.data_dir=FOLDER with the same four files)
Hardware:  two CPU cores, half an hour to an hour each
Expected:  samples/final.png shows digits or garments; docs/results.md has the table

Ours, not published: the small networks of `configs/psld_mnist.py` at half its width, and NCSNv2's and LSGM's own at
widths that cost as much a step. 256,000 images each; --config.train.steps=16000 goes on from there.
"""

from sgmjax.config import relative

BUDGET = {
    "optimizer": {"warmup_steps": 200},
    "train": {
        "steps": 8000,
        "batch_size": 32,
        "log_every": 200,
        "eval_every": 2000,
        "sample_every": 4000,
        "checkpoint_every": 1000,
    },
    "sampling": {"num": 100, "batch_size": 100},
}
WIDTH = {"model": {"nf": 16}}
SCORE = {
    "model": {"nf": 16, "embedding_type": "fourier", "scale_by_sigma": True},
    "objective": {"parameterization": "score", "time_conditioning": "sigma"},
    "sampling": {"sampler": "pc", "grid": "uniform", "steps": 200},
}
CLASSES = {"model": {"nf": 16, "num_classes": 10}, "objective": {"label_dropout": 0.1}}
LATENT = {
    "data": {"binarize": "none"},
    "vae": {
        "encoder_channels": 16,
        "decoder_channels": 16,
        "latents_per_group": 8,
        "preprocess_cells": 2,
        "postprocess_cells": 2,
        "decoder": "dl",
    },
    "model": {"nf": 32, "num_res_blocks": 2},
    "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.999, "ema_warmup": True},
    "latent": {
        "vae_steps": 3000,
        "vae_optimizer": {"warmup_steps": 100},
        "vae_finetune": {"warmup_steps": 100},
    },
}
# What each is made of: another config of this folder, and what differs from it beside the budget.
SYSTEMS = {
    "ncsnv2": ("ncsnv2_mnist", {"model": {"ngf": 10}}),
    "vp": ("vp_mnist", WIDTH),
    "subvp": ("vp_mnist", WIDTH | {"sde": {"name": "subvp", "beta_min": 0.1, "beta_max": 20.0}}),
    "ve": ("vp_mnist", SCORE | {"sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 33.8}}),
    "cld": ("cld_mnist", WIDTH),
    "cld_dsm": ("cld_mnist", WIDTH | {"objective": {"matching": "dsm"}}),
    "cld_eps": ("cld_mnist", WIDTH | {"objective": {"parameterization": "eps"}}),
    "psld": ("psld_mnist", WIDTH),
    "psld_classes": ("psld_mnist", CLASSES),
    "third_order": ("psld_mnist", WIDTH | {"sde": {"name": "third_order"}}),
    "edm": ("edm_mnist", WIDTH),
    "lsgm": ("lsgm_mnist", LATENT),
    "lsgm_psld": ("lsgm_psld_mnist", LATENT),
}
DATA = {
    "mnist": {},
    "fashion_mnist": {"name": "idx", "data_dir": "/usr/share/datasets/fashion-mnist"},
}


def get_config(which: str = "psld"):
    system, _, data = which.partition(",")
    if system not in SYSTEMS:
        raise ValueError(f"study.py:{which}: no such system; choose one of {', '.join(SYSTEMS)}")
    if (data := data or "mnist") not in DATA:
        raise ValueError(f"study.py:{which}: no such data; choose one of {', '.join(DATA)}")
    base, own = SYSTEMS[system]
    changes = {key: {**BUDGET.get(key, {}), **own.get(key, {})} for key in {**BUDGET, **own}}
    changes["data"] = changes.get("data", {}) | DATA[data]
    return relative(__file__, base, changes)
