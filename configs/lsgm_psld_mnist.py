"""PSLD in the latent space of LSGM's MNIST model.

Command:   python -m sgmjax.train --config=configs/lsgm_psld_mnist.py
Data:      TFDS `mnist`, prepared once: python -m sgmjax.data.prepare mnist
Hardware:  as lsgm_mnist.py, whose settings they are but for the process; not trained to the end with this code
Expected:  samples; --metrics=nelbo of sgmjax.evaluate for the bound

Ours, not published: LSGM (Vahdat et al. 2021) with the process of Pandey & Mandt 2023 as its prior and the
cross-entropy bound of docs/latent_prior.md. To compare priors on one VAE, train it alone and give it to all:

    python -m sgmjax.train --config=configs/lsgm_mnist.py:vae
    (each) --config.latent.vae_from=runs/lsgm_mnist_vae --config.latent.vae_steps=0 --config.train.steps=374400
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "mnist", "binarize": "dynamic"},
            "vae": {
                "pad": 2,
                "encoder_channels": 64,
                "decoder_channels": 64,
                "ch_mult": (1, 2, 2),
                "num_blocks": 2,
                "num_scales": 1,
                "groups_per_scale": 2,
                "latents_per_group": 20,
                "preprocess_cells": 3,
                "postprocess_cells": 3,
                "encoder_cells": 1,
                "decoder_cells": 1,
                "cells": "res_mbconv",
                "squeeze_excite": True,
                "num_flows": 0,
                "decoder": "bin",
                "kl_max": 0.7,
                "kl_anneal_portion": 1.0,
                "kl_balance": "square",
                "spectral_weight": 0.01,
            },
            "sde": {
                "name": "psld",
                "beta_min": 8.0,
                "beta_max": 8.0,
                "gamma": 0.01,
                "nu": 4.01,
                "kappa": 0.04,
            },
            "model": {
                "name": "ncsnpp",
                "nf": 256,
                "ch_mult": (1, 1),
                "num_res_blocks": 8,
                "attn_resolutions": (),
                "dropout": 0.2,
                "fir": False,
                "embedding_type": "positional",
                "embedding_dim": 128,
                "embedding_scale": 1000.0,
            },
            "objective": {"t_min": 1e-5, "time_conditioning": "t"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
                "eps": 1e-4,
                "weight_decay": 3e-4,
                "warmup_steps": 9360,
                "grad_clip": None,
                "ema_decay": 0.9999,
                "ema_warmup": False,
            },
            "latent": {
                "vae_steps": 93_600,
                "vae_optimizer": {
                    "name": "adamax",
                    "learning_rate": 0.01,
                    "learning_rate_min": 1e-4,
                    "eps": 1e-3,
                    "weight_decay": 3e-4,
                    "warmup_steps": 2340,
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
                    "warmup_steps": 9360,
                    "grad_clip": None,
                    "ema_decay": 0.0,
                    "ema_warmup": False,
                },
                "p_weighting": "ll_iw",
                "q_weighting": "reweight_p_samples",
                "mixing_logit_init": -6.0,
                "drop_inactive": True,
                "vae_spectral_weight": 0.01,
                "prior_spectral_weight": 0.0,
                "kl_min": 0.7,
                "kl_max": 1.0,
                "kl_anneal_portion": 0.1,
            },
            "train": {
                "steps": 468_000,
                "batch_size": 128,
                "log_every": 100,
                "eval_every": 5000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {"sampler": "ode", "t_min": 1e-5, "denoise": False, "rtol": 1e-5, "atol": 1e-5},
        }
    )
