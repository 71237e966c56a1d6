"""NCSNv2 on LSUN bedrooms, 128 x 128 (Song & Ermon 2020): 1,086 noise levels, 83.4M parameters.

Command:   python -m sgmjax.train --config=configs/ncsnv2_bedroom128.py
Data:      a folder of LSUN bedroom images, --config.data.data_dir; they are cut to squares and shrunk
Hardware:  published: 150,000 steps of 128 images; not trained to the end with this code
Expected:  no FID is published

Values of ermongroup/ncsnv2, configs/bedroom.yml. Data in [0, 1], uniform start, as there.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "folder", "flip": True, "centered": False, "image_size": 128},
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 190.0},
            "model": {"name": "ncsnv2", "variant": "deeper", "ngf": 128},
            "objective": {
                "matching": "dsm",
                "weighting": "annealed",
                "anneal_power": 2.0,
                "parameterization": "score",
                "time_conditioning": "sigma",
                "time_sampling": "levels",
                "num_levels": 1086,
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
                "steps": 150_000,
                "batch_size": 128,
                "log_every": 100,
                "eval_every": 5000,
                "sample_every": 5000,
                "checkpoint_every": 5000,
            },
            "sampling": {
                "sampler": "annealed_langevin",
                "options": {"step_size": 1.8e-06, "steps_per_level": 3, "start": "uniform"},
                "grid": "levels",
                "steps": 1086 * 3 + 1,
                "num": 10000,
                "batch_size": 36,
            },
        }
    )
