"""NCSNv2 on CelebA 64 x 64 (Song & Ermon 2020): 500 noise levels.

Command:   python -m sgmjax.train --config=configs/ncsnv2_celeba64.py
Data:      a folder of CelebA images, --config.data.data_dir; they are cut to squares and shrunk (published: the central
           140 x 140 pixels first)
Hardware:  published: 210,000 steps of 128 images; not trained to the end with this code
Expected:  published: FID 10.23 with 2,501 evaluations

Values of ermongroup/ncsnv2, configs/celeba.yml. Data in [0, 1], uniform start, as there.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "folder", "flip": True, "centered": False, "image_size": 64},
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 90.0},
            "model": {"name": "ncsnv2", "ngf": 128},
            "objective": {
                "matching": "dsm",
                "weighting": "annealed",
                "anneal_power": 2.0,
                "parameterization": "score",
                "time_conditioning": "sigma",
                "time_sampling": "levels",
                "num_levels": 500,
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
                "steps": 210_000,
                "batch_size": 128,
                "log_every": 100,
                "eval_every": 5000,
                "sample_every": 5000,
                "checkpoint_every": 5000,
            },
            "sampling": {
                "sampler": "annealed_langevin",
                "options": {"step_size": 3.3e-06, "steps_per_level": 5, "start": "uniform"},
                "grid": "levels",
                "steps": 500 * 5 + 1,
                "num": 10000,
                "batch_size": 100,
            },
        }
    )
