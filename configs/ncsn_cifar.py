"""NCSN on CIFAR-10 (Song & Ermon 2019), the first version: 10 noise levels, 30.1M parameters.

Command:   python -m sgmjax.train --config=configs/ncsn_cifar.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 300,000 steps of 128 images; not trained to the end with this code
Expected:  see the paper of 2019; 1,000 evaluations

Values of ermongroup/ncsnv2, configs/ncsn_original.yml: a network that is told the level by its norms, no averaged
parameters, no denoising, data dequantised uniformly.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "cifar10", "flip": True, "centered": False, "uniform_dequantization": True},
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 1.0},
            "model": {"name": "ncsn", "ngf": 128, "num_levels": 10},
            "objective": {
                "matching": "dsm",
                "weighting": "annealed",
                "anneal_power": 2.0,
                "parameterization": "score",
                "time_conditioning": "level",
                "time_sampling": "levels",
                "num_levels": 10,
                "reduce": "half_sum",
            },
            "optimizer": {
                "learning_rate": 0.001,
                "eps": 1e-8,
                "warmup_steps": 0,
                "grad_clip": None,
                "ema_decay": 0.0,
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
                "options": {"step_size": 2e-05, "steps_per_level": 100, "start": "uniform"},
                "grid": "levels",
                "steps": 10 * 100,
                "denoise": False,
                "num": 50_000,
                "batch_size": 100,
            },
        }
    )
