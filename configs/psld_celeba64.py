"""PSLD on CelebA at 64 x 64 (Pandey & Mandt 2023): DDPM++ of 61.8M parameters.

Command:   python -m sgmjax.train --config=configs/psld_celeba64.py
Data:      TFDS `celeb_a`, prepared once: python -m sgmjax.data.prepare celeb_a
Hardware:  published: 8 GPUs, 16 images each, 500 epochs of 1,582 steps; not trained to the end with this code
Expected:  published: FID 2.01 at 250 evaluations of em on the quadratic grid

Values of mandt-lab/PSLD, main/configs/dataset/celeba64 and scripts_psld/sota/uncond/celeba64. The scripts also turn on
what makes it an NCSN++ of 62.8M parameters: fir=True, progressive_input="residual", embedding_type="fourier".
Published on all 202,599 aligned images, squeezed to a square; here on the centred squares of the 162,770 of the train
split, for as many steps.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "celeb_a", "image_size": 64, "flip": True},
            "sde": {
                "name": "psld",
                "beta_min": 8.0,
                "beta_max": 8.0,
                "gamma": 0.005,
                "nu": 4.005,
                "kappa": 0.04,
                "factor": "lower",
                "numerical_eps": 1e-9,
            },
            "model": {
                "name": "ncsnpp",
                "nf": 128,
                "ch_mult": (1, 2, 2, 2),
                "num_res_blocks": 4,
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
                "steps": 791_000,
                "batch_size": 128,
                "log_every": 100,
                "eval_every": 10_000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {"sampler": "em", "steps": 250, "grid": "quadratic", "t_min": 1e-3, "num": 50_000},
        }
    )
