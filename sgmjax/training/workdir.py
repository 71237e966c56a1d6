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
from typing import Any

import jax
import numpy as np

from sgmjax._inputs import InputError, replacing
from sgmjax.data.classes import check_same
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


def read_data_shape(path: str | os.PathLike) -> tuple[tuple[int, ...], int | None]:
    """Event shape and number of classes of the data that a run folder's model was trained on.

    Raises:
        WorkdirError: as `read_config`.
    """
    file = Path(path) / "config.json"
    try:
        data = json.loads(file.read_text())["data"]
        return tuple(data["shape"]), data["num_classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkdirError(f"cannot read {file}: {type(error).__name__}: {error}") from error


def read_class_names(path: str | os.PathLike) -> tuple[str, ...] | None:
    """What the classes 0, 1, ... of the training data of a run folder are called, or None where nothing says so.

    Raises:
        WorkdirError: as `read_config`.
    """
    file = Path(path) / "config.json"
    try:
        names = json.loads(file.read_text())["data"].get("class_names")
        return None if names is None else tuple(map(str, names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkdirError(f"cannot read {file}: {type(error).__name__}: {error}") from error


def check_classes(path: Path, dataset: Any) -> None:
    """Checks that the data number the classes as they did when the folder's run began, if it has.

    Raises:
        DataError: they do not.
    """
    if (path / "config.json").exists():
        check_same(read_data_shape(path)[1], read_class_names(path), dataset)


def write_config(
    path: Path,
    config: Config,
    event_shape: tuple[int, ...],
    num_classes: int | None,
    class_names: tuple[str, ...] | None = None,
) -> None:
    """Writes `config.json`: the config, the shape and the classes of the data, and the versions that it ran with."""
    if jax.process_index() != 0:
        return
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
    names = {} if class_names is None else {"class_names": list(class_names)}
    record = {
        "config": to_dict(config),
        "data": {"shape": list(event_shape), "num_classes": num_classes, **names},
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
