"""Sub-VP on CIFAR-10 (Song et al. 2021): DDPM++ deep, continuous, of 106.6M parameters.

Command:   python -m sgmjax.train --config=configs/subvp_cifar.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 950,000 steps of 128 images; not trained to the end with this code
Expected:  published: FID 2.92 and 2.99 bits/dim, both by the probability-flow ODE

Values of yang-song/score_sde_pytorch, configs/subvp/cifar10_ddpmpp_deep_continuous.py.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "cifar10", "flip": True},
            "sde": {"name": "subvp", "beta_min": 0.1, "beta_max": 20.0},
            "model": {
                "name": "ncsnpp",
                "nf": 128,
                "ch_mult": (1, 2, 2, 2),
                "num_res_blocks": 8,
                "attn_resolutions": (16,),
                "dropout": 0.1,
                "embedding_type": "positional",
            },
            "objective": {"matching": "dsm", "weighting": "simple", "time_conditioning": "t999", "t_min": 1e-5},
            "optimizer": {
                "learning_rate": 2e-4,
                "warmup_steps": 5000,
                "grad_clip": 1.0,
                "ema_decay": 0.9999,
                "ema_warmup": True,
            },
            "train": {
                "steps": 950_000,
                "batch_size": 128,
                "log_every": 100,
                "eval_every": 10_000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {"sampler": "ode", "rtol": 1e-5, "atol": 1e-5, "t_min": 1e-3, "num": 50_000},
        }
    )
