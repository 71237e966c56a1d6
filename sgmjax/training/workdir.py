"""The run folder: what must be true of it before anything is compiled, and its `config.json`.

config.json  metrics.jsonl  tensorboard/  checkpoints/  samples/step_<n>.png  samples/final.npz  samples/final.png
progress.json (step of the newest checkpoint)  damaged/ (checkpoints)  earlier/<n>/ (before --restart)  run.lock
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sgmjax._files import AnyPath, free_space, in_zoo, is_remote, probe_folder, replacing, user_path, zoo
from sgmjax._inputs import InputError, one_line
from sgmjax.config import Config, ConfigError, differences, from_dict
from sgmjax.data.classes import check_same
from sgmjax.training import changes, tensors


class WorkdirError(InputError):
    """The run folder cannot be used. The message is one line with the reason and the fix."""


def prepare(workdir: str | os.PathLike) -> AnyPath:
    """Creates the folder if need be and tries to write in it.

    Raises:
        WorkdirError: no permission, no such bucket, or something that is not a folder is in the way.
    """
    path = user_path(workdir, "--workdir")
    if in_zoo(path):
        raise WorkdirError(
            f"zoo:{path.stem} comes with sgmjax and stays as it is; to go on from it make a run folder of it: "
            f"python -m sgmjax.import_checkpoint --checkpoint=zoo:{path.stem} --workdir=runs/{path.stem}"
        )
    probe = f".probe{jax.process_index()}"
    try:
        (path / "samples").mkdir(parents=True, exist_ok=True)
        probe_folder(path, probe)
    except Exception as error:
        if is_remote(path):  # whatever the network, the permissions or the address make the store raise
            why = "there is no such bucket" if isinstance(error, FileNotFoundError) else one_line(error, 200)
            raise WorkdirError(
                f"cannot write in the run folder {path}: {why}; is the bucket there, and may this account write in it?"
            ) from error
        if not isinstance(error, OSError):
            raise
        place = "" if error.filename in (None, str(path), str(path / probe)) else f" ({error.filename})"
        raise WorkdirError(
            f"cannot write in the run folder {path}: {error.strerror or error}{place}; choose another with --workdir"
        ) from error
    return path


def check_space(path: AnyPath, state: Any, keep: int, event_shape: tuple[int, ...], num_samples: int) -> None:
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
    free = free_space(path)
    if free is not None and needed > free:
        raise WorkdirError(
            f"not enough disk space in {path}: {keep} checkpoints need {_size(needed)}, {_size(free)} are free; "
            "make room, choose another --workdir or lower train.keep_checkpoints"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def check_config(path: AnyPath, config: Config, allow: Sequence[str] = ()) -> list[tuple[str, Any, Any]]:
    """Checks that the folder's earlier run, if any, had the same settings, but for those that may change.

    Args:
        path: the run folder.
        config: of the run that shall go on.
        allow: settings of `changes.ALLOWABLE` that may be others than they were.

    Returns:
        Those of `allow` that are others, and `train.steps` if it is and matters, as (name, old, new).

    Raises:
        WorkdirError: naming the first settings that differ.
        ConfigError: in `allow`, what cannot change.
    """
    changes.check_allowed(allow)
    if not (path / "config.json").exists():
        return []
    before = read_config(path)
    found = changes.changed(before, config)
    refused = [f"{key}: {old} there, {new} now" for key, old, new in found if key not in allow]
    if refused:
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        possible = [key for key, _, _ in found if key in changes.ALLOWABLE]
        flag = f", or --allow_changes={','.join(possible)}" if len(possible) == len(found) else ""
        raise WorkdirError(
            f"{path} holds a run with another config ({'; '.join(refused[:3])}{more}); "
            f"choose another --workdir, --restart to begin anew (what is there is kept), or the same settings to go "
            f"on with it{flag}"
        )
    if found:
        changes.check_optimizer(before, config)
    if before.train.steps != config.train.steps and changes.depends_on_steps(config):
        found.append(("train.steps", before.train.steps, config.train.steps))
    return found


def read_record(path: str | os.PathLike) -> Any:
    """What `config.json` says, of a run folder or in a file of `tensors`.

    Raises:
        OSError, ValueError, RecursionError: as reading and parsing do.
    """
    return tensors.read_record(path) if tensors.is_tensor_file(path) else json.loads(_record_file(path).read_text())


def _record_file(path: str | os.PathLike) -> AnyPath:
    found = user_path(path, "--workdir")
    return found if tensors.is_tensor_file(found) else found / "config.json"


def read_config(path: str | os.PathLike) -> Config:
    """The config of a run folder, or of a run's file (`tensors`).

    Raises:
        WorkdirError: there is none, or it is not one of this version.
    """
    file = _record_file(path)
    try:
        record = read_record(path)
        if "fit" in record and "config" not in record:
            raise WorkdirError(
                f"{path} is a run of `fit` with a task of its own: open it with load_run({str(path)!r}, task=...)"
            )
        return from_dict(record["config"], refuse=lambda path: False)
    except FileNotFoundError:
        known = "" if "/" in str(path) else f", or one of zoo:{', zoo:'.join(zoo())}"
        raise WorkdirError(f"no run in {path}: {file} does not exist; give the --workdir of a run{known}") from None
    except ConfigError as error:
        raise WorkdirError(f"{file} does not fit this version of sgmjax: {error}") from error
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkdirError(f"cannot read {file}: {type(error).__name__}: {one_line(error)}") from error


class DataRecord(NamedTuple):
    """What a run folder says of the data that its model was trained on.

    Attributes:
        shape: of one example.
        num_classes: or None.
        discrete: whether they are uint8.
        given: whether they were given in Python, so that the config does not say where they are.
        class_names: what the classes are called, or None where nothing says so.
    """

    shape: tuple[int, ...]
    num_classes: int | None
    discrete: bool
    given: bool = False
    class_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, dataset: Any, *, given: bool = False) -> DataRecord:
        """What is to be recorded of a data set."""
        return cls(tuple(dataset.shape), dataset.num_classes, dataset.discrete, given, dataset.class_names)


def read_data(path: str | os.PathLike) -> DataRecord:
    """The record of a run folder's data.

    Raises:
        WorkdirError: as `read_config`.
    """
    file = _record_file(path)
    try:
        data = read_record(path)["data"]
        shape, classes = data["shape"], data["num_classes"]
        if not isinstance(shape, list) or not shape or not all(_is_size(n) for n in shape):
            raise ValueError(f"data.shape must be positive integers, not {shape}")
        if classes is not None and not _is_size(classes):
            raise ValueError(f"data.num_classes must be a positive integer or null, not {classes}")
        names = data.get("class_names")
        if names is not None and (len(names) != classes or not all(isinstance(name, str) for name in names)):
            raise ValueError(f"data.class_names must be {classes} names")
        discrete = data.get("discrete", len(shape) == 3)  # of folders that do not say it only images were
        given = bool(data.get("given", False))
        return DataRecord(tuple(shape), classes, bool(discrete), given, None if names is None else tuple(names))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WorkdirError(f"cannot read {file}: {type(error).__name__}: {one_line(error)}") from error


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def check_classes(path: AnyPath, dataset: Any) -> None:
    """Checks that the data number the classes as they did when the folder's run began, if it has.

    Raises:
        DataError: they do not.
    """
    if (path / "config.json").exists():
        before = read_data(path)
        check_same(before.num_classes, before.class_names, dataset)


_FREE_OF_FIT = ("fsdp", "log_every", "checkpoint_every", "keep_checkpoints", "max_bad_steps")


def check_record(path: AnyPath, record: Mapping[str, Any]) -> None:
    """Checks that the folder's earlier run, if any, was begun by `fit` with the same phases and settings.

    Raises:
        WorkdirError: naming the first that differ.
    """
    file = path / "config.json"
    if not file.exists():
        return
    try:
        before = json.loads(file.read_text())["fit"]
    except KeyError:
        raise WorkdirError(f"{path} holds a run of a config; choose another folder, or go on with `train`") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise WorkdirError(f"cannot read {file}: {type(error).__name__}: {one_line(error)}") from error
    free = [f"train.{name}" for name in _FREE_OF_FIT]
    found = [item for item in differences(before, json.loads(json.dumps(record))) if item[0] not in free]
    if found:
        words = "; ".join(f"{key}: {old} there, {new} now" for key, old, new in found[:3])
        raise WorkdirError(f"{path} holds a run with other settings ({words}); choose another folder, or the same ones")


def write_record(
    path: AnyPath,
    record: Mapping[str, Any],
    data: DataRecord,
    *,
    changed: Sequence[tuple[str, Any, Any]] = (),
    step: int = 0,
) -> None:
    """Writes `config.json`: the config, what the data are, and the versions that it ran with.

    Args:
        path: the run folder.
        record: {"config": settings}, or {"fit": what `fit` was given}.
        data: what the model is trained on.
        changed: settings that change at `step`, as (name, old, new); added to the record of earlier changes.
        step: steps taken.
    """
    if jax.process_index() != 0:
        return
    made = [{"step": step, "setting": name, "old": old, "new": new} for name, old, new in changed]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        made = [*json.loads((path / "config.json").read_text())["changes"], *made]
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
    whole = {
        **record,
        "data": {name: value for name, value in data._asdict().items() if value is not None or name == "num_classes"},
        **({"changes": made} if made else {}),
        "versions": {
            "sgmjax": version(),
            "python": platform.python_version(),
            **{name: _version_of(name) for name in packages},
        },
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    with replacing(path / "config.json") as partial:
        partial.write_text(json.dumps(whole, indent=2) + "\n")


def version() -> str:
    """The version of sgmjax."""
    return _version_of("sgmjax") or "unknown"


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
