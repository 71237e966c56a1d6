"""LSGM on CelebA-HQ at 256 x 256, the qualitative model, in three stages (Vahdat et al. 2021).

Command:   python -m sgmjax.train --config=configs/lsgm_celebahq256_qualitative.py
           python -m sgmjax.train --config=configs/lsgm_celebahq256_qualitative.py:prior
Data:      a folder data/celebahq256, or --config.data.data_dir=PATH in both commands, of the 30,000 CelebA-HQ images at
           256 x 256 (published: 27,000 in train/, 3,000 in test/)
Hardware:  published: 2 x 8 GPUs of 32 GB, 4 and then 6 images each, mixed precision; not trained to the end with this
           code
Expected:  samples; the paper gives no FID for this model

Values of the commands in NVlabs/LSGM's README. The first command is the VAE for 200 epochs, then both for 1,000 with
the geometric VP, at 422 steps of 64 images an epoch; the VAE sees the prior's averaged parameters. The second leaves
that VAE as it is (latent.vae_from: the run folder of the first) and trains a larger prior with VP for 1,500 epochs, at
281 steps of 96 images. Two scales of latent variables, 5 bits; the prior is of the coarser one, 64 x 64. The published
samples were decoded with batch norm's statistics of the samples themselves; here they are the averages of training.
"""

from sgmjax.config import complete

# What differs in the latent stages: the VAE is trained in the first two, and left as it is in the third.
TRAINED = {
    "vae_steps": 84_400,
    "vae_optimizer": {
        "name": "adamax",
        "learning_rate": 0.01,
        "learning_rate_min": 1e-4,
        "eps": 1e-3,
        "weight_decay": 3e-4,
        "warmup_steps": 2110,
        "grad_clip": None,
        "ema_decay": 0.0,
        "ema_warmup": False,
    },
    "vae_finetune": {
        "name": "adamw",
        "learning_rate": 8e-5,
        "learning_rate_min": 1e-5,
        "eps": 1e-3,
        "weight_decay": 3e-4,
        "warmup_steps": 8440,
        "grad_clip": None,
        "ema_decay": 0.0,
        "ema_warmup": False,
    },
    "q_weighting": "ll_iw",
    "q_ema": True,
    "vae_spectral_weight": 0.1,
    "kl_min": 0.7,
    "kl_max": 1.0,
    "kl_anneal_portion": 0.1,
}
FROZEN = {"vae_from": "runs/lsgm_celebahq256_qualitative", "train_vae": False}


def get_config(stage: str = "both"):
    if stage not in ("both", "prior"):
        raise ValueError(f"lsgm_celebahq256_qualitative.py:{stage}: choose both or prior")
    again = stage == "prior"
    epoch, channels = (281, 320) if again else (422, 256)
    sde = {"name": "geometric_vp", "sigma2_min": 3e-5, "sigma2_max": 0.999, "sigma2_0": 3e-5}
    if again:
        sde = {"name": "vp", "beta_min": 0.1, "beta_max": 20.0}
    return complete(
        {
            "data": {"name": "folder", "data_dir": "data/celebahq256", "image_size": 256, "flip": True},
            "vae": {
                "encoder_channels": 64,
                "decoder_channels": 64,
                "ch_mult": (1, 1, 2),
                "num_blocks": 1,
                "num_scales": 2,
                "groups_per_scale": 10,
                "latents_per_group": 20,
                "preprocess_cells": 2,
                "postprocess_cells": 2,
                "encoder_cells": 2,
                "decoder_cells": 2,
                "cells": "res_mbconv",
                "squeeze_excite": True,
                "num_flows": 2,
                "decoder": "dml",
                "kl_max": 1.0,
                "kl_anneal_portion": 1.0,
                "kl_balance": "square",
                "spectral_weight": 0.03,
                "progressive_input": "input_skip",
                "num_bits": 5,
            },
            "sde": sde,
            "model": {
                "name": "ncsnpp",
                "nf": channels,
                "ch_mult": (1, 1, 2, 2, 2),
                "num_res_blocks": 8,
                "attn_resolutions": (16,),
                "dropout": 0.2,
                "fir": True,
                "embedding_type": "positional",
                "embedding_dim": 128,
                "embedding_scale": 1000.0,
            },
            "objective": {"t_min": 0.01 if again else 0.0, "time_conditioning": "t"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 6e-5 if again else 1e-4,
                "eps": 1e-4,
                "weight_decay": 3e-4,
                "warmup_steps": 20 * epoch,
                "grad_clip": None,
                "ema_decay": 0.9999,
                "ema_warmup": False,
            },
            "latent": {
                "p_weighting": "drop_sigma2t_iw",
                "mixing_logit_init": -6.0,
                "drop_inactive": True,
                "prior_spectral_weight": 0.01,
            }
            | (FROZEN if again else TRAINED),
            "train": {
                "steps": 1500 * epoch if again else 84_400 + 1000 * epoch,
                "batch_size": 96 if again else 64,
                "log_every": 100,
                "eval_every": 20_000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {
                "sampler": "ode",
                "t_min": 1e-5,
                "denoise": False,
                "rtol": 1e-5,
                "atol": 1e-5,
                "grid_images": 16,
                "batch_size": 64,
            },
        }
    )
