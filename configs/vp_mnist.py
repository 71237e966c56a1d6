"""VP on MNIST, with a network that learns on a laptop.

Command:   python -m sgmjax.train --config=configs/vp_mnist.py
Data:      TFDS `mnist`, prepared once: python -m sgmjax.data.prepare mnist
Hardware:  two CPU cores are enough; an accelerator does it in minutes
Expected:  samples/final.png shows handwritten digits

Ours, not published: a small DDPM++ on the process of Song et al. 2021.
Images keep their 28 x 28 pixels (28, 14 and 7 in the network).
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "mnist"},
            "sde": {"name": "vp", "beta_min": 0.1, "beta_max": 20.0},
            "model": {
                "name": "ncsnpp",
                "nf": 32,
                "ch_mult": (1, 2, 2),
                "num_res_blocks": 1,
                "attn_resolutions": (7,),
                "dropout": 0.0,
            },
            "objective": {"matching": "dsm", "weighting": "simple", "time_conditioning": "t999"},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 500, "ema_decay": 0.999, "ema_warmup": True},
            "train": {
                "steps": 10_000,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 1000,
                "sample_every": 1000,
                "checkpoint_every": 1000,
            },
            "sampling": {"sampler": "em", "steps": 250, "grid": "uniform"},
        }
    )
