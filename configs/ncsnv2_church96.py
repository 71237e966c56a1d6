"""NCSNv2 on LSUN churches, 96 x 96 (Song & Ermon 2020): 788 noise levels.

Command:   python -m sgmjax.train --config=configs/ncsnv2_church96.py
Data:      a folder of LSUN church_outdoor images, --config.data.data_dir; they are cut to squares and shrunk
Hardware:  published: 200,000 steps of 128 images; not trained to the end with this code
Expected:  no FID is published

Values of ermongroup/ncsnv2, configs/church.yml. Data in [0, 1], uniform start, as there. The file says
image_size 64, but its levels are those of technique 2 for 96 pixels. Its step size is twice that of
technique 4, for a variance ratio of 1.0247 in place of 1.0224.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "folder", "flip": True, "centered": False, "image_size": 96},
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 140.0},
            "model": {"name": "ncsnv2", "variant": "deeper", "ngf": 128},
            "objective": {
                "matching": "dsm",
                "weighting": "annealed",
                "anneal_power": 2.0,
                "parameterization": "score",
                "time_conditioning": "sigma",
                "time_sampling": "levels",
                "num_levels": 788,
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
                "steps": 200_000,
                "batch_size": 128,
                "log_every": 100,
                "eval_every": 5000,
                "sample_every": 5000,
                "checkpoint_every": 5000,
            },
            "sampling": {
                "sampler": "annealed_langevin",
                "options": {"step_size": 4.9e-06, "steps_per_level": 4, "start": "uniform"},
                "grid": "levels",
                "steps": 788 * 4 + 1,
                "num": 10000,
                "batch_size": 100,
            },
        }
    )
