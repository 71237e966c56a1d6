"""LSGM on CelebA-HQ at 256 x 256, the quantitative model (Vahdat et al. 2021).

Command:   python -m sgmjax.train --config=configs/lsgm_celebahq256.py --config.data.data_dir=PATH/celebahq256
Data:      a folder of the 30,000 CelebA-HQ images at 256 x 256 (published: 27,000 in train/, 3,000 in test/)
Hardware:  published: 2 x 8 GPUs of 32 GB, 4 images each, mixed precision; not trained to the end with this code
Expected:  published: FID 7.22 at 23 NFE (ODE, tolerance 1e-2)

Values of the commands in NVlabs/LSGM's README: the VAE for 200 epochs, then both for 1,000, at 422 steps of 64 images
an epoch. Three scales of latent variables, 5 bits; the prior is of the coarsest, 32 x 32, and N(0, I) of the others.
Prior and VAE have times and weightings of their own (Algorithm 2). The tolerance is that of the published FID;
likelihoods were evaluated with 1e-5. For the published FID batch norm took its statistics from the samples being
decoded; here they are the averages of training.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "folder", "data_dir": "data/celebahq256", "image_size": 256, "flip": True},
            "vae": {
                "encoder_channels": 64,
                "decoder_channels": 64,
                "ch_mult": (1, 1, 2, 4),
                "num_blocks": 1,
                "num_scales": 3,
                "groups_per_scale": 8,
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
            "sde": {"name": "vp", "beta_min": 0.1, "beta_max": 20.0},
            "model": {
                "name": "ncsnpp",
                "nf": 256,
                "ch_mult": (1, 2, 2, 2),
                "num_res_blocks": 8,
                "attn_resolutions": (16,),
                "dropout": 0.2,
                "fir": True,
                "embedding_type": "positional",
                "embedding_dim": 128,
                "embedding_scale": 1000.0,
            },
            "objective": {"t_min": 0.01, "time_conditioning": "t"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-4,
                "eps": 1e-4,
                "weight_decay": 3e-4,
                "warmup_steps": 8440,
                "grad_clip": None,
                "ema_decay": 0.9999,
                "ema_warmup": False,
            },
            "latent": {
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
                    "learning_rate": 1e-4,
                    "learning_rate_min": 1e-5,
                    "eps": 1e-3,
                    "weight_decay": 3e-4,
                    "warmup_steps": 8440,
                    "grad_clip": None,
                    "ema_decay": 0.0,
                    "ema_warmup": False,
                },
                "p_weighting": "drop_sigma2t_iw",
                "q_weighting": "ll_iw",
                "mixing_logit_init": -6.0,
                "drop_inactive": True,
                "vae_spectral_weight": 0.1,
                "prior_spectral_weight": 0.01,
                "kl_min": 1.0,
                "kl_max": 1.0,
            },
            "train": {
                "steps": 506_400,
                "batch_size": 64,
                "log_every": 100,
                "eval_every": 20_000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {
                "sampler": "ode",
                "t_min": 1e-5,
                "denoise": False,
                "rtol": 0.01,
                "atol": 0.01,
                "grid_images": 16,
                "batch_size": 64,
            },
        }
    )
