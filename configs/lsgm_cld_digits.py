"""CLD in the latent space of a VAE, on scikit-learn's handwritten digits (8 x 8), binary or grey.

Command:   python -m sgmjax.train --config=configs/lsgm_cld_digits.py    # binary; grey: lsgm_cld_digits.py:grey
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores
Expected:  samples/final.png shows digits that a person can read

Ours, not published: lsgm_digits.py with the process of Dockhorn et al. 2022 as its prior, and the cross-entropy
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
            "sde": {"name": "cld", "beta_min": 4.0, "beta_max": 4.0, "m_inv": 4.0, "kappa": 0.04},
            "objective": {"t_min": 1e-05},
        },
    )
