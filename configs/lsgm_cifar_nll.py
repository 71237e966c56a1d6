"""LSGM on CIFAR-10, the model with the best likelihood (Vahdat et al. 2021).

Command:   python -m sgmjax.train --config=configs/lsgm_cifar_nll.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 4 GPUs for the VAE, 2 x 8 of 32 GB for the second stage, mixed precision; not trained to
           the end with this code
Expected:  published: NELBO 2.87 bits/dim (python -m sgmjax.evaluate --metrics=nelbo)

Values of the commands in NVlabs/LSGM's README: the VAE for 400 epochs, then both for 1,875, at 195 steps of 256
images an epoch. Geometric VP down to t = 0, where the kernel has variance sigma2_0.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "cifar10", "flip": True},
            "vae": {
                "encoder_channels": 256,
                "decoder_channels": 256,
                "ch_mult": (1, 2),
                "num_blocks": 1,
                "num_scales": 1,
                "groups_per_scale": 4,
                "latents_per_group": 45,
                "preprocess_cells": 3,
                "postprocess_cells": 3,
                "encoder_cells": 3,
                "decoder_cells": 3,
                "cells": "res_bnswish",
                "squeeze_excite": True,
                "num_flows": 2,
                "decoder": "dml",
                "kl_max": 0.7,
                "kl_anneal_portion": 1.0,
                "kl_balance": "square",
                "spectral_weight": 0.01,
            },
            "sde": {"name": "geometric_vp", "sigma2_min": 3e-5, "sigma2_max": 0.999, "sigma2_0": 3e-5},
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
            "objective": {"t_min": 0.0, "time_conditioning": "t"},
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
                "p_weighting": "ll_uniform",
                "q_weighting": "reweight_p_samples",
                "mixing_logit_init": -3.0,
                "vae_spectral_weight": 0.01,
                "prior_spectral_weight": 0.01,
                "prior_spectral_convolutions": True,
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
