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
    from ml_collections import config_flags

    from sgmjax.training.config import ConfigError, from_dict

    argv, overrides = _cli.split_overrides(argv)
    given = [i for i, word in enumerate(argv) if word.partition("=")[0] in ("--config", "-config")]
    if not given:
        argv.insert(1, f"--config={_cli.find_config(DEFAULT_CONFIG)}")
    elif "=" in argv[given[-1]]:
        argv[given[-1]] = "--config=" + _cli.find_config(argv[given[-1]].partition("=")[2])
    elif given[-1] + 1 < len(argv):
        argv[given[-1] + 1] = _cli.find_config(argv[given[-1] + 1])

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "the config file", values, lock_config=False, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "the run folder; default runs/<name of the config>", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    try:
        _cli.parse_flags(values, argv)
        if values.help:
            print(__doc__)
            raise SystemExit(0)
        loaded = values.config.to_dict()
    except (ConfigError, _cli.UsageError):
        raise
    except Exception as error:  # the file is the user's program: anything can happen in it
        raise _cli.UsageError(f"the config file: {type(error).__name__}: {error}") from error
    config = from_dict(_cli.override(loaded, overrides))
    name = Path(getattr(values["config"], "config_filename").partition(":")[0]).stem
    return config, values.workdir or str(Path("runs") / name)


if __name__ == "__main__":
    _cli.run(main, sys.argv)
