"""The run folder: what must be true of it before anything is compiled, and its `config.json`.

config.json  metrics.jsonl  tensorboard/  checkpoints/  samples/step_<n>.png  samples/final.npz  samples/final.png
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sgmjax._inputs import InputError, one_line, replacing, user_path
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


# Settings that a run may be continued with another value of when the user says so (--allow_changes): what is learnt,
# and the arrays that it is kept in, stay the same.
ALLOWABLE = (
    "train.",
    "optimizer.",
    "latent.vae_optimizer.",
    "latent.vae_finetune.",
    "objective.label_dropout",
    "data.flip",
)
FILES = ("config.json", "metrics.jsonl", "progress.json", "accuracy.npz", "samples/final.npz", "samples/final.png")
FOLDERS = ("samples", "checkpoints", "tensorboard", "metrics", "damaged")


class WorkdirError(InputError):
    """The run folder cannot be used. The message is one line with the reason and the fix."""


def prepare(workdir: str | os.PathLike) -> Path:
    """Creates the folder if need be and tries to write in it.

    Raises:
        WorkdirError: no permission, or something that is not a folder is in the way.
    """
    path = user_path(workdir, "--workdir")
    try:
        for name in FILES:
            if (path / name).is_dir():
                raise WorkdirError(f"{path / name} is a folder, where the run keeps a file; move it away")
        for name in FOLDERS:
            if (path / name).exists() and not (path / name).is_dir():
                raise WorkdirError(f"{path / name} is a file, where the run keeps a folder; move it away")
        (path / "samples").mkdir(parents=True, exist_ok=True)
        probe = path / f".probe{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise WorkdirError(
            f"cannot write in the run folder {path}: {error.strerror or error}; choose another with --workdir"
        ) from error
    return path


def remove_partial(path: Path) -> None:
    """Removes what writes that were killed have left; nobody else may be writing."""
    for folder in (path, path / "samples", path / "metrics"):
        for file in folder.glob("*.partial"):
            if file.is_file():
                file.unlink(missing_ok=True)


def steps_taken(path: Path) -> int:
    """How far a run has come that is to begin anew: the step of its newest checkpoint ever, 0 if it never had one.

    A run that ended before its first checkpoint has rightly none; one whose checkpoints are damaged or gone has not.
    """
    steps = [int(folder.name) for folder in (path / "damaged").glob("*") if folder.name.isdigit()]
    try:
        steps.append(int(json.loads((path / "progress.json").read_text())["step"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return max(steps, default=0)


def move_aside(path: Path) -> Path | None:
    """Moves an earlier run's files into `before_<n>` in the same folder; returns that, or None if there were none."""
    kept = [entry for entry in path.iterdir() if not entry.name.startswith(("before_", "run.lock", "."))]
    if not any(entry.is_file() or any(entry.iterdir()) for entry in kept):
        return None
    number = 1
    while (path / f"before_{number}").exists():
        number += 1
    target = path / f"before_{number}"
    target.mkdir()
    for entry in kept:
        entry.rename(target / entry.name)
    (path / "samples").mkdir()
    return target


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


def check_config(path: Path, config: Config, allow: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Checks that the folder's earlier run, if any, had the same settings, but for those of `CHANGEABLE` and `allow`.

    Args:
        path: the run folder.
        config: the settings now.
        allow: settings of `ALLOWABLE` that may have changed, as `optimizer.learning_rate`.

    Returns:
        The changes that were made use of, as {"setting", "old", "new"}.

    Raises:
        WorkdirError: naming the first settings that differ; a setting in `allow` that must not change.
    """
    for name in allow:
        if not name.startswith(ALLOWABLE):
            raise WorkdirError(
                f"--allow_changes: {name} cannot change in a run, only settings of train and optimizer can; "
                "choose another --workdir for it"
            )
    if not (path / "config.json").exists():
        return []
    found = [
        {"setting": key, "old": old, "new": new}
        for key, old, new in differences(to_dict(read_config(path)), to_dict(config))
        if not key.startswith(CHANGEABLE)
    ]
    changed = [change for change in found if change["setting"] not in allow]
    if changed:
        words = "; ".join(f"{c['setting']}: {c['old']} there, {c['new']} now" for c in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        fix = "choose another --workdir, or the same settings to go on with it"
        if all(change["setting"].startswith(ALLOWABLE) for change in changed):
            fix += ", or say --allow_changes=" + ",".join(change["setting"] for change in changed)
        raise WorkdirError(f"{path} holds a run with another config ({words}{more}); {fix}")
    return found


def read_config(path: str | os.PathLike) -> Config:
    """The config of a run folder.

    Raises:
        WorkdirError: there is none, or it is not one of this version.
    """
    file = user_path(path, "--workdir") / "config.json"
    try:
        return from_dict(json.loads(file.read_text())["config"])
    except FileNotFoundError:
        raise WorkdirError(f"no run in {path}: {file} does not exist; give the --workdir of a run") from None
    except ConfigError as error:
        raise WorkdirError(f"{file} does not fit this version of sgmjax: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkdirError(f"cannot read {file}: {type(error).__name__}: {one_line(error)}") from error


def read_data_shape(path: str | os.PathLike) -> tuple[tuple[int, ...], int | None]:
    """Event shape and number of classes of the data that a run folder's model was trained on.

    Raises:
        WorkdirError: as `read_config`.
    """
    file = user_path(path, "--workdir") / "config.json"
    try:
        data = json.loads(file.read_text())["data"]
        shape, classes = data["shape"], data["num_classes"]
        if not isinstance(shape, list) or not shape or not all(_is_size(n) for n in shape):
            raise ValueError(f"data.shape must be positive integers, not {shape}")
        if classes is not None and not _is_size(classes):
            raise ValueError(f"data.num_classes must be a positive integer or null, not {classes}")
        return tuple(shape), classes
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkdirError(f"cannot read {file}: {type(error).__name__}: {one_line(error)}") from error


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def write_config(
    path: Path,
    config: Config,
    event_shape: tuple[int, ...],
    num_classes: int | None,
    *,
    changes: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes `config.json`: the config, the shape of the data, and the versions that it ran with.

    Args:
        path: the run folder.
        config: the settings.
        event_shape, num_classes: of the data.
        changes: settings that change here, as {"step", "setting", "old", "new"}; added to those there already.
    """
    if jax.process_index() != 0:
        return
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        changes = [*json.loads((path / "config.json").read_text())["changes"], *changes]
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
    record = {
        "config": to_dict(config),
        "data": {"shape": list(event_shape), "num_classes": num_classes},
        **({"changes": list(changes)} if changes else {}),
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
