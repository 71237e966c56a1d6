"""Trains a model.

    python -m sgmjax.train                                        # PSLD on handwritten digits, minutes on a laptop
    python -m sgmjax.train --config=configs/psld_cifar.py         # into runs/psld_cifar; again: goes on from there
    python -m sgmjax.train --config=configs/psld_cifar.py --workdir=/data/run1 --config.train.batch_size=64

A run goes on from its newest checkpoint with the settings that it had; --workdir alone takes them from its folder:
--workdir=runs/psld_cifar --config.train.steps=900000. With another batch size or learning rate:
--config.train.batch_size=64 --allow_changes=train.batch_size. --restart begins anew and keeps what was there.

The exit status is 0 when the run is finished, 143 or 130 when SIGTERM or SIGINT (Ctrl-C) interrupted it and it saved, 2
for wrong settings and 1 for what else stopped it; a scheduler that gets 143 should start the same command again.

Every setting can be overridden as `--config.<section>.<name>=<value>`. A run on several hosts: the same command on each
one, with SGMJAX_DISTRIBUTED=1 or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgmjax import _cli
from sgmjax._files import user_path
from sgmjax._inputs import InputError

if TYPE_CHECKING:
    from sgmjax.config import Config

DEFAULT_CONFIG = "psld_digits"


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    try:
        values, config, workdir = read_flags(argv)
        _cli.use_compilation_cache()
        from sgmjax.sharding import initialize_distributed

        initialize_distributed()
        from sgmjax.training.phase import NonFiniteError, Result
        from sgmjax.training.train import setup

        run = setup(config, workdir, allow_changes=values.allow_changes or (), restart=values.restart)
    except Exception as error:
        if _cli.is_users(error):
            return _cli.fail(error)
        raise
    if isinstance(run, Result):
        return 0
    from sgmjax.training.checkpoint import CheckpointError
    from sgmjax.training.trouble import LostProcessError, TroubleError

    try:
        result = run.execute()
    except LostProcessError as error:
        _cli.fail(error, status=1)
        os._exit(1)  # leaving in the ordinary way would wait for the one that is lost
    except (NonFiniteError, CheckpointError, TroubleError) as error:
        return _cli.fail(error, status=1)
    except InputError as error:  # what only the checkpoint could tell, as that it belongs to other data
        return _cli.fail(error)
    return 0 if result.signal is None else 128 + result.signal


def read_flags(argv: Sequence[str]) -> tuple[Any, Config, str]:
    """The flags, the config and the run folder that a command line asks for.

    Raises:
        UsageError, ConfigError: naming the flag or setting, and the fix.
    """
    from absl import flags

    words, overrides = _cli.split_overrides(argv)
    values = flags.FlagValues()
    _cli.define_path(values, "config", DEFAULT_CONFIG, "the config file, or the name of a config")
    _cli.define_path(values, "workdir", None, "the run folder; default runs/<name of the config>")
    flags.DEFINE_list("allow_changes", None, "settings that may differ from the run's, by name", flag_values=values)
    flags.DEFINE_bool("restart", False, "begin anew; moves the folder's run aside", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    _cli.parse_flags(values, words)
    if values.help:
        _cli.show_help(__doc__, values)
    if values.workdir and not values["config"].present and not values.restart:
        from sgmjax.config import to_dict
        from sgmjax.training import workdir

        if (user_path(values.workdir, "--workdir") / "config.json").is_file():
            return values, _cli.overridden(to_dict(workdir.read_config(values.workdir)), overrides), values.workdir
    config, name = _cli.read_config(values.config, overrides)
    return values, config, values.workdir or str(Path("runs") / name)
