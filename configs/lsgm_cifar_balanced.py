"""LSGM on CIFAR-10, the model balanced between FID and likelihood (Vahdat et al. 2021).

Command:   python -m sgmjax.train --config=configs/lsgm_cifar_balanced.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 8 GPUs for the VAE, 2 x 8 of 32 GB for the second stage, mixed precision; not trained to
           the end with this code
Expected:  samples; --metrics=nelbo of sgmjax.evaluate for the bound

Values of the commands in NVlabs/LSGM's README: the VAE for 600 epochs, then both for 1,875, at 195 steps of 256
images an epoch. The VAE's KL reaches its whole weight half way through the first stage and keeps it. Spectral
regularisation of the prior acts on the gains of its norms only, as published (--custom_conv_dae); after NaN set
latent.prior_spectral_convolutions to True.
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "lsgm_cifar_fid",
        {
            "train": {"steps": 482625},
            "vae": {"kl_max": 1.0, "kl_anneal_portion": 0.5},
            "latent": {"vae_steps": 117000, "kl_min": 1.0},
        },
    )
