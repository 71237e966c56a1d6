"""A denoiser of scikit-learn's handwritten digits (8 x 8), which samples with every process.

Command:   python -m sgmjax.train --config=configs/edm_digits.py
           python -m sgmjax.sample --workdir=runs/edm_digits --process=psld --process.gamma=0.02 --sampler=sscs
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores, about five minutes
Expected:  samples/final.png shows digits that a person can read; docs/one_denoiser.md has the distances, by process

Ours, not published: the network of `configs/digits.py` with the preconditioning, loss and noise levels of Karras et al.
2022, sampled as there: 18 steps of Heun's method from sigma = 80 to 0.002.
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "psld_digits",
        {
            "sde": {"name": "edm", "sigma_max": 80.0},
            "objective": {
                "parameterization": "edm",
                "time_conditioning": "log_sigma",
                "time_sampling": "log_normal",
            },
            "sampling": {"sampler": "edm", "steps": 35, "grid": "rho", "t_min": 0.002 / 80, "denoise": "tweedie"},
        },
    )
