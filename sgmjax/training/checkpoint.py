"""Checkpoints of a run: written in the background, atomic, readable on any number of devices.

A checkpoint holds three items: `train` (step, parameters, optimiser, counters), `ema` (the averaged parameters, which
sampling reads alone) and `meta` (JSON: config, random key, place in the data); `seal.py` tells a damaged one from a
good one. `<workdir>/progress.json` has the step of the newest one ever written, so that their loss is noticed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from sgmjax._inputs import one_line, replacing, user_path
from sgmjax.training.seal import damage, is_sealed, seal
from sgmjax.training.state import TrainState

PyTree = Any

PROGRESS = "progress.json"
_ARRAYS = ("train", "ema", "model_state")  # items that are trees of arrays
_STRUCTURE = "_METADATA"  # orbax's file of the names and shapes in an item

_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """No checkpoint can be read. The message is one line with the reason and the fix."""


class MismatchError(CheckpointError):
    """A whole checkpoint is of another network than that which it shall be read into; the first difference is named."""


class Checkpointer:
    """The checkpoints in `<workdir>/checkpoints`.

    Args:
        workdir: the run folder.
        keep: how many of the newest stay.
        read_only: for sampling: nothing is created, written or moved.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 2, *, read_only: bool = False):
        self.directory = user_path(workdir, "run folder").absolute() / "checkpoints"
        logging.getLogger("absl").addFilter(_not_raised)
        self._read_only = read_only
        self._unsealed: int | None = None
        self._manager: ocp.CheckpointManager | None = None
        if read_only and not self.directory.is_dir():
            return
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts writing; returns when the arrays are copied, so that the state may be donated to the next step.

        Args:
            step: number of steps taken.
            state: on the devices.
            meta: JSON-able.
        """
        assert self._manager is not None
        self.wait()
        train = {
            "step": state.step,
            "params": state.params,
            "opt_state": state.opt_state,
            "bad_steps": state.bad_steps,
            "bad_streak": state.bad_streak,
        }
        items = {
            "train": ocp.args.StandardSave(train),
            "ema": ocp.args.StandardSave(state.ema_params),
            "meta": ocp.args.JsonSave(meta),
        }
        if jax.tree.leaves(state.model_state):
            items["model_state"] = ocp.args.StandardSave(state.model_state)
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._unsealed = step

    def poll(self) -> None:
        """Finishes a checkpoint whose files have all been written meanwhile; cheap, never waits."""
        if self._unsealed is not None and self._manager and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when everything started by `save` is on disk."""
        if self._manager is None:
            return
        step, self._unsealed = self._unsealed, None  # once only, also where the waiting fails
        self._manager.wait_until_finished()
        if step is not None and jax.process_index() == 0 and (self.directory / str(step)).is_dir():
            if missing := _missing(self.directory / str(step)):  # the next start finds it damaged
                _log.warning("checkpoint %d has no %s; the one before it is the last good one", step, missing)
                return
            seal(self.directory / str(step))
            with replacing(self.directory.parent / PROGRESS) as partial:
                partial.write_text(json.dumps({"step": step}) + "\n")

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self.wait()
        if self._manager is not None:
            self._manager.close()

    def restore(
        self,
        abstract: TrainState,
        say: Callable[[str], None] = print,
        *,
        check_meta: Callable[[Any], str | None] = lambda meta: None,
    ) -> tuple[TrainState, dict] | None:
        """The newest readable checkpoint, or None where there is none at all.

        A damaged one is reported in one line through `say`, moved to `<workdir>/damaged`, and the one before it is
        taken. One that was killed before its checksums were written gets them now.

        Args:
            abstract: `ShapeDtypeStruct`s with shardings: where the arrays shall lie, whatever wrote them.
            say: receives the messages.
            check_meta: what is wrong with a meta dictionary; one that is not right counts as damage.

        Returns:
            The state and the meta dictionary of `save`.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
            MismatchError: the newest that is whole is of another network.
        """
        train = {
            "step": abstract.step,
            "params": abstract.params,
            "opt_state": abstract.opt_state,
            "bad_steps": abstract.bad_steps,
            "bad_streak": abstract.bad_streak,
        }
        wanted = {
            "train": ocp.args.StandardRestore(train),
            "ema": ocp.args.StandardRestore(abstract.ema_params),
            "meta": ocp.args.JsonRestore(),
        }
        if jax.tree.leaves(abstract.model_state):
            wanted["model_state"] = ocp.args.StandardRestore(abstract.model_state)
        found = self._newest(wanted, say, check_meta)
        if found is None:
            return None
        step, items = found
        if not self._read_only and jax.process_index() == 0 and not is_sealed(self.directory / str(step)):
            seal(self.directory / str(step))
        state = TrainState(ema_params=items["ema"], model_state=items.get("model_state", {}), **items["train"])
        return state, items["meta"]

    def restore_ema(
        self, abstract: PyTree, say: Callable[[str], None] = print, *, model_state: PyTree = None, averaged: bool = True
    ) -> tuple[int, PyTree, PyTree] | None:
        """The step, the averaged parameters and the model's state ({} unless asked for); otherwise as `restore`.

        With `averaged=False` the parameters being trained in place of their average.
        """
        if averaged:
            wanted: dict[str, Any] = {"ema": ocp.args.StandardRestore(abstract)}
        else:
            part = {"params": abstract}
            places = ocp.checkpoint_utils.construct_restore_args(part)
            wanted = {"train": ocp.args.PyTreeRestore(item=part, restore_args=places, partial_restore=True)}
        if jax.tree.leaves(model_state):
            wanted["model_state"] = ocp.args.StandardRestore(model_state)
        found = self._newest(wanted, say)
        if found is None:
            return None
        step, items = found
        params = items["ema"] if averaged else items["train"]["params"]
        return step, params, items.get("model_state", {})

    def _newest(
        self,
        args: dict[str, Any],
        say: Callable[[str], None],
        check_meta: Callable[[Any], str | None] = lambda meta: None,
    ) -> tuple[int, Any] | None:
        steps = self.steps()
        for i, step in enumerate(reversed(steps)):
            folder = self.directory / str(step)
            problem = damage(folder)
            if problem is None and (missing := _missing(folder)):
                problem = f"{missing} is missing"
            if problem is None:
                try:
                    return step, self._read(step, args, check_meta)
                except MismatchError:
                    raise
                except Exception as error:  # whatever a broken file makes the readers below us raise
                    problem = one_line(error, 120)
                    if is_sealed(folder) and not isinstance(error, _MetaError) or _out_of_memory(error):
                        raise CheckpointError(
                            f"checkpoint {step} in {self.directory} is whole but could not be read: {one_line(error)}"
                        ) from error
            rest = steps[: len(steps) - 1 - i]
            say(
                f"checkpoint {step} is damaged ({problem}); "
                + (f"going on with checkpoint {rest[-1]}" if rest else "there is no older one")
            )
            if not self._read_only:
                self._set_aside(step)
        if steps:
            raise CheckpointError(
                f"no checkpoint in {self.directory} can be read; put a copy of one back there, "
                "or start training again with --restart"
            )
        return None

    def _read(self, step: int, args: dict[str, Any], check_meta: Callable[[Any], str | None]) -> Any:
        assert self._manager is not None
        for name in sorted(args.keys() - {"meta"}):  # the averaged parameters first
            check_structure(self.directory / str(step) / name, args[name].item, step)
        items = self._manager.restore(step, args=ocp.args.Composite(**args))
        if "meta" in args and (problem := check_meta(items["meta"])):
            raise _MetaError(f"meta: {problem}")
        return items

    def _set_aside(self, step: int) -> None:
        """Makes room for a checkpoint of the same step without throwing the damaged one away."""
        assert self._manager is not None
        if jax.process_index() == 0:
            target = self.directory.parent / "damaged" / str(step)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            shutil.move(self.directory / str(step), target)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("sgmjax_set_aside")
        self._manager.reload()


def _not_raised(record: logging.LogRecord) -> bool:
    """Keeps out what orbax's threads log with a traceback, for they raise it too, where it is told in one line."""
    return not record.exc_info


class _MetaError(ValueError):
    """The meta dictionary of a checkpoint is none of a training run."""


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def check_structure(folder: Path, wanted: PyTree, step: int) -> None:
    """Checks that an item of a checkpoint has the arrays that it shall be read into, before they are read.

    Args:
        folder: of the item.
        wanted: tree of `ShapeDtypeStruct`s; of the item `train` it may be a part.
        step: of the checkpoint, for the message.

    Raises:
        MismatchError: naming the first array that is not there, or has another shape.
    """
    stored = ocp.StandardCheckpointHandler().metadata(epath.Path(folder))
    there = _shapes(getattr(stored, "tree", stored))
    here = _shapes(wanted)
    first = {path.split("/")[0] for path in here}
    there = {path: shape for path, shape in there.items() if folder.name != "train" or path.split("/")[0] in first}
    for path in sorted({*there, *here}):
        if there.get(path) != here.get(path):
            words = [f"has shape {shapes[path]}" if path in shapes else "is absent" for shapes in (there, here)]
            what = "optimiser" if path.startswith("opt_state") else "network"
            raise MismatchError(
                f"checkpoint {step} in {folder.parent.parent} is of another {what}: {folder.name}/{path} {words[0]} "
                f"there and {words[1]} in the {what} of the config; give the run the settings that it was trained with"
            )


def _missing(folder: Path) -> str | None:
    """The first file without which an item of a finished checkpoint cannot be read, if it is not there."""
    files = (folder / name / _STRUCTURE for name in _ARRAYS if (folder / name).is_dir())
    return next((str(file.relative_to(folder)) for file in files if not file.is_file()), None)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
