"""A classifier of noised digits (8 x 8), to guide the run of psld_digits.

Command:   python -m sgmjax.train --config=configs/classifier_digits.py
           then python -m sgmjax.sample --workdir=runs/psld_digits --classifier=runs/classifier_digits --labels=3
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores, about a minute
Expected:  on held-out digits right (measured) 97% of the time at t = 0.001, 94% at t = 0.1, 70% at t = 0.2, 38% at
           t = 0.3, and by chance at t = 1

Ours, not published: a small encoder of NCSN++ on the published process (Pandey & Mandt 2023).
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "digits"},
            "sde": {"name": "psld", "beta_min": 8.0, "beta_max": 8.0, "gamma": 0.01, "nu": 4.01, "kappa": 0.04},
            "model": {
                "name": "ncsnpp_classifier",
                "nf": 32,
                "ch_mult": (1, 1),
                "num_res_blocks": 1,
                "attn_resolutions": (4,),
                "dropout": 0.1,
            },
            "objective": {"matching": "hsm", "time_conditioning": "t999"},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 100, "ema_decay": 0.999, "ema_warmup": True},
            "train": {
                "steps": 1500,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 500,
                "eval_batches": None,
                "checkpoint_every": 500,
            },
        }
    )
