"""Makes a run folder of an official checkpoint, or of a run that is one file.

    python -m sgmjax.import_checkpoint --checkpoint=cifar10.ckpt --config=configs/psld_cifar.py
    python -m sgmjax.sample --workdir=runs/psld_cifar_imported --num=64

Sources: scoresde (score_sde_pytorch, and the JAX original), cld (CLD-SGM), psld (PSLD, score networks and classifiers),
ncsnv2 (NCSN, NCSNv2), lsgm (LSGM, both stages) and edm (EDM's snapshots, DDPM++ and NCSN++), told apart by what is in
the file; --source says what it must be.
The config must describe the network: each weight must find its place, or the first that does not is named, and nothing
is written. Without --config the one that comes with sgmjax and has the network of the file is taken, if it is the only
one. What the file does not say (the process, the range of times, the sampler) is the config's; the settings in a
checkpoint of LSGM are compared with it. Both parameters and their averages are taken; where the checkpoint has no
averages (PSLD's classifier, NCSN), the parameters stand for them.

A file of `python -m sgmjax.export_checkpoint --format=safetensors` has its config with it, and so have the runs that
come with sgmjax: --checkpoint=zoo:psld_mnist.

`python -m sgmjax.train --workdir=FOLDER --config.train.steps=N` goes on from the checkpoint's step, with new moments of
the optimiser and from the beginning of the data.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from sgmjax import _cli
from sgmjax._files import AnyPath, overwrite, remove_folder, run_name, user_path
from sgmjax._inputs import shown
from sgmjax._ranges import COUNT, MAX_SIDE

SOURCES = ("scoresde", "cld", "psld", "ncsnv2", "lsgm", "edm")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    return _cli.serve(argv, read_flags, import_checkpoint)


def read_flags(argv: Sequence[str]) -> Any:
    """The parsed flags, the overrides of the config, the config and its name where it is given, and the image shape.

    Raises:
        UsageError, ConfigError: naming the flag or setting, and the fix.
    """
    from absl import flags

    words, overrides = _cli.split_overrides(argv)
    values: Any = flags.FlagValues()
    flags.DEFINE_enum("source", None, SOURCES, "the repository that wrote the checkpoint", flag_values=values)
    _cli.define_path(values, "checkpoint", None, "its file")
    _cli.define_path(values, "config", None, "the config file of the same network, or its name")
    _cli.define_path(values, "workdir", None, "the new run folder; default runs/<config>_imported")
    flags.DEFINE_list("image_shape", None, "height,width,channels, where the config does not say", flag_values=values)
    flags.DEFINE_integer("num_classes", None, "classes of the data, for class-conditional networks", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    _cli.parse_flags(values, words, {"num_classes": COUNT})
    if values.help:
        _cli.show_help(__doc__, values)
    if not values.checkpoint:
        raise _cli.UsageError("--checkpoint: its file; it must be given")
    shape = _image_shape(values.image_shape)
    named = _cli.read_config(values.config, overrides) if values.config else None
    if overrides and named is None:
        raise _cli.UsageError(f"--config.{overrides[0][0]}: changes a config; name it with --config")
    return values, named, shape


def _image_shape(words: list[str] | None) -> tuple[int, ...] | None:
    if not words:
        return None
    if len(words) != 3 or not all(word.isdecimal() and 0 < int(word[:9]) <= MAX_SIDE for word in words):
        raise _cli.UsageError(
            f"--image_shape: height,width,channels, as 64,64,3, each at most {MAX_SIDE}; got {','.join(words)!r}"
        )
    return tuple(map(int, words))


def import_checkpoint(request: Any) -> None:
    """Reads, converts and writes what `read_flags` says.

    Raises:
        ValueError: a file that is no such checkpoint, weights that do not fit, or a folder that holds a run already.
    """
    from sgmjax._say import say
    from sgmjax.commands import published
    from sgmjax.config import to_dict
    from sgmjax.interop import recognise
    from sgmjax.training import tensors, workdir

    values, named, shape = request
    if tensors.is_tensor_file(values.checkpoint):
        return _own(values, named)
    found = recognise(values.checkpoint)
    if values.source and values.source != found.source:
        raise _cli.UsageError(f"--source: {values.source}, but {shown(found.path)} is {found.what} ({found.source})")
    say(f"{shown(found.path)} is {found.what}")
    name, config, converted = _config_for(found, values, named, shape)
    folder = user_path(values.workdir or f"runs/{name}_imported", "--workdir")
    data = workdir.DataRecord(converted.parts[-1][0].event_shape, _classes(converted, values), discrete=True)
    with _appearing(folder) as hidden:
        _adopt(hidden, config, converted, {"config": to_dict(config)}, data)
    averages = "with averages" if converted.has_average else "without averages"
    use = published.use(converted.parts[-1][0], folder)
    say(f"step {converted.step}, {averages}, is now the run {folder}; {use}")


def _classes(converted: Any, values: Any) -> int | None:
    task = converted.parts[-1][0]
    return values.num_classes if task.num_classes is None else task.num_classes


def _config_for(found: Any, values: Any, named: Any, shape: Any) -> tuple[str, Any, Any]:
    """The name of a config, the config, and the checkpoint as its variables."""
    from sgmjax._say import say
    from sgmjax.commands import published
    from sgmjax.config import from_dict
    from sgmjax.interop import edm_network, lsgm, lsgm_settings

    if named is not None:
        config, name = named
        published.check_source(found, config)
        here = shape or published.shape_of(config.data)
        if here is None:
            raise _cli.UsageError(
                f"--image_shape: of data {config.data.name!r} the config does not say; give it, as 64,64,3"
            )
        return name, config, published.convert(found, config, here, values.num_classes)
    if found.source == "edm":
        config = from_dict(edm_network.edm_settings(found.content))
        say("its own settings make the config; the process and the sampler are EDM's")
        return "edm", config, published.convert(found, config, edm_network.edm_shape(found.content), values.num_classes)
    fit, kin = published.fitting(found, shape, values.num_classes)
    if len(fit) == 1:
        name, (config, converted) = next(iter(fit.items()))
        say(
            f"its weights are of the network of {name}; {_taken(config)} are of that config, the file does not say them"
        )
        return name, config, converted
    if not fit and found.kind == "joint":
        settings = lsgm.settings_of(found.content, found.path)
        config = from_dict(lsgm_settings.make_settings(settings, found.content.get("global_step", 0)))
        say("no config that comes with sgmjax is of this model; its own settings make one, sampling is by the ode")
        here = shape or published.shape_of(config.data)
        assert here is not None
        return "lsgm", config, published.convert(found, config, here, None)
    if fit:
        raise _cli.UsageError(f"--config: {', '.join(fit)} all have the network of {shown(found.path)}; name one")
    raise _cli.UsageError(
        f"--config: no config that comes with sgmjax has the network of {shown(found.path)}; give one that has. "
        f"Those of this kind: {', '.join(kin) or 'none'}"
    )


def _taken(config: Any) -> str:
    """The process and the times of a config, in words."""
    words = ", ".join(f"{key}={value!r}" for key, value in config.sde.settings.items())
    return f"{config.sde.name}({words}), t_min={config.objective.t_min:g} and the sampler"


def _own(values: Any, named: Any) -> None:
    """A run folder of a run that is one file."""
    import jax

    from sgmjax._say import say
    from sgmjax.commands import published
    from sgmjax.tasks import build
    from sgmjax.training import tensors, workdir

    path = values.checkpoint
    stem = user_path(path, "--checkpoint").stem
    if values.source or named is not None or values.image_shape:
        flag = "source" if values.source else "config" if named is not None else "image_shape"
        raise _cli.UsageError(
            f"--{flag}: {run_name(path)} is a run of sgmjax, which has its config with it; leave it out"
        )
    config, data = workdir.read_config(path), workdir.read_data(path)
    known = {"class_names": data.class_names, "discrete": data.discrete}
    parts = build.phases(config, data.shape, data.num_classes, **known)
    abstract = jax.eval_shape(parts[0][0].init, jax.random.key(0))
    step, variables, averaged = tensors.read(path, abstract)
    folder = user_path(values.workdir or f"runs/{stem}_imported", "--workdir")
    with _appearing(folder) as hidden:
        record = {"config": workdir.read_record(path)["config"]}
        _adopt(hidden, config, published.Converted(parts, variables, averaged, step, True), record, data)
    say(f"step {step} of {run_name(path)} is now the run {folder}; {published.use(parts[-1][0], folder)}")


def _adopt(folder: AnyPath, config: Any, converted: Any, record: dict[str, Any], data: Any) -> None:
    from sgmjax.training.run import Run
    from sgmjax.training.train import phases_of

    phases = phases_of(config, converted.parts)
    run = Run(phases, None, folder, config.train, record=record, seed=config.seed)
    run.adopt(converted.variables, converted.averaged, converted.step, data)


@contextlib.contextmanager
def _appearing(folder: AnyPath) -> Iterator[AnyPath]:
    """Where to write a run folder so that it appears in one move, whole; what fails leaves nothing behind.

    Raises:
        WorkdirError: the folder is there and not empty, or cannot be written.
    """
    from sgmjax.training import workdir

    if (folder / "config.json").exists():
        raise workdir.WorkdirError(f"{folder} holds a run already; choose another --workdir")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise workdir.WorkdirError(f"{folder} is there and not empty; choose another --workdir")
    hidden = folder.with_name(f".{folder.name}.importing{os.getpid()}")
    try:
        yield workdir.prepare(hidden)
        overwrite(hidden, folder)
    finally:
        remove_folder(hidden)
