"""PSLD in the latent space of a VAE, on scikit-learn's handwritten digits (8 x 8), binary or grey.

Command:   python -m sgmjax.train --config=configs/lsgm_psld_digits.py    # binary; grey: lsgm_psld_digits.py:grey
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores
Expected:  samples/final.png shows digits that a person can read

Ours, not published: lsgm_digits.py with the process of Pandey & Mandt 2023 as its prior, and the cross-entropy
bound of docs/latent_prior.md. To compare priors on one VAE, train it alone and give it to all:

    python -m sgmjax.train --config=configs/lsgm_digits.py --workdir=runs/vae_digits --config.train.steps=1500
    (each) --config.latent.vae_from=runs/vae_digits --config.latent.vae_steps=0 --config.train.steps=2000
"""

from sgmjax.config import complete


def get_config(kind: str = "binary"):
    if kind not in ("binary", "grey"):
        raise ValueError(f"lsgm_psld_digits.py:{kind}: choose binary or grey")
    binary = kind == "binary"
    return complete(
        {
            "data": {"name": "digits", "binarize": "static" if binary else "none"},
            "vae": {
                "encoder_channels": 32,
                "decoder_channels": 32,
                "ch_mult": (1, 1),
                "num_blocks": 1,
                "num_scales": 1,
                "groups_per_scale": 2,
                "latents_per_group": 4,
                "preprocess_cells": 2,
                "postprocess_cells": 2,
                "encoder_cells": 1,
                "decoder_cells": 1,
                "cells": "res_bnswish",
                "decoder": "bin" if binary else "dl",
                "num_bits": 8 if binary else 4,
                "kl_max": 0.7,
            },
            "sde": {"name": "psld", "beta_min": 8.0, "beta_max": 8.0, "gamma": 0.01, "nu": 4.01, "kappa": 0.04},
            "model": {
                "name": "ncsnpp",
                "nf": 32,
                "ch_mult": (1, 1),
                "num_res_blocks": 1,
                "attn_resolutions": (2,),
                "dropout": 0.1,
            },
            "objective": {"t_min": 1e-5, "time_conditioning": "t999"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-3,
                "eps": 1e-4,
                "weight_decay": 3e-4,
                "warmup_steps": 100,
                "ema_decay": 0.999,
                "ema_warmup": True,
                "grad_clip": None,
            },
            "latent": {
                "vae_steps": 1500,
                "vae_optimizer": {
                    "name": "adamax",
                    "learning_rate": 1e-2,
                    "learning_rate_min": 1e-4,
                    "eps": 1e-3,
                    "weight_decay": 3e-4,
                    "warmup_steps": 100,
                    "grad_clip": None,
                    "ema_decay": 0.0,
                    "ema_warmup": False,
                },
                "vae_finetune": {
                    "name": "adamw",
                    "learning_rate": 1e-4,
                    "learning_rate_min": 1e-5,
                    "eps": 1e-3,
                    "weight_decay": 3e-4,
                    "warmup_steps": 100,
                    "grad_clip": None,
                    "ema_decay": 0.0,
                    "ema_warmup": False,
                },
                "p_weighting": "ll_iw",
                "q_weighting": "reweight_p_samples",
                "mixing_logit_init": -3.0,
            },
            "train": {
                "steps": 3500,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 500,
                "sample_every": 500,
                "checkpoint_every": 500,
            },
            "sampling": {"sampler": "ode", "t_min": 1e-5, "denoise": False, "rtol": 1e-5, "atol": 1e-5, "num": 1000},
        }
    )
