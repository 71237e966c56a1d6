"""NCSNv2 on CelebA 64 x 64 (Song & Ermon 2020): 500 noise levels.

Command:   python -m sgmjax.train --config=configs/ncsnv2_celeba64.py
Data:      a folder of CelebA images, --config.data.data_dir; they are cut to squares and shrunk (published: the central
           140 x 140 pixels first)
Hardware:  published: 210,000 steps of 128 images; not trained to the end with this code
Expected:  published: FID 10.23 with 2,501 evaluations

Values of ermongroup/ncsnv2, configs/celeba.yml. Data in [0, 1], uniform start, as there.
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
                "image_size": 64,
                "range": None,
                "flip": True,
                "centered": False,
                "uniform_dequantization": False,
                "binarize": "none",
                "in_memory": None,
                "memory_limit_gb": 2.0,
                "num_samples": 50000,
            },
            "sde": {"sigma_max": 90.0},
            "objective": {"num_levels": 500},
            "train": {"steps": 210000},
            "sampling": {
                "options": {"start": "uniform", "step_size": 3.3e-06, "steps_per_level": 5},
                "steps": 2501,
                "num": 10000,
            },
        },
    )
