"""PSLD on CIFAR-10, the network of the ablations (Pandey & Mandt 2023): DDPM++ of 39.4M parameters.

Command:   python -m sgmjax.train --config=configs/psld_cifar_ablation.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 4 GPUs, 32 images each, 2,000 epochs of 390 steps; not trained to the end with this code
Expected:  published FID on 10,000 samples at 50 / 100 / 250 / 500 / 1,000 evaluations:
           sscs quadratic 16.1 / 7.2 / 5.4 / 5.4 / 5.3, em quadratic 19.9 / 7.3 / 5.3 / 5.2 / 5.3

Values of mandt-lab/PSLD, scripts_psld/ablations/uncond/cifar10. gamma is what the ablations sweep, with nu = 4 + gamma;
gamma 0 is CLD, whose network predicts three channels.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "cifar10", "flip": True},
            "sde": {
                "name": "psld",
                "beta_min": 8.0,
                "beta_max": 8.0,
                "gamma": 0.01,
                "nu": 4.01,
                "kappa": 0.04,
                "factor": "lower",
                "numerical_eps": 1e-9,
            },
            "model": {
                "name": "ncsnpp",
                "nf": 128,
                "ch_mult": (1, 2, 2, 2),
                "num_res_blocks": 2,
                "attn_resolutions": (16,),
                "dropout": 0.1,
                "embedding_type": "positional",
            },
            "objective": {"matching": "hsm", "weighting": "simple", "t_min": 1e-5},
            "optimizer": {
                "learning_rate": 2e-4,
                "warmup_steps": 5000,
                "grad_clip": 1.0,
                "ema_decay": 0.9999,
                "ema_warmup": False,
            },
            "train": {
                "steps": 780_000,
                "batch_size": 128,
                "log_every": 100,
                "eval_every": 10_000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {"sampler": "sscs", "steps": 250, "grid": "quadratic", "t_min": 1e-3, "num": 10_000},
        }
    )
