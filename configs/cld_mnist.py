"""CLD on MNIST, with a network that learns on a laptop.

Command:   python -m sgmjax.train --config=configs/cld_mnist.py
Data:      TFDS `mnist`, prepared once: python -m sgmjax.data.prepare mnist
Hardware:  two CPU cores are enough; an accelerator does it in minutes
Expected:  samples/final.png shows handwritten digits

Ours, not published: a small DDPM++ on the process and the mixed score of Dockhorn et al. 2022.
Images keep their 28 x 28 pixels (28, 14 and 7 in the network).
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "mnist"},
            "sde": {"name": "cld", "beta_min": 4.0, "beta_max": 4.0, "m_inv": 4.0, "kappa": 0.04},
            "model": {
                "name": "ncsnpp",
                "nf": 32,
                "ch_mult": (1, 2, 2),
                "num_res_blocks": 1,
                "attn_resolutions": (7,),
                "dropout": 0.0,
            },
            "objective": {
                "matching": "hsm",
                "weighting": "reweightedv2",
                "parameterization": "mixed",
                "time_conditioning": "t999",
            },
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
