"""VE on CIFAR-10 (Song et al. 2021): NCSN++ deep, continuous, of 107.6M parameters.

Command:   python -m sgmjax.train --config=configs/ve_cifar.py
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 950,000 steps of 128 images; not trained to the end with this code
Expected:  published: FID 2.20, by 1,000 reverse-diffusion steps with a Langevin correction after each (snr 0.16)

Values of yang-song/score_sde_pytorch, configs/ve/cifar10_ncsnpp_deep_continuous.py.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "cifar10", "flip": True, "centered": False},
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0},
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
                "scale_by_sigma": True,
            },
            "objective": {
                "matching": "dsm",
                "weighting": "simple",
                "parameterization": "score",
                "time_conditioning": "sigma",
                "reduce": "half_sum",
                "t_min": 1e-5,
            },
            "optimizer": {
                "learning_rate": 2e-4,
                "warmup_steps": 5000,
                "grad_clip": 1.0,
                "ema_decay": 0.999,
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
            "sampling": {
                "sampler": "pc",
                "options": {"predictor": "reverse_diffusion", "corrector": "langevin", "snr": 0.16},
                "steps": 2000,  # 1,000 of each
                "grid": "score_sde",
                "t_min": 1e-5,
                "denoise": "x_mean",
                "num": 50_000,
            },
        }
    )
