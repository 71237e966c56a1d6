"""NCSNv2 on LSUN towers, 128 x 128 (Song & Ermon 2020): 1,086 noise levels, 83.4M parameters.

Command:   python -m sgmjax.train --config=configs/ncsnv2_tower128.py
Data:      a folder of LSUN tower images, --config.data.data_dir; they are cut to squares and shrunk
Hardware:  published: 150,000 steps of 128 images; not trained to the end with this code
Expected:  no FID is published

Values of ermongroup/ncsnv2, configs/tower.yml. Data in [0, 1], uniform start, as there.
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "ncsnv2_bedroom128",
        {},
    )
