"""A process of one's own: a position coupled to a fast and a slow momentum, on the multimodal Swiss roll.

Command:   python -m sgmjax.train --config=configs/recipe_toy.py
Data:      generated
Hardware:  two CPU cores, a few minutes
Expected:  samples/final.png shows five small rolls, one in the middle and one near each corner

None of the named processes. Any symmetric positive semi-definite D, skew-symmetric Q and covariance Sigma_inf make one
(the complete recipe, Pandey & Mandt 2023, section 3; Ma et al. 2015): F = -(D + Q) Sigma_inf^-1 and G G^T = 2 D leave
N(0, Sigma_inf) invariant. Kernel, loss and samplers follow from the matrices alone. To make another one change them
here; a D that can never noise some variable is an error that says which.
"""

from sgmjax.config import complete

MASS = 0.25  # of both momenta
FRICTION = (0.05, 0.5, 0.2)  # of position, fast and slow momentum
COUPLING = (0.5, 0.25)  # of the position with each momentum
KAPPA = 0.04  # momenta start with variance KAPPA * MASS


def get_config():
    fast, slow = COUPLING
    return complete(
        {
            "data": {"name": "multimodal_swiss_roll"},
            "sde": {
                "name": "recipe",
                "D": ((FRICTION[0], 0.0, 0.0), (0.0, FRICTION[1], 0.0), (0.0, 0.0, FRICTION[2])),
                "Q": ((0.0, -fast, -slow), (fast, 0.0, 0.0), (slow, 0.0, 0.0)),
                "Sigma_inf": ((1.0, 0.0, 0.0), (0.0, MASS, 0.0), (0.0, 0.0, MASS)),
                "Sigma_0": ((KAPPA * MASS, 0.0), (0.0, KAPPA * MASS)),
                "beta_min": 8.0,
                "beta_max": 8.0,
            },
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
