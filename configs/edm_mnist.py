"""A denoiser of MNIST, which samples with every process.

Command:   python -m sgmjax.train --config=configs/edm_mnist.py
           python -m sgmjax.sample --workdir=runs/edm_mnist --process=psld --process.gamma=0.02 --sampler=sscs
Data:      TFDS `mnist`, prepared once: python -m sgmjax.data.prepare mnist
Hardware:  an accelerator. On two CPU cores with a network of half the width half an hour: --config.model.nf=16
           --config.train.batch_size=32 --config.train.steps=2000 --config.optimizer.warmup_steps=200
Expected:  samples/final.png shows handwritten digits; docs/one_denoiser.md has the distances, by process

Ours, not published: the network of `configs/psld_mnist.py` with the preconditioning, loss and noise levels of Karras et
al. 2022. Images keep their 28 x 28 pixels (28, 14 and 7 in the network).
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "psld_mnist",
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
