"""LSGM on CIFAR-10, the model with the best likelihood (Vahdat et al. 2021).

Command:   python -m sgmjax.train --config=configs/lsgm_cifar_nll.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 4 GPUs for the VAE, 2 x 8 of 32 GB for the second stage, mixed precision; not trained to
           the end with this code
Expected:  published: NELBO 2.87 bits/dim (python -m sgmjax.evaluate --metrics=nelbo)

Values of the commands in NVlabs/LSGM's README: the VAE for 400 epochs, then both for 1,875, at 195 steps of 256
images an epoch. Geometric VP down to t = 0, where the kernel has variance sigma2_0.
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "lsgm_cifar_fid",
        {
            "sde": {"name": "geometric_vp", "sigma2_min": 3e-05, "sigma2_max": 0.999, "sigma2_0": 3e-05},
            "objective": {"t_min": 0.0},
            "vae": {
                "encoder_channels": 256,
                "decoder_channels": 256,
                "groups_per_scale": 4,
                "latents_per_group": 45,
                "preprocess_cells": 3,
                "postprocess_cells": 3,
                "encoder_cells": 3,
                "decoder_cells": 3,
                "num_flows": 2,
            },
            "latent": {"p_weighting": "ll_uniform", "prior_spectral_convolutions": True},
        },
    )
