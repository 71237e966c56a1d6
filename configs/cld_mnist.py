"""CLD on MNIST, with a network that learns on a laptop.

Command:   python -m sgmjax.train --config=configs/cld_mnist.py
Data:      TFDS `mnist`, prepared once: python -m sgmjax.data.prepare mnist
Hardware:  two CPU cores are enough; an accelerator does it in minutes
Expected:  samples/final.png shows handwritten digits

Ours, not published: a small DDPM++ on the process and the mixed score of Dockhorn et al. 2022.
Images keep their 28 x 28 pixels (28, 14 and 7 in the network).
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "psld_mnist",
        {
            "sde": {"name": "cld", "beta_min": 4.0, "beta_max": 4.0, "m_inv": 4.0, "kappa": 0.04},
            "objective": {"weighting": "reweightedv2", "parameterization": "mixed"},
        },
    )
