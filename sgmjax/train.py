"""Trains a model.

    python -m sgmjax.train                                        # PSLD on handwritten digits, minutes on a laptop
    python -m sgmjax.train --config=configs/psld_cifar.py         # into runs/psld_cifar; again: goes on from there
    python -m sgmjax.train --config=configs/psld_cifar.py --workdir=/data/run1 --config.train.batch_size=64

Every setting can be overridden as `--config.<section>.<name>=<value>`. A run on several hosts: the same command on each
one, with SGMJAX_DISTRIBUTED=1 or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sgmjax import _cli

if TYPE_CHECKING:
    from sgmjax.training.config import Config

DEFAULT_CONFIG = "psld_digits"


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    try:
        config, workdir = read_flags(argv)
        _cli.use_compilation_cache()
        from sgmjax.training.sharding import initialize_distributed

        initialize_distributed()
        from sgmjax.training import loop

        run = loop.setup(config, workdir)
    except (ValueError, OSError, ImportError) as error:
        return _cli.fail(error)
    if isinstance(run, loop.Result):
        return 0
    from sgmjax.training.checkpoint import CheckpointError

    try:
        run.execute()
    except (loop.NonFiniteError, CheckpointError) as error:
        return _cli.fail(error, status=1)
    return 0


def read_flags(argv: Sequence[str]) -> tuple[Config, str]:
    """The config and the run folder that a command line asks for.

    Raises:
        UsageError, ConfigError: naming the flag or setting, and the fix.
    """
    from absl import flags

    words, overrides = _cli.split_overrides(argv)
    values = flags.FlagValues()
    flags.DEFINE_string("config", DEFAULT_CONFIG, "the config file, or the name of a config", flag_values=values)
    flags.DEFINE_string("workdir", None, "the run folder; default runs/<name of the config>", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    _cli.parse_flags(values, words)
    if values.help:
        print(__doc__)
        raise SystemExit(0)
    config, name = _cli.read_config(values.config, overrides)
    return config, values.workdir or str(Path("runs") / name)


if __name__ == "__main__":
    _cli.run(main, sys.argv)
