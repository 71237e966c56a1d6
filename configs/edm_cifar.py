"""EDM on CIFAR-10 (Karras et al. 2022): a denoiser, DDPM++'s network of 55.7M parameters; samples with every process.

Command:   python -m sgmjax.train --config=configs/edm_cifar.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 200 million images in batches of 512, two days on eight V100; not trained to the end here
Expected:  published, with augmentation, which is not here: FID 1.97 by 35 evaluations of Heun's method

Values of NVlabs/edm, train.py with --cond=0 --arch=ddpmpp and the published table 7 (configuration "EDM"): a learning
rate of 1e-3 after 10 million images, no clipping, an average with a half-life of half a million images, that is
2^(-512 / 500,000) a step.
"""

from sgmjax.config import complete

BATCH = 512


def get_config():
    return complete(
        {
            "data": {"name": "cifar10", "flip": True},
            "sde": {"name": "edm", "sigma_max": 80.0},
            "model": {
                "name": "ncsnpp",
                "nf": 128,
                "ch_mult": (2, 2, 2),
                "num_res_blocks": 4,
                "attn_resolutions": (16,),
                "dropout": 0.13,
            },
            "objective": {
                "parameterization": "edm",
                "time_conditioning": "log_sigma",
                "time_sampling": "log_normal",
            },
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_steps": 10_000_000 // BATCH,
                "grad_clip": None,
                "ema_decay": 2 ** (-BATCH / 500_000),
                "ema_warmup": True,
            },
            "train": {
                "steps": 200_000_000 // BATCH,
                "batch_size": BATCH,
                "log_every": 100,
                "eval_every": 10_000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {
                "sampler": "edm",
                "steps": 35,
                "grid": "rho",
                "t_min": 0.002 / 80,
                "denoise": "tweedie",
                "num": 50_000,
            },
        }
    )
