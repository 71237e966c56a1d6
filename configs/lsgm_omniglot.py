"""LSGM on OMNIGLOT at 28 x 28, binarised anew at every use (Vahdat et al. 2021).

Command:   python -m sgmjax.train --config=configs/lsgm_omniglot.py --config.data.data_dir=PATH/omniglot
Data:      a folder of grey images, bright ink on black, 24,345 in train/ and 8,070 in test/: the arrays `data` and
           `testdata` of chardata.mat in yburda/iwae, each column one image of 28 x 28, written as PNG files
Hardware:  published: 2 GPUs of 16 GB for the VAE, 4 for the second stage, mixed precision; not trained to the end with
           this code
Expected:  published: NELBO 87.79 nats (python -m sgmjax.evaluate --metrics=nelbo)

Values of the commands in NVlabs/LSGM's README: the VAE for 200 epochs, then both for 1,500, at 190 steps of 128 images
an epoch. TFDS `omniglot` has other splits, and black ink on white in colour at 105 x 105: its figures do not compare.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {
                "name": "folder",
                "data_dir": "data/omniglot",
                "image_size": 28,
                "binarize": "dynamic",
            },
            "vae": {
                "pad": 2,
                "encoder_channels": 64,
                "decoder_channels": 64,
                "ch_mult": (1, 2),
                "num_blocks": 1,
                "num_scales": 1,
                "groups_per_scale": 3,
                "latents_per_group": 20,
                "preprocess_cells": 2,
                "postprocess_cells": 2,
                "encoder_cells": 3,
                "decoder_cells": 3,
                "cells": "res_mbconv",
                "squeeze_excite": True,
                "num_flows": 0,
                "decoder": "bin",
                "kl_max": 1.0,
                "kl_anneal_portion": 1.0,
                "kl_balance": "square",
                "spectral_weight": 0.01,
            },
            "sde": {"name": "vp", "beta_min": 0.1, "beta_max": 20.0},
            "model": {
                "name": "ncsnpp",
                "nf": 256,
                "ch_mult": (1, 1, 1),
                "num_res_blocks": 8,
                "attn_resolutions": (16,),
                "dropout": 0.2,
                "fir": False,
                "embedding_type": "positional",
                "embedding_dim": 128,
                "embedding_scale": 1000.0,
            },
            "objective": {"t_min": 0.01, "time_conditioning": "t"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
                "eps": 1e-4,
                "weight_decay": 3e-4,
                "warmup_steps": 3800,
                "grad_clip": None,
                "ema_decay": 0.9999,
                "ema_warmup": False,
            },
            "latent": {
                "vae_steps": 38_000,
                "vae_optimizer": {
                    "name": "adamax",
                    "learning_rate": 0.01,
                    "learning_rate_min": 1e-4,
                    "eps": 1e-3,
                    "weight_decay": 3e-4,
                    "warmup_steps": 950,
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
                    "warmup_steps": 3800,
                    "grad_clip": None,
                    "ema_decay": 0.0,
                    "ema_warmup": False,
                },
                "p_weighting": "ll_iw",
                "q_weighting": "reweight_p_samples",
                "mixing_logit_init": -6.0,
                "drop_inactive": True,
                "vae_spectral_weight": 0.01,
                "prior_spectral_weight": 1e-3,
                "kl_min": 0.7,
                "kl_max": 1.0,
                "kl_anneal_portion": 0.1,
            },
            "train": {
                "steps": 323_000,
                "batch_size": 128,
                "log_every": 100,
                "eval_every": 5000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {"sampler": "ode", "t_min": 1e-5, "denoise": False, "rtol": 1e-5, "atol": 1e-5},
        }
    )
