"""PSLD in the latent space of LSGM's CIFAR-10 model with the best FID.

Command:   python -m sgmjax.train --config=configs/lsgm_psld_cifar.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  as lsgm_cifar_fid.py, whose settings they are but for the process; not trained to the end with this code
Expected:  samples

Ours, not published: LSGM (Vahdat et al. 2021) with the process of Pandey & Mandt 2023 as its prior and the
cross-entropy bound of docs/latent_prior.md. To compare priors on one VAE, train it alone and give it to both:

    python -m sgmjax.train --config=configs/lsgm_cifar_fid.py --workdir=runs/vae_cifar --config.train.steps=78000
    (each) --config.latent.vae_from=runs/vae_cifar --config.latent.vae_steps=0 --config.train.steps=365625
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "lsgm_cifar_fid",
        {
            "sde": {
                "name": "psld",
                "beta_min": 8.0,
                "beta_max": 8.0,
                "gamma": 0.01,
                "nu": 4.01,
                "kappa": 0.04,
            },
            "objective": {"t_min": 1e-05},
            "sampling": {"t_min": 1e-05},
        },
    )
