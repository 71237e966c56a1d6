"""NCSNv2 on FFHQ 256 x 256 (Song & Ermon 2020): 2,311 noise levels, 94.1M parameters.

Command:   python -m sgmjax.train --config=configs/ncsnv2_ffhq256.py
Data:      a folder of FFHQ images, --config.data.data_dir
Hardware:  published: 80,000 steps of 32 images; not trained to the end with this code
Expected:  no FID is published

Values of ermongroup/ncsnv2, configs/ffhq.yml. Data in [0, 1], uniform start, as there.
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
                "image_size": 256,
                "range": None,
                "flip": True,
                "centered": False,
                "uniform_dequantization": False,
                "binarize": "none",
                "in_memory": None,
                "memory_limit_gb": 2.0,
                "num_samples": 50000,
            },
            "sde": {"sigma_max": 348.0},
            "model": {"variant": "deepest"},
            "objective": {"num_levels": 2311},
            "optimizer": {"eps": 0.001},
            "train": {"batch_size": 32, "steps": 80000},
            "sampling": {
                "options": {"start": "uniform", "step_size": 9e-07, "steps_per_level": 3},
                "steps": 6934,
                "num": 10000,
                "batch_size": 36,
            },
        },
    )
