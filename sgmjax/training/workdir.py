"""The run folder: what must be true of it before anything is compiled, and its `config.json`.

config.json  metrics.jsonl  tensorboard/  checkpoints/  samples/step_<n>.png  samples/final.npz  samples/final.png
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sgmjax._inputs import InputError, replacing
from sgmjax.training.config import Config, ConfigError, differences, from_dict, to_dict

# Settings that a run may be continued with another value of: they change what is shown or kept, not what is learnt.
CHANGEABLE = (
    "train.steps",
    "train.fsdp",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.sample_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_bad_steps",
    "data.data_dir",
    "data.path",
    "data.in_memory",
    "data.memory_limit_gb",
    "sampling.",
)


class WorkdirError(InputError):
    """The run folder cannot be used. The message is one line with the reason and the fix."""


def prepare(workdir: str | os.PathLike) -> Path:
    """Creates the folder if need be and tries to write in it.

    Raises:
        WorkdirError: no permission, or something that is not a folder is in the way.
    """
    path = Path(workdir)
    try:
        (path / "samples").mkdir(parents=True, exist_ok=True)
        probe = path / f".probe{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise WorkdirError(
            f"cannot write in the run folder {path}: {error.strerror or error}; choose another with --workdir"
        ) from error
    return path


def check_space(path: Path, state: Any, keep: int, event_shape: tuple[int, ...], num_samples: int) -> None:
    """Checks that the checkpoints and samples of the run will fit on the disk.

    Args:
        path: the run folder.
        state: arrays or `ShapeDtypeStruct`s of a checkpoint.
        keep: checkpoints kept; one more exists while it is being written.
        event_shape: of a sample.
        num_samples: in `final.npz`.

    Raises:
        WorkdirError: with what is needed and what is free.
    """
    one = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    there = path / "checkpoints"
    existing = len([d for d in there.iterdir() if d.name.isdigit()]) if there.is_dir() else 0
    needed = one * max(keep + 1 - existing, 1) + num_samples * int(np.prod(event_shape)) * 4 + 2**24
    free = shutil.disk_usage(path).free
    if needed > free:
        raise WorkdirError(
            f"not enough disk space in {path}: {keep} checkpoints need {_size(needed)}, {_size(free)} are free; "
            "make room, choose another --workdir or lower train.keep_checkpoints"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def check_config(path: Path, config: Config) -> None:
    """Checks that the folder's earlier run, if any, had the same settings, but for those of `CHANGEABLE`.

    Raises:
        WorkdirError: naming the first settings that differ.
    """
    if not (path / "config.json").exists():
        return
    changed = [
        f"{key}: {old} there, {new} now"
        for key, old, new in differences(to_dict(read_config(path)), to_dict(config))
        if not key.startswith(CHANGEABLE)
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise WorkdirError(
            f"{path} holds a run with another config ({'; '.join(changed[:3])}{more}); "
            "choose another --workdir, or the same settings to go on with it"
        )


def read_config(path: str | os.PathLike) -> Config:
    """The config of a run folder.

    Raises:
        WorkdirError: there is none, or it is not one of this version.
    """
    file = Path(path) / "config.json"
    try:
        return from_dict(json.loads(file.read_text())["config"])
    except FileNotFoundError:
        raise WorkdirError(f"no run in {path}: {file} does not exist; give the --workdir of a run") from None
    except ConfigError as error:
        raise WorkdirError(f"{file} does not fit this version of sgmjax: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkdirError(f"cannot read {file}: {type(error).__name__}: {error}") from error


class DataRecord(NamedTuple):
    """What a run folder says of the data that its model was trained on.

    Attributes:
        shape: of one example.
        num_classes: or None.
        discrete: whether they are uint8.
        given: whether they were given in Python, so that the config does not say where they are.
    """

    shape: tuple[int, ...]
    num_classes: int | None
    discrete: bool
    given: bool


def read_data(path: str | os.PathLike) -> DataRecord:
    """The record of a run folder's data.

    Raises:
        WorkdirError: as `read_config`.
    """
    file = Path(path) / "config.json"
    try:
        data = json.loads(file.read_text())["data"]
        shape = tuple(data["shape"])
        discrete = data.get("discrete", len(shape) == 3)  # of folders that do not say it only images were
        return DataRecord(shape, data["num_classes"], discrete, data.get("given", False))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkdirError(f"cannot read {file}: {type(error).__name__}: {error}") from error


def write_config(
    path: Path,
    config: Config,
    event_shape: tuple[int, ...],
    num_classes: int | None,
    *,
    discrete: bool | None = None,
    given: bool = False,
) -> None:
    """Writes `config.json`: the config, the shape of the data, and the versions that it ran with."""
    if jax.process_index() != 0:
        return
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
    record = {
        "config": to_dict(config),
        "data": {
            "shape": list(event_shape),
            "num_classes": num_classes,
            "discrete": len(event_shape) == 3 if discrete is None else discrete,
            "given": given,
        },
        "versions": {
            "sgmjax": version(),
            "python": platform.python_version(),
            **{name: _version_of(name) for name in packages},
        },
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    with replacing(path / "config.json") as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")


def version() -> str:
    """The version of sgmjax."""
    return _version_of("sgmjax") or "unknown"


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
