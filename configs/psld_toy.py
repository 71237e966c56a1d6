"""PSLD on the multimodal Swiss roll in the plane.

Command:   python -m sgmjax.train --config=configs/psld_toy.py
Data:      generated
Hardware:  two CPU cores, a few minutes
Expected:  samples/final.png shows five small rolls, one in the middle and one near each corner

Ours, not published; the data are those of CLD's toy experiment (Dockhorn et al. 2022).
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "multimodal_swiss_roll"},
            "sde": {"name": "psld", "beta_min": 8.0, "beta_max": 8.0, "gamma": 0.01, "nu": 4.01, "kappa": 0.04},
            "model": {"name": "mlp", "width": 128, "depth": 4},
            "objective": {"matching": "hsm", "weighting": "simple"},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 200, "ema_decay": 0.999, "ema_warmup": True},
            "train": {
                "steps": 20_000,
                "batch_size": 512,
                "steps_per_dispatch": 10,
                "log_every": 200,
                "eval_every": 5000,
                "sample_every": 5000,
                "checkpoint_every": 5000,
            },
            "sampling": {"sampler": "sscs", "steps": 100, "grid": "quadratic", "num": 10_000, "batch_size": 10_000},
        }
    )
