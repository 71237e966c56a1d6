"""A classifier of noised MNIST digits, to guide the run of psld_mnist.

Command:   python -m sgmjax.train --config=configs/classifier_mnist.py
           then python -m sgmjax.sample --workdir=runs/psld_mnist --classifier=runs/classifier_mnist --labels=3
Data:      TFDS `mnist`, prepared once: python -m sgmjax.data.prepare mnist
Hardware:  two CPU cores are enough; an accelerator does it in minutes
Expected:  nearly all held-out digits right at t = 0.001, chance at t = 1

Ours, not published: a small encoder of NCSN++ on the process of Pandey & Mandt 2023.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "mnist"},
            "sde": {"name": "psld", "beta_min": 8.0, "beta_max": 8.0, "gamma": 0.01, "nu": 4.01, "kappa": 0.04},
            "model": {
                "name": "ncsnpp_classifier",
                "nf": 16,
                "ch_mult": (1, 2, 2),
                "num_res_blocks": 1,
                "attn_resolutions": (7,),
                "dropout": 0.1,
            },
            "objective": {"matching": "hsm", "time_conditioning": "t999"},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 200, "ema_decay": 0.999, "ema_warmup": True},
            "train": {
                "steps": 2000,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 500,
                "checkpoint_every": 500,
            },
        }
    )
