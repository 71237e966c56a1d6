"""LSGM on CIFAR-10, the model with the best FID (Vahdat et al. 2021).

Command:   python -m sgmjax.train --config=configs/lsgm_cifar_fid.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 8 GPUs for the VAE, 2 x 8 of 32 GB for the second stage, mixed precision; not trained to
           the end with this code
Expected:  published: FID 2.10 at 138 NFE (ODE, tolerance 1e-5)

Values of the commands in NVlabs/LSGM's README: the VAE for 400 epochs, then both for 1,875, at 195 steps of 256
images an epoch. Spectral regularisation of the prior acts on the gains of its norms only, as published
(--custom_conv_dae); after NaN set latent.prior_spectral_convolutions to True.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "cifar10", "flip": True},
            "vae": {
                "encoder_channels": 128,
                "decoder_channels": 128,
                "ch_mult": (1, 2),
                "num_blocks": 1,
                "num_scales": 1,
                "groups_per_scale": 20,
                "latents_per_group": 9,
                "preprocess_cells": 2,
                "postprocess_cells": 2,
                "encoder_cells": 2,
                "decoder_cells": 2,
                "cells": "res_bnswish",
                "squeeze_excite": True,
                "num_flows": 0,
                "decoder": "dml",
                "kl_max": 0.7,
                "kl_anneal_portion": 1.0,
                "kl_balance": "square",
                "spectral_weight": 0.01,
            },
            "sde": {"name": "vp", "beta_min": 0.1, "beta_max": 20.0},
            "model": {
                "name": "ncsnpp",
                "nf": 512,
                "ch_mult": (1, 1, 1),
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
                "warmup_steps": 975,
                "grad_clip": None,
                "ema_decay": 0.9999,
                "ema_warmup": False,
            },
            "latent": {
                "vae_steps": 78_000,
                "vae_optimizer": {
                    "name": "adamax",
                    "learning_rate": 0.01,
                    "learning_rate_min": 1e-4,
                    "eps": 1e-3,
                    "weight_decay": 3e-4,
                    "warmup_steps": 975,
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
                    "warmup_steps": 975,
                    "grad_clip": None,
                    "ema_decay": 0.0,
                    "ema_warmup": False,
                },
                "p_weighting": "drop_all_iw",
                "q_weighting": "reweight_p_samples",
                "mixing_logit_init": -3.0,
                "vae_spectral_weight": 0.01,
                "prior_spectral_weight": 0.01,
                "prior_spectral_convolutions": False,
                "kl_min": 0.7,
                "kl_max": 1.0,
                "kl_anneal_portion": 0.1,
            },
            "train": {
                "steps": 443_625,
                "batch_size": 256,
                "log_every": 100,
                "eval_every": 5000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {
                "sampler": "ode",
                "t_min": 1e-6,
                "denoise": False,
                "rtol": 1e-5,
                "atol": 1e-5,
                "num": 50_000,
                "batch_size": 256,
            },
        }
    )
