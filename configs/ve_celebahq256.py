"""VE on CelebA-HQ at 256 x 256 (Song et al. 2021): NCSN++ of 65.6M parameters.

Command:   python -m sgmjax.train --config=configs/ve_celebahq256.py --config.data.data_dir=PATH/celebahq256
Data:      a folder of the 30,000 CelebA-HQ images at 256 x 256
Hardware:  published: 2,400,000 steps of 64 images; not trained to the end with this code
Expected:  samples; the paper gives no FID for this data set

Values of yang-song/score_sde_pytorch, configs/ve/celebahq_256_ncsnpp_continuous.py: 2,000 reverse-diffusion steps with
a Langevin correction before each (snr 0.075).
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {
                "name": "folder",
                "data_dir": "data/celebahq256",
                "eval_split": None,  # all images are trained on, as published
                "image_size": 256,
                "flip": True,
                "centered": False,
            },
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 348.0},
            "model": {
                "name": "ncsnpp",
                "nf": 128,
                "ch_mult": (1, 1, 2, 2, 2, 2, 2),
                "num_res_blocks": 2,
                "attn_resolutions": (16,),
                "dropout": 0.0,
                "fir": True,
                "progressive": "output_skip",
                "progressive_input": "input_skip",
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
                "steps": 2_400_000,
                "batch_size": 64,
                "log_every": 100,
                "eval_every": 10_000,
                "sample_every": 10_000,
                "checkpoint_every": 10_000,
            },
            "sampling": {
                "sampler": "pc",
                "options": {"predictor": "reverse_diffusion", "corrector": "langevin", "snr": 0.075},
                "steps": 4000,  # 2,000 of each
                "grid": "score_sde",
                "t_min": 1e-5,
                "denoise": "x_mean",
                "grid_images": 16,
                "batch_size": 64,
            },
        }
    )
