"""PSLD on MNIST.

Command:   python -m sgmjax.train --config=configs/psld_mnist.py
Data:      TFDS `mnist`, prepared once: python -m sgmjax.data.prepare mnist
Hardware:  an accelerator. On two CPU cores 64,000 images, with a network of half the width, take half an hour and show
           readable digits: --config.model.nf=16 --config.train.batch_size=32 --config.train.steps=2000
           --config.optimizer.warmup_steps=200
Expected:  samples/final.png shows handwritten digits

Ours, not published: a small DDPM++ on the process of Pandey & Mandt 2023.
Images keep their 28 x 28 pixels (28, 14 and 7 in the network).
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "mnist"},
            "sde": {"name": "psld", "beta_min": 8.0, "beta_max": 8.0, "gamma": 0.01, "nu": 4.01, "kappa": 0.04},
            "model": {
                "name": "ncsnpp",
                "nf": 32,
                "ch_mult": (1, 2, 2),
                "num_res_blocks": 1,
                "attn_resolutions": (7,),
                "dropout": 0.0,
            },
            "objective": {"matching": "hsm", "weighting": "simple", "time_conditioning": "t999"},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 500, "ema_decay": 0.999, "ema_warmup": True},
            "train": {
                "steps": 10_000,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 1000,
                "sample_every": 1000,
                "checkpoint_every": 1000,
            },
            "sampling": {"sampler": "sscs", "steps": 100, "grid": "quadratic"},
        }
    )
