"""Writes a run's newest checkpoint as one file, for other programs.

    python -m sgmjax.export_checkpoint --workdir=runs/psld_cifar --format=psld --out=psld_cifar.ckpt
    python -m sgmjax.export_checkpoint --workdir=runs/psld_cifar --format=safetensors --out=psld_cifar.safetensors

Formats: scoresde (score_sde_pytorch), cld (CLD-SGM) and psld (PSLD, score networks and classifiers) are the official
PyTorch layouts, with the parameters and their averages, which those programs load; their optimiser begins anew.
safetensors takes any run with a config, its config.json in the metadata; `sgmjax.load_run`, `--workdir` of the other
commands and `python -m sgmjax.import_checkpoint` read it. --half makes it a quarter as large, for samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgmjax import _cli
from sgmjax._files import check_writable, replacing, run_name, user_path
from sgmjax._inputs import shown
from sgmjax._ranges import COUNT

FORMATS = ("scoresde", "cld", "psld", "safetensors")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    return _cli.serve(argv, read_flags, export)


def read_flags(argv: Sequence[str]) -> Any:
    """The parsed flags.

    Raises:
        UsageError: naming the flag and the fix.
    """
    from absl import flags

    values: Any = flags.FlagValues()
    _cli.define_path(values, "workdir", None, "the run folder")
    flags.DEFINE_enum("format", None, FORMATS, "whose layout", flag_values=values)
    _cli.define_path(values, "out", None, "the file to write")
    flags.DEFINE_integer("num_scales", 1000, "of scoresde: model.num_scales of its config", flag_values=values)
    flags.DEFINE_bool("half", False, "of safetensors: the averages alone, in half precision", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    _cli.parse_flags(values, argv, {"num_scales": COUNT})
    if values.help:
        _cli.show_help(__doc__, values)
    for name in ("workdir", "format", "out"):
        if not getattr(values, name):
            raise _cli.UsageError(f"--{name}: {values[name].help}; it must be given")
    if values.format == "safetensors" and Path(values.out).suffix != ".safetensors":
        raise _cli.UsageError(f"--out: {shown(values.out)} must end in .safetensors, by which it is known when read")
    if values.half and values.format != "safetensors":
        raise _cli.UsageError(f"--half: is of safetensors, and the layout of {values.format} has both; leave it out")
    return values


def export(values: Any) -> None:
    """Writes what `read_flags` says.

    Raises:
        ValueError: no run in the folder, a network that the format does not have, or a file that cannot be written.
        CheckpointError: no checkpoint can be read.
    """
    import jax

    from sgmjax._say import say
    from sgmjax.commands import published
    from sgmjax.interop import check_exportable, export
    from sgmjax.model import DenoiserModel
    from sgmjax.tasks import ClassifierTask, ScoreTask
    from sgmjax.training import tensors, workdir
    from sgmjax.training.load import load_run

    path, out = tensors.find(values.workdir), user_path(values.out, "--out")
    check_writable(out, "--out")
    averaged = load_run(path, say=say)
    config, task = averaged.config, averaged.task
    assert config is not None
    if values.format == "safetensors":
        raw = load_run(path, say=lambda line: None, averaged=False).variables
        params, record = None if values.half else raw.params, workdir.read_record(path)
        if values.half and config.data.name not in ("folder", "idx", "npz"):
            record["config"]["data"]["data_dir"] = None  # of this machine, and found by name
        tensors.write(out, record, averaged.step, params, averaged.variables.params, raw.state)
        say(f"step {averaged.step} of {run_name(path)} is now {out}; {published.use(task, out)}")
        return
    if not isinstance(task, ScoreTask | ClassifierTask):
        kind = type(task).__name__
        raise _cli.UsageError(f"--format: {values.format} has no counterpart of a {kind}; use safetensors")
    if isinstance(task, ScoreTask) and isinstance(task.model, DenoiserModel):
        raise _cli.UsageError(
            f"--format: the networks of {values.format} predict the noise of a process, and this run's is a denoiser "
            f"(objective.parameterization {config.objective.parameterization!r}); use safetensors"
        )
    if config.sde.name not in published.PROCESSES[values.format]:
        raise _cli.UsageError(
            f"--format: {values.format} has no process {config.sde.name!r}, which this run has; it has "
            + ", ".join(published.PROCESSES[values.format])
        )
    published.check_told(config, values.format)
    network = published.official_network(config, task, num_scales=values.num_scales)
    check_exportable(network, values.format)
    raw = load_run(path, say=lambda line: None, averaged=False).variables
    params, ema_params = (jax.device_get(found.params) for found in (raw, averaged.variables))
    optimizer, table = config.optimizer, values.format == "scoresde"
    if values.format == "psld":
        content = export.psld_checkpoint(network, params, ema_params, averaged.step, optimizer=optimizer)
    else:
        content = export.scoresde_checkpoint(
            network, params, ema_params, averaged.step, optimizer=optimizer, sigmas=table
        )
    import torch  # type: ignore[import-not-found]  # there, or the line above had said so

    with replacing(out) as partial:
        torch.save(content, partial)
    say(f"step {averaged.step} of {run_name(path)} is now {out}, as {values.format} saves it")
