"""PSLD on scikit-learn's 1,797 handwritten digits (8 x 8): what `python -m sgmjax.train` runs.

Command:   python -m sgmjax.train --config=configs/psld_digits.py
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores, under five minutes (measured: 4 min 9 s on two shared ones, compilation and sampling included)
Expected:  samples/final.png shows digits that a person can read, of all ten classes; pixel-space Frechet distance to
           the training set about 0.08 to 0.09, where two halves of the set are 0.076 apart

Ours, not published: a small DDPM++ on the published process (Pandey & Mandt 2023).
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "digits"},
            "sde": {"name": "psld", "beta_min": 8.0, "beta_max": 8.0, "gamma": 0.01, "nu": 4.01, "kappa": 0.04},
            "model": {
                "name": "ncsnpp",
                "nf": 32,
                "ch_mult": (1, 1),
                "num_res_blocks": 1,
                "attn_resolutions": (4,),
                "dropout": 0.0,
            },
            "objective": {"matching": "hsm", "weighting": "simple", "time_conditioning": "t999"},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 200, "ema_decay": 0.999, "ema_warmup": True},
            "train": {
                "steps": 2000,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 500,
                "sample_every": 500,
                "checkpoint_every": 500,
            },
            "sampling": {"sampler": "sscs", "steps": 50, "grid": "quadratic", "num": 1000, "batch_size": 500},
        }
    )
