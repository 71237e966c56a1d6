"""NCSNv2 on LSUN churches, 96 x 96 (Song & Ermon 2020): 788 noise levels.

Command:   python -m sgmjax.train --config=configs/ncsnv2_church96.py
Data:      a folder of LSUN church_outdoor images, --config.data.data_dir; they are cut to squares and shrunk
Hardware:  published: 200,000 steps of 128 images; not trained to the end with this code
Expected:  no FID is published

Values of ermongroup/ncsnv2, configs/church.yml. Data in [0, 1], uniform start, as there. The file says
image_size 64, but its levels are those of technique 2 for 96 pixels. Its step size is twice that of
technique 4, for a variance ratio of 1.0247 in place of 1.0224.
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "ncsnv2_cifar",
        {
            "data": {
                "name": "folder",
                "data_dir": None,
                "path": None,
                "split": "train",
                "eval_split": "test",
                "image_size": 96,
                "range": None,
                "flip": True,
                "centered": False,
                "uniform_dequantization": False,
                "binarize": "none",
                "in_memory": None,
                "memory_limit_gb": 2.0,
                "num_samples": 50000,
            },
            "sde": {"sigma_max": 140.0},
            "model": {"variant": "deeper"},
            "objective": {"num_levels": 788},
            "train": {"steps": 200000},
            "sampling": {
                "options": {"start": "uniform", "step_size": 4.9e-06, "steps_per_level": 4},
                "steps": 3153,
                "num": 10000,
            },
        },
    )
