"""Time the host spends per training step outside waiting for the devices.

    python benchmarks/host_overhead.py [--config=configs/psld_digits.py] [--config.train.steps=300]

Runs the training loop itself in a folder that is thrown away, and prints what the loop measured: taking a batch from
the data, putting it on the devices and dispatching the step. Of these the devices know nothing as long as they are
shorter than a step, for the host is two steps ahead; how long a step took is printed beside them.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from sgmjax import _cli
from sgmjax.commands.train import read_flags


def main(argv):
    """Prints the measurement; status 1 if the devices wait for the host."""
    steps = [] if any(word.startswith("--config.train.steps=") for word in argv) else ["--config.train.steps=300"]
    quick = ["eval_every=0", "sample_every=0", "checkpoint_every=0"]
    extra = steps + [f"--config.train.{setting}" for setting in quick]
    _, config, _ = read_flags([*argv, *extra, "--config.sampling.num=8", "--config.sampling.batch_size=8"])
    from sgmjax.training.train import train

    with tempfile.TemporaryDirectory() as folder:
        result = train(config, folder)
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    rate = statistics.median(row["examples_per_second"] for row in rows[1:] or rows)
    step = 1e3 * config.train.batch_size / rate
    assert result.host_ms is not None  # steps were taken
    print(f"host time per step: {result.host_ms:.2f} ms of {step:.2f} ms ({100 * result.host_ms / step:.1f}%)")
    return int(result.host_ms >= step)


if __name__ == "__main__":
    _cli.run(main, sys.argv)
