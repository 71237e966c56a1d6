"""CLD on CIFAR-10 (Dockhorn et al. 2022): NCSN++ of 107.6M parameters with the mixed score.

Command:   python -m sgmjax.train --config=configs/cld_cifar.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 2 x 8 GPUs, 8 images each, 800,000 steps, mixed precision; not trained to the end with this code
Expected:  published: FID 2.25 at 312 evaluations (this sampler), 2.27 at 1,000 steps of em on the quadratic grid

Values of nv-tlabs/CLD-SGM, default_cifar10 and specific_cifar10 (their gamma is kappa here).
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "cifar10", "flip": True},
            "sde": {
                "name": "cld",
                "beta_min": 4.0,
                "beta_max": 4.0,
                "m_inv": 4.0,
                "kappa": 0.04,
                "numerical_eps": 1e-9,
            },
            "model": {
                "name": "ncsnpp",
                "nf": 128,
                "ch_mult": (1, 2, 2, 2),
                "num_res_blocks": 8,
                "attn_resolutions": (16,),
                "dropout": 0.1,
                "fir": True,
                "progressive_input": "residual",
                "embedding_type": "fourier",
            },
            "objective": {
                "matching": "hsm",
                "weighting": "reweightedv2",
                "parameterization": "mixed",
                "reduce": "sum",
                "t_min": 1e-5,
            },
            "optimizer": {
                "learning_rate": 2e-4,
                "warmup_steps": 100_000,
                "grad_clip": 1.0,
                "ema_decay": 0.9999,
                "ema_warmup": True,
            },
            "train": {
                "steps": 800_000,
                "batch_size": 128,
                "log_every": 100,
                "eval_every": 20_000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {"sampler": "ode", "rtol": 1e-5, "atol": 1e-5, "t_min": 1e-3, "num": 50_000},
        }
    )
