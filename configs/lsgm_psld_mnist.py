"""PSLD in the latent space of LSGM's MNIST model.

Command:   python -m sgmjax.train --config=configs/lsgm_psld_mnist.py
Data:      TFDS `mnist`, prepared once: python -m sgmjax.data.prepare mnist
Hardware:  as lsgm_mnist.py, whose settings they are but for the process; not trained to the end with this code
Expected:  samples; --metrics=nelbo of sgmjax.evaluate for the bound

Ours, not published: LSGM (Vahdat et al. 2021) with the process of Pandey & Mandt 2023 as its prior and the
cross-entropy bound of docs/latent_prior.md. To compare priors on one VAE, train it alone and give it to all:

    python -m sgmjax.train --config=configs/lsgm_mnist.py:vae
    (each) --config.latent.vae_from=runs/lsgm_mnist_vae --config.latent.vae_steps=0 --config.train.steps=374400
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "lsgm_mnist",
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
        },
    )
