"""Time the host spends per training step outside waiting for the devices.

    python benchmarks/host_overhead.py [--config=configs/psld_digits.py] [--config.train.steps=300]

Runs the training loop itself in a folder that is thrown away, and prints what the loop measured: taking a batch from
the data, putting it on the devices and dispatching the step; of these the devices know nothing. Bound: 2 ms.
"""

from __future__ import annotations

import sys
import tempfile

from sgmjax import _cli
from sgmjax.commands.train import read_flags


def main(argv):
    """Prints the measurement; status 1 if it is over the bound."""
    steps = [] if any(word.startswith("--config.train.steps=") for word in argv) else ["--config.train.steps=300"]
    quick = ["eval_every=0", "sample_every=0", "checkpoint_every=0"]
    extra = steps + [f"--config.train.{setting}" for setting in quick]
    _, config, _ = read_flags([*argv, *extra, "--config.sampling.num=8", "--config.sampling.batch_size=8"])
    from sgmjax.training.train import train

    with tempfile.TemporaryDirectory() as folder:
        result = train(config, folder)
    print(f"host time per step: {result.host_ms:.3f} ms (bound 2 ms)")
    return int(result.host_ms >= 2)


if __name__ == "__main__":
    _cli.run(main, sys.argv)
