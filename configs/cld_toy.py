"""CLD on the multimodal Swiss roll in the plane.

Command:   python -m sgmjax.train --config=configs/cld_toy.py
Data:      generated
Hardware:  two CPU cores, a few minutes
Expected:  samples/final.png shows five small rolls, one in the middle and one near each corner

Process, loss, learning rate, batch and EMA are those of the official toy run (Dockhorn et al. 2022; nv-tlabs/CLD-SGM,
default_toy_data); the network is this project's residual MLP, and the run is 20,000 steps, not 800,000.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "multimodal_swiss_roll"},
            "sde": {"name": "cld", "beta_min": 4.0, "beta_max": 4.0, "m_inv": 4.0, "kappa": 0.04},
            "model": {"name": "mlp", "width": 128, "depth": 4},
            "objective": {"matching": "hsm", "weighting": "reweightedv2", "reduce": "sum"},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0, "ema_decay": 0.999, "ema_warmup": True},
            "train": {
                "steps": 20_000,
                "batch_size": 512,
                "steps_per_dispatch": 10,
                "log_every": 200,
                "eval_every": 5000,
                "sample_every": 5000,
                "checkpoint_every": 5000,
            },
            "sampling": {"sampler": "ode", "t_min": 1e-3, "num": 10_000, "batch_size": 10_000},
        }
    )
