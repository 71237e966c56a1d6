"""CLD on CelebA-HQ at 256 x 256 (Dockhorn et al. 2022, the settings its authors released after the paper).

Command:   python -m sgmjax.train --config=configs/cld_celebahq256.py --config.data.data_dir=PATH/celebahq256
Data:      a folder of the 30,000 CelebA-HQ images at 256 x 256 (published: 27,000 in train/, 3,000 in test/)
Hardware:  published: 2 x 8 GPUs, 4 images each, 600,000 steps, mixed precision; not trained to the end with this code
Expected:  samples; the paper gives no FID for this data set

Values of nv-tlabs/CLD-SGM, default_celeba_post_paper and specific_celeba_post_paper (their gamma is kappa here; their
beta1 = 6.9 is a slope, beta_max = beta0 + beta1 that at t = 1). The paper's own run was less stable: constant beta 4,
2 residual blocks, Adam without weight decay, loss from t = 1e-5, 320,000 steps.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "folder", "data_dir": "data/celebahq256", "image_size": 256, "flip": True},
            "sde": {
                "name": "cld",
                "beta_min": 0.1,
                "beta_max": 7.0,
                "m_inv": 4.0,
                "kappa": 0.04,
                "numerical_eps": 1e-6,
            },
            "model": {
                "name": "ncsnpp",
                "nf": 128,
                "ch_mult": (1, 1, 2, 2, 2, 2, 2),
                "num_res_blocks": 4,
                "attn_resolutions": (16,),
                "dropout": 0.1,
                "embedding_type": "positional",
            },
            "objective": {
                "matching": "hsm",
                "weighting": "reweightedv2",
                "parameterization": "mixed",
                "reduce": "sum",
                "t_min": 1e-3,
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-4,
                "weight_decay": 0.01,
                "warmup_steps": 100_000,
                "grad_clip": 1.0,
                "ema_decay": 0.9999,
                "ema_warmup": True,
            },
            "train": {
                "steps": 600_000,
                "batch_size": 64,
                "log_every": 100,
                "eval_every": 20_000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {
                "sampler": "ode",
                "rtol": 1e-5,
                "atol": 1e-5,
                "t_min": 1e-3,
                "grid_images": 16,
                "batch_size": 64,
            },
        }
    )
