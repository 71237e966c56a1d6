"""NCSNv2 on CIFAR-10 (Song & Ermon 2020): 232 noise levels, 29.7M parameters.

Command:   python -m sgmjax.train --config=configs/ncsnv2_cifar.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 300,000 steps of 128 images; not trained to the end with this code
Expected:  published: FID 10.87 with 1,161 evaluations, the last of which denoises

Values of ermongroup/ncsnv2, configs/cifar10.yml. Data in [0, 1], uniform start, as there.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "cifar10", "flip": True, "centered": False},
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0},
            "model": {"name": "ncsnv2", "ngf": 128},
            "objective": {
                "matching": "dsm",
                "weighting": "annealed",
                "anneal_power": 2.0,
                "parameterization": "score",
                "time_conditioning": "sigma",
                "time_sampling": "levels",
                "num_levels": 232,
                "reduce": "half_sum",
            },
            "optimizer": {
                "learning_rate": 0.0001,
                "eps": 1e-8,
                "warmup_steps": 0,
                "grad_clip": None,
                "ema_decay": 0.999,
                "ema_warmup": False,
            },
            "train": {
                "steps": 300_000,
                "batch_size": 128,
                "log_every": 100,
                "eval_every": 5000,
                "sample_every": 5000,
                "checkpoint_every": 5000,
            },
            "sampling": {
                "sampler": "annealed_langevin",
                "options": {"step_size": 6.2e-06, "steps_per_level": 5, "start": "uniform"},
                "grid": "levels",
                "steps": 232 * 5 + 1,
                "num": 50_000,
                "batch_size": 100,
            },
        }
    )
