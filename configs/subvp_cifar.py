"""Sub-VP on CIFAR-10 (Song et al. 2021): DDPM++ deep, continuous, of 106.6M parameters.

Command:   python -m sgmjax.train --config=configs/subvp_cifar.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 950,000 steps of 128 images; not trained to the end with this code
Expected:  published: FID 2.92 and 2.99 bits/dim, both by the probability-flow ODE

Values of yang-song/score_sde_pytorch, configs/subvp/cifar10_ddpmpp_deep_continuous.py.
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "vp_cifar",
        {
            "sde": {"name": "subvp", "beta_min": 0.1, "beta_max": 20.0},
            "sampling": {
                "sampler": "ode",
                "options": {},
                "steps": 50,
                "grid": "quadratic",
                "denoise": True,
                "rtol": 1e-05,
                "atol": 1e-05,
            },
        },
    )
