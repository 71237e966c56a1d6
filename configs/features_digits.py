"""Features of digits (8 x 8) of our own, for distances between samples and data.

Command:   python -m sgmjax.train --config=configs/features_digits.py
           then python -m sgmjax.evaluate --workdir=runs/psld_digits --metrics=fd,pr --features=runs/features_digits
Data:      inside scikit-learn, nothing to download or prepare
Hardware:  two CPU cores, half a minute
Expected:  95% of the held-out digits right

Ours, not published; numbers in these features say nothing about FID.
"""

from sgmjax.config import complete


def get_config():
    return complete(
        {
            "data": {"name": "digits"},
            "model": {"name": "feature_net", "widths": (32, 64), "num_res_blocks": 1},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 50, "ema_decay": 0.995, "ema_warmup": True},
            "train": {
                "steps": 400,
                "batch_size": 64,
                "eval_every": 100,
                "eval_batches": None,
            },
        }
    )
