"""NCSNv2 on FFHQ 256 x 256 (Song & Ermon 2020): 2,311 noise levels, 94.1M parameters.

Command:   python -m sgmjax.train --config=configs/ncsnv2_ffhq256.py
Data:      a folder of FFHQ images, --config.data.data_dir
Hardware:  published: 80,000 steps of 32 images; not trained to the end with this code
Expected:  no FID is published

Values of ermongroup/ncsnv2, configs/ffhq.yml. Data in [0, 1], uniform start, as there.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "folder", "flip": True, "centered": False, "image_size": 256},
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 348.0},
            "model": {"name": "ncsnv2", "variant": "deepest", "ngf": 128},
            "objective": {
                "matching": "dsm",
                "weighting": "annealed",
                "anneal_power": 2.0,
                "parameterization": "score",
                "time_conditioning": "sigma",
                "time_sampling": "levels",
                "num_levels": 2311,
                "reduce": "half_sum",
            },
            "optimizer": {
                "learning_rate": 0.0001,
                "eps": 1e-3,
                "warmup_steps": 0,
                "grad_clip": None,
                "ema_decay": 0.999,
                "ema_warmup": False,
            },
            "train": {
                "steps": 80_000,
                "batch_size": 32,
                "log_every": 100,
                "eval_every": 5000,
                "sample_every": 5000,
                "checkpoint_every": 5000,
            },
            "sampling": {
                "sampler": "annealed_langevin",
                "options": {"step_size": 9e-07, "steps_per_level": 3, "start": "uniform"},
                "grid": "levels",
                "steps": 2311 * 3 + 1,
                "num": 10000,
                "batch_size": 36,
            },
        }
    )
