"""A denoiser of scikit-learn's handwritten digits (8 x 8), which samples with every process.

Command:   python -m sgmjax.train --config=configs/edm_digits.py
           python -m sgmjax.sample --workdir=runs/edm_digits --process=psld --process.gamma=0.02 --sampler=sscs
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores, about five minutes
Expected:  samples/final.png shows digits that a person can read; docs/one_denoiser.md has the distances, by process

Ours, not published: the network of `configs/digits.py` with the preconditioning, loss and noise levels of Karras et al.
2022, sampled as there: 18 steps of Heun's method from sigma = 80 to 0.002.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "digits"},
            # The process of EDM: sigma(t) is linear in t.
            "sde": {"name": "ve", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_dist": "uniform"},
            "model": {
                "name": "ncsnpp",
                "nf": 32,
                "ch_mult": (1, 1),
                "num_res_blocks": 1,
                "attn_resolutions": (4,),
                "dropout": 0.0,
            },
            "objective": {
                "parameterization": "edm",
                "time_conditioning": "log_sigma",
                "time_sampling": "log_normal",
            },
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 200, "ema_decay": 0.999, "ema_warmup": True},
            "train": {
                "steps": 2000,
                "batch_size": 64,
                "log_every": 50,
                "eval_every": 500,
                "sample_every": 500,
                "checkpoint_every": 500,
            },
            "sampling": {
                "sampler": "edm",
                "steps": 35,
                "grid": "rho",
                "t_min": 1e-6,
                "denoise": "tweedie",
                "num": 1000,
                "batch_size": 500,
            },
        }
    )
