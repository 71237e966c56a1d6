"""PSLD in the latent space of a VAE, on scikit-learn's handwritten digits (8 x 8), binary or grey.

Command:   python -m sgmjax.train --config=configs/lsgm_psld_digits.py    # binary; grey: lsgm_psld_digits.py:grey
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores
Expected:  samples/final.png shows digits that a person can read

Ours, not published: lsgm_digits.py with the process of Pandey & Mandt 2023 as its prior, and the cross-entropy
bound of docs/latent_prior.md. To compare priors on one VAE, train it alone and give it to all:

    python -m sgmjax.train --config=configs/lsgm_digits.py --workdir=runs/vae_digits --config.train.steps=1500
    (each) --config.latent.vae_from=runs/vae_digits --config.latent.vae_steps=0 --config.train.steps=2000
"""

from sgmjax.config import relative


def get_config(kind: str = "binary"):
    return relative(
        __file__,
        f"lsgm_digits:{kind}",
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
