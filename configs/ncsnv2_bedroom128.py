"""NCSNv2 on LSUN bedrooms, 128 x 128 (Song & Ermon 2020): 1,086 noise levels, 83.4M parameters.

Command:   python -m sgmjax.train --config=configs/ncsnv2_bedroom128.py
Data:      a folder of LSUN bedroom images, --config.data.data_dir; they are cut to squares and shrunk
Hardware:  published: 150,000 steps of 128 images; not trained to the end with this code
Expected:  no FID is published

Values of ermongroup/ncsnv2, configs/bedroom.yml. Data in [0, 1], uniform start, as there.
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
                "image_size": 128,
                "range": None,
                "flip": True,
                "centered": False,
                "uniform_dequantization": False,
                "binarize": "none",
                "in_memory": None,
                "memory_limit_gb": 2.0,
                "num_samples": 50000,
            },
            "sde": {"sigma_max": 190.0},
            "model": {"variant": "deeper"},
            "objective": {"num_levels": 1086},
            "train": {"steps": 150000},
            "sampling": {
                "options": {"start": "uniform", "step_size": 1.8e-06, "steps_per_level": 3},
                "steps": 3259,
                "num": 10000,
                "batch_size": 36,
            },
        },
    )
