"""Features of MNIST of our own, for distances between samples and data.

Command:   python -m sgmjax.train --config=configs/features_mnist.py
           then python -m sgmjax.evaluate --workdir=runs/psld_mnist --metrics=fd,pr --features=runs/features_mnist
Data:      TFDS `mnist`, prepared once: python -m sgmjax.data.prepare mnist
Hardware:  two CPU cores, a few minutes
Expected:  99% of the held-out digits right

Ours, not published; numbers in these features say nothing about FID.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "mnist"},
            "model": {"name": "feature_net", "widths": (32, 64, 128)},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 100, "ema_decay": 0.999, "ema_warmup": True},
            "train": {
                "steps": 4000,
                "batch_size": 64,
                "eval_every": 1000,
                "eval_batches": None,
            },
        }
    )
