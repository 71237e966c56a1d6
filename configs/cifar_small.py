"""PSLD or VP on CIFAR-10 with a network that learns overnight on a CPU core.

Command:   python -m sgmjax.train --config=configs/cifar_small.py:psld
           python -m sgmjax.train --config=configs/cifar_small.py:vp
Data:      TFDS `cifar10`, prepared once: python -m sgmjax.data.prepare cifar10
Hardware:  a CPU core each, nearly five hours; an accelerator does it in minutes
Expected:  samples/final.png shows blurred scenes, ships, animals and cars among them; no FID worth the name

Ours, not published: the network of `configs/psld_mnist.py` (1.3M parameters instead of 97.6M), with flips, everything
else as there. docs/results.md says how far it got.
"""

from sgmjax.config import relative

NIGHT = {
    "data": {"name": "cifar10", "flip": True},
    "model": {"attn_resolutions": (8,), "dropout": 0.0},
    "train": {
        "steps": 20_000,
        "batch_size": 32,
        "log_every": 200,
        "eval_every": 2000,
        "sample_every": 2000,
        "checkpoint_every": 500,
    },
    "sampling": {
        "sampler": "unipc",
        "options": {"order": 3},
        "grid": "auto",
        "steps": 20,
        "denoise": "tweedie",
        "num": 100,
    },
}
PROCESSES = {"psld": "psld_mnist", "vp": "vp_mnist"}


def get_config(which: str = "psld"):
    if which not in PROCESSES:
        raise ValueError(f"cifar_small.py:{which}: no such process; choose one of {', '.join(PROCESSES)}")
    return relative(__file__, PROCESSES[which], NIGHT)
