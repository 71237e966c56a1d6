"""NCSNv2 on scikit-learn's 1,797 handwritten digits (8 x 8), with a network that learns in minutes.

Command:   python -m sgmjax.train --config=configs/ncsnv2_digits.py
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores, 0.25 seconds of CPU time a step: an estimated six minutes with compilation and sampling if
           they are idle (measured with several other programs on them: 18 minutes)
Expected:  samples/final.png shows digits, most of which a person can read; pixel-space Frechet distance of 500 samples
           to the training set 0.141, where 500 images of that set are 0.046 away; held-out loss 8.7

Ours, not published; the levels are those that `python -m sgmjax.noise_levels --config=configs/ncsnv2_digits.py`
recommends: sigma_1 by technique 1, 22 of them by technique 2, and the step size by technique 4 (left to the sampler).
"""

from sgmjax.config import complete


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
                "learning_rate": 2e-3,
                "learning_rate_min": 1e-5,
                "warmup_steps": 100,
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
