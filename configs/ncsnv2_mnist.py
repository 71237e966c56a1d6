"""NCSNv2 on MNIST, with a network that learns on one accelerator in minutes.

Command:   python -m sgmjax.train --config=configs/ncsnv2_mnist.py
Data:      TFDS `mnist`, prepared once: python -m sgmjax.data.prepare mnist
Hardware:  one accelerator, minutes; two CPU cores, hours
Expected:  samples/final.png shows handwritten digits

Ours, not published; the levels and the step size are what `python -m sgmjax.noise_levels
--config=configs/ncsnv2_mnist.py` recommends (the step size is left to the sampler).
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "mnist", "centered": False},
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 16.9},
            "model": {"name": "ncsnv2", "ngf": 32},
            "objective": {
                "matching": "dsm",
                "weighting": "annealed",
                "anneal_power": 2.0,
                "parameterization": "score",
                "time_conditioning": "sigma",
                "time_sampling": "levels",
                "num_levels": 100,
                "reduce": "half_sum",
            },
            "optimizer": {
                "learning_rate": 0.001,
                "eps": 1e-8,
                "warmup_steps": 0,
                "grad_clip": None,
                "ema_decay": 0.999,
                "ema_warmup": True,
            },
            "train": {
                "steps": 10_000,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 1000,
                "sample_every": 1000,
                "checkpoint_every": 1000,
            },
            "sampling": {
                "sampler": "annealed_langevin",
                "options": {"steps_per_level": 5, "start": "uniform"},
                "grid": "levels",
                "steps": 100 * 5 + 1,
                "num": 1000,
                "batch_size": 250,
            },
        }
    )
