"""NCSNv2 on scikit-learn's 1,797 handwritten digits (8 x 8), with a network that learns in minutes.

Command:   python -m sgmjax.train --config=configs/ncsnv2_digits.py
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores, minutes
Expected:  samples/final.png shows digits that a person can read

Ours, not published; the levels are those that `python -m sgmjax.noise_levels --config=configs/ncsnv2_digits.py`
recommends: sigma_1 by technique 1, 22 of them by technique 2, and the step size by technique 4 (left to the sampler).
"""

from sgmjax.training.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "digits", "centered": False},
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 4.82},
            "model": {"name": "ncsnv2", "ngf": 32},
            "objective": {
                "matching": "dsm",
                "weighting": "annealed",
                "parameterization": "score",
                "time_conditioning": "sigma",
                "time_sampling": "levels",
                "num_levels": 22,
                "reduce": "half_sum",
            },
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_steps": 0,
                "grad_clip": None,
                "ema_decay": 0.999,
                "ema_warmup": True,
            },
            "train": {
                "steps": 2000,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 500,
                "sample_every": 500,
                "checkpoint_every": 500,
            },
            "sampling": {
                "sampler": "annealed_langevin",
                "options": {"steps_per_level": 5, "start": "uniform"},
                "grid": "levels",
                "steps": 22 * 5 + 1,
                "num": 1000,
                "batch_size": 500,
            },
        }
    )
