"""The classifier of noised CIFAR-10 images that guides PSLD, as published (Pandey & Mandt 2023).

Command:   python -m sgmjax.train --config=configs/psld_cifar_classifier.py
           then python -m sgmjax.sample --workdir=runs/psld_cifar --classifier=runs/psld_cifar_classifier --labels=9
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  published: 4 GPUs, 64 images each, 195 steps an epoch (at most 2,000; sampled with epoch 1,000); not trained
           with this code
Expected:  published: samples of one class at strength 5, in pictures only

Values of mandt-lab/PSLD, scripts_psld/ablations/cond/cifar10. Theirs has no moving average and no gradient clipping;
ema_decay 0 is none. Their sampler hands the classifier 1 - t (`reverse_time` of `samplers.guidance.guided_score`); ours
hands it t, on which it was trained.
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
                "name": "ncsnpp_classifier",
                "nf": 128,
                "ch_mult": (1, 2, 3, 4),
                "num_res_blocks": 4,
                "attn_resolutions": (16, 8),
                "dropout": 0.1,
            },
            "objective": {"matching": "hsm", "t_min": 1e-5},
            "optimizer": {
                "learning_rate": 2e-4,
                "warmup_steps": 5000,
                "grad_clip": None,
                "ema_decay": 0.0,
                "ema_warmup": False,
            },
            "train": {
                "steps": 390_000,
                "batch_size": 256,
                "log_every": 100,
                "eval_every": 10_000,
                "checkpoint_every": 10_000,
            },
        }
    )
