"""PSLD on AFHQv2 at 128 x 128 (Pandey & Mandt 2023, the model of its guidance and inpainting).

Command:   python -m sgmjax.train --config=configs/psld_afhqv2.py --config.data.data_dir=PATH/afhqv2
Data:      a folder of images: AFHQv2 (train/ and test/, each cat/ dog/ wild/), from github.com/clovaai/stargan-v2
Hardware:  published: 8 GPUs, 8 images each, 2,000 epochs of 224 steps; not trained to the end with this code
Expected:  samples by 1,000 steps of em on the quadratic grid; no FID was published for it

Values of mandt-lab/PSLD, scripts_psld/ablations/uncond/afhqv2 and main/configs/dataset/afhqv2.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "folder", "data_dir": "data/afhqv2", "image_size": 128, "flip": True},
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
                "ch_mult": (1, 2, 2, 2, 3),
                "num_res_blocks": 2,
                "attn_resolutions": (16,),
                "dropout": 0.2,
                "embedding_type": "positional",
            },
            "objective": {"matching": "hsm", "weighting": "simple", "t_min": 1e-5},
            "optimizer": {
                "learning_rate": 1e-4,
                "warmup_steps": 5000,
                "grad_clip": 1.0,
                "ema_decay": 0.9999,
                "ema_warmup": False,
            },
            "train": {
                "steps": 448_000,
                "batch_size": 64,
                "log_every": 100,
                "eval_every": 10_000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {"sampler": "em", "steps": 1000, "grid": "quadratic", "t_min": 1e-3, "batch_size": 128},
        }
    )
