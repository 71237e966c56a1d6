"""Makes a run folder of an official PyTorch checkpoint.

    python -m sgmjax.import_checkpoint --source=psld --checkpoint=cifar10.ckpt --config=configs/psld_cifar.py
    python -m sgmjax.sample --workdir=runs/psld_cifar_imported --num=64

Sources: scoresde (score_sde_pytorch), cld (CLD-SGM), psld (PSLD, score networks and classifiers) and ncsnv2 (NCSN,
NCSNv2). The config must describe the network of the checkpoint: each weight must find its place, or the first that does
not is named. Both parameters and their averages are taken; where the checkpoint has no averages (PSLD's classifier,
NCSN), the parameters stand for them.

`python -m sgmjax.train` with the same --config and --workdir goes on from the checkpoint's step, with new moments of
the optimiser and from the beginning of the data. LSGM's checkpoints: `interop.read_lsgm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgmjax import _cli
from sgmjax._ranges import COUNT, MAX_SIDE

SOURCES = ("scoresde", "cld", "psld", "ncsnv2")
SHAPES = {"cifar10": (32, 32, 3), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "digits": (8, 8, 1)}


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    return _cli.serve(argv, read_flags, import_checkpoint)


def read_flags(argv: Sequence[str]) -> Any:
    """The parsed flags, the config, the shape of an image and the new folder.

    Raises:
        UsageError, ConfigError: naming the flag or setting, and the fix.
    """
    from absl import flags

    words, overrides = _cli.split_overrides(argv)
    values: Any = flags.FlagValues()
    flags.DEFINE_enum("source", None, SOURCES, "the repository that wrote the checkpoint", flag_values=values)
    _cli.define_path(values, "checkpoint", None, "its file, .pth or .ckpt")
    _cli.define_path(values, "config", None, "the config file of the same network, or its name")
    _cli.define_path(values, "workdir", None, "the new run folder; default runs/<config>_imported")
    flags.DEFINE_list("image_shape", None, "height,width,channels, where the config does not say", flag_values=values)
    flags.DEFINE_integer("num_classes", None, "classes of the data, for class-conditional networks", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    _cli.parse_flags(values, words, {"num_classes": COUNT})
    if values.help:
        _cli.show_help(__doc__, values)
    for name in ("source", "checkpoint", "config"):
        if not getattr(values, name):
            raise _cli.UsageError(f"--{name}: {values[name].help}; it must be given")
    config, name = _cli.read_config(values.config, overrides)
    if config.vae is not None:
        raise _cli.UsageError("--config: a run with a VAE; read LSGM's checkpoints with sgmjax.interop.read_lsgm")
    if values.source == "ncsnv2" and (config.sde.name != "ve" or config.objective.num_levels is None):
        raise _cli.UsageError("--config: NCSN and NCSNv2 are trained at noise levels; set sde.name 've' and num_levels")
    shape = _image_shape(values.image_shape, config.data)
    return values, config, shape, Path(values.workdir or f"runs/{name}_imported")


def _image_shape(words: list[str] | None, data: Any) -> tuple[int, ...]:
    if words:
        if len(words) != 3 or not all(word.isdecimal() and 0 < int(word[:9]) <= MAX_SIDE for word in words):
            raise _cli.UsageError(
                f"--image_shape: height,width,channels, as 64,64,3, each at most {MAX_SIDE}; got {','.join(words)!r}"
            )
        return tuple(map(int, words))
    if data.name in SHAPES:
        *side, channels = SHAPES[data.name]
        return (*([data.image_size] * 2 if data.image_size else side), channels)
    if data.image_size is None:
        raise _cli.UsageError(f"--image_shape: of data {data.name!r} the config does not say; give it, as 64,64,3")
    return data.image_size, data.image_size, 3


def import_checkpoint(request: Any) -> None:
    """Reads, converts and writes what `read_flags` says.

    Raises:
        ValueError: a file that is no such checkpoint, weights that do not fit, or a folder that holds a run already.
    """
    import numpy as np

    from sgmjax import interop
    from sgmjax._say import say
    from sgmjax.config import to_dict
    from sgmjax.interop import OfficialNetwork
    from sgmjax.sdes import noise_levels
    from sgmjax.tasks import Variables, build
    from sgmjax.training import workdir
    from sgmjax.training.run import Run
    from sgmjax.training.train import phases_of

    values, config, shape, folder = request
    if (folder / "config.json").exists():
        raise workdir.WorkdirError(f"{folder} holds a run already; choose another --workdir")
    parts = build.phases(config, shape, values.num_classes)
    task = parts[-1][0]
    sigmas = None
    if values.source == "ncsnv2":
        sde, count = config.sde, config.objective.num_levels
        sigmas = noise_levels.LEVELS[sde.sigma_dist](sde.sigma_max, sde.sigma_min, count).astype(np.float32)
    network = OfficialNetwork(task.network, (*shape[:-1], task.sde.k * shape[-1]), sigmas)
    read = {
        "scoresde": interop.read_scoresde,
        "cld": interop.read_cld,
        "psld": interop.read_psld,
        "ncsnv2": interop.read_ncsnv2,
    }[values.source]
    found = read(values.checkpoint, network)
    record = {"config": to_dict(config)}
    run = Run(phases_of(config, parts), None, workdir.prepare(folder), config.train, record=record, seed=config.seed)
    data = workdir.DataRecord(shape, values.num_classes, discrete=True)
    run.adopt(Variables(found.params, {}), Variables(found.ema_params or found.params, {}), found.step, data)
    averages = "with averages" if found.ema_params is not None else "without averages"
    say(f"step {found.step} of {values.checkpoint}, {averages}, is now the run {folder}; for samples")
    say(f"    python -m sgmjax.sample --workdir={folder} --num=64")
