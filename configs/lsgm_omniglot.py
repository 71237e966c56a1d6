"""LSGM on OMNIGLOT at 28 x 28, binarised anew at every use (Vahdat et al. 2021).

Command:   python -m sgmjax.train --config=configs/lsgm_omniglot.py --config.data.data_dir=PATH/omniglot
Data:      a folder of grey images, bright ink on black, 24,345 in train/ and 8,070 in test/: the arrays `data` and
           `testdata` of chardata.mat in yburda/iwae, each column one image of 28 x 28, written as PNG files
Hardware:  published: 2 GPUs of 16 GB for the VAE, 4 for the second stage, mixed precision; not trained to the end with
           this code
Expected:  published: NELBO 87.79 nats (python -m sgmjax.evaluate --metrics=nelbo)

Values of the commands in NVlabs/LSGM's README: the VAE for 200 epochs, then both for 1,500, at 190 steps of 128 images
an epoch. TFDS `omniglot` has other splits, and black ink on white in colour at 105 x 105: its figures do not compare.
"""

from sgmjax.config import relative


def get_config():
    return relative(
        __file__,
        "lsgm_mnist",
        {
            "data": {
                "name": "folder",
                "data_dir": "data/omniglot",
                "path": None,
                "split": "train",
                "eval_split": "test",
                "image_size": 28,
                "range": None,
                "flip": False,
                "centered": True,
                "uniform_dequantization": False,
                "binarize": "dynamic",
                "in_memory": None,
                "memory_limit_gb": 2.0,
                "num_samples": 50000,
            },
            "model": {"ch_mult": (1, 1, 1), "attn_resolutions": (16,)},
            "optimizer": {"warmup_steps": 3800},
            "train": {"steps": 323000},
            "vae": {
                "ch_mult": (1, 2),
                "groups_per_scale": 3,
                "num_blocks": 1,
                "preprocess_cells": 2,
                "postprocess_cells": 2,
                "encoder_cells": 3,
                "decoder_cells": 3,
                "kl_max": 1.0,
            },
            "latent": {
                "vae_steps": 38000,
                "vae_optimizer": {"warmup_steps": 950},
                "vae_finetune": {"warmup_steps": 3800},
                "prior_spectral_weight": 0.001,
            },
        },
    )
