"""Checkpoints of a run: written in the background, atomic, readable on any number of devices.

A checkpoint holds plain trees: `train` (step, parameters, optimiser, counters), `ema` (the averaged parameters, which
sampling reads alone), `model_state` where the networks have one, and `meta` (JSON: format, config, random key, place in
the data). `seal.py` tells a damaged one, which is set aside, from a good one; a good one that does not fit is an error,
and nothing is moved. `<workdir>/progress.json` has the step of the newest one ever written, so that their loss is
noticed.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sgmjax import _files
from sgmjax._files import AnyPath, replacing, user_path
from sgmjax._inputs import one_line
from sgmjax.sharding import of_the_first
from sgmjax.tasks.base import Variables
from sgmjax.training.seal import damage, is_sealed, seal
from sgmjax.training.state import TrainState
from sgmjax.training.tensors import named

PyTree = Any

FORMAT = 2  # 1 joined small arrays in the optimiser's state
PROGRESS = "progress.json"
_TRAIN = ("step", "params", "opt_state", "bad_steps", "bad_streak")  # of `TrainState`, in the item `train`
_ARRAYS = ("train", "ema", "model_state")  # items that are trees of arrays
_STRUCTURE = "_METADATA"  # orbax's file of the names and shapes in an item
_SLICE = 2**22  # bytes: a copied array is cut into slices of the devices, each written by its own, if they are larger

_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """No checkpoint can be read. The message is one line with the reason and the fix."""


class MismatchError(CheckpointError):
    """A whole checkpoint is of another network than that which it shall be read into; the first difference is named."""


class Checkpointer:
    """The checkpoints in a run folder.

    Args:
        workdir: the run folder.
        keep: how many of the newest stay.
        read_only: for sampling: nothing is created, written or moved.
        folder: where in the run folder; those of training are in "checkpoints".
    """

    def __init__(
        self, workdir: str | os.PathLike, keep: int = 2, *, read_only: bool = False, folder: str = "checkpoints"
    ):
        self.directory = _files.absolute(user_path(workdir, "run folder")) / folder
        logging.getLogger("absl").addFilter(_not_raised)
        self._read_only = read_only
        self._unsealed: int | None = None
        self._sealing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checksums")
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
            item_handlers={**{name: _trees() for name in _ARRAYS}, "meta": ocp.JsonCheckpointHandler()},
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
        train = ocp.args.PyTreeSave({name: getattr(state, name) for name in _TRAIN})
        self._start(step, Variables(state.ema_params, state.model_state), meta, train=train)

    def save_variables(self, step: int, variables: Variables, meta: dict[str, Any]) -> None:
        """As `save`, of averaged parameters and the networks' state alone: for `restore_variables`.

        Those of this step and of later ones, which a run that went back has left, are deleted.
        """
        assert self._manager is not None
        for old in self.steps():
            if old >= step:
                self._manager.delete(old)
        self._start(step, variables, meta)

    def _start(self, step: int, averaged: Variables, meta: dict[str, Any], **items: Any) -> None:
        assert self._manager is not None
        self.wait()
        items["ema"] = ocp.args.PyTreeSave(averaged.params)
        items["meta"] = ocp.args.JsonSave({"format": FORMAT, **meta})
        if jax.tree.leaves(averaged.state):
            items["model_state"] = ocp.args.PyTreeSave(averaged.state)
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._unsealed = step

    def poll(self) -> None:
        """Seals a checkpoint whose files have all been written meanwhile, in a thread; cheap, never waits."""
        if self._unsealed is not None and self._manager and not self._manager.is_saving_in_progress():
            self._finish()

    def wait(self) -> None:
        """Returns when everything started by `save` is on disk and sealed."""
        if self._manager is None:
            return
        self._finish()
        sealing, self._sealing = self._sealing, None  # once only, also where it fails
        if sealing is not None:
            sealing.result()

    def _finish(self) -> None:
        """Waits for the files of the newest checkpoint, and starts taking their checksums."""
        assert self._manager is not None
        step, self._unsealed = self._unsealed, None
        self._manager.wait_until_finished()
        if step is not None and jax.process_index() == 0:
            self._sealing = self._thread.submit(self._seal, step)

    def _seal(self, step: int) -> None:
        folder = self.directory / str(step)
        if not folder.is_dir():
            return
        if missing := _missing(folder):  # the next start finds it damaged
            _log.warning("checkpoint %d has no %s; the one before it is the last good one", step, missing)
            return
        seal(folder)
        if self.directory.name != "checkpoints":
            return
        with replacing(self.directory.parent / PROGRESS) as partial:
            partial.write_text(json.dumps({"step": step}) + "\n")

    def close(self) -> None:
        """Waits, and ends the background threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown(wait=True)
        if self._manager is not None:
            self._manager.close()

    def restore(
        self,
        abstract: Callable[[int], TrainState],
        say: Callable[[str], None] = print,
        *,
        check_meta: Callable[[Any], str | None] = lambda meta: None,
    ) -> tuple[TrainState, dict] | None:
        """The newest readable checkpoint, or None where there is none at all.

        A damaged one is reported in one line through `say`, moved to `<workdir>/damaged`, and the one before it is
        taken. One that was killed before its checksums were written gets them now.

        Args:
            abstract: of a step, what a checkpoint of that step holds: `ShapeDtypeStruct`s with shardings, where the
                arrays shall lie, whatever wrote them.
            say: receives the messages.
            check_meta: what is wrong with a meta dictionary; one that is not right counts as damage.

        Returns:
            The state and the meta dictionary of `save`.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
            MismatchError: the newest that is whole is of another network, optimiser or format.
        """

        def wanted(step: int) -> dict[str, Any]:
            state = abstract(step)
            items: dict[str, Any] = {
                "train": _into({name: getattr(state, name) for name in _TRAIN}),
                "ema": _into(state.ema_params),
            }
            if jax.tree.leaves(state.model_state):
                items["model_state"] = _into(state.model_state)
            return items

        found = self._newest(wanted, say, check_meta)
        if found is None:
            return None
        step, items = found
        if not self._read_only and jax.process_index() == 0 and not is_sealed(self.directory / str(step)):
            seal(self.directory / str(step))
        state = TrainState(ema_params=items["ema"], model_state=items.get("model_state", {}), **items["train"])
        return state, items["meta"]

    def restore_variables(
        self, abstract: Variables, say: Callable[[str], None] = print, *, averaged: bool = True
    ) -> tuple[int, Variables] | None:
        """The step, and the averaged parameters with the networks' state; otherwise as `restore`, of any format.

        With `averaged=False` the parameters being trained in place of their average.
        """
        if averaged:
            items: dict[str, Any] = {"ema": _into(abstract.params)}
        else:
            items = {"train": _into({"params": abstract.params}, part=True)}
        if jax.tree.leaves(abstract.state):
            items["model_state"] = _into(abstract.state)
        found = self._newest(lambda step: items, say)
        if found is None:
            return None
        step, read = found
        params = read["ema"] if averaged else read["train"]["params"]
        return step, Variables(params, read.get("model_state", {}))

    def _newest(
        self,
        wanted: Callable[[int], dict[str, Any]],
        say: Callable[[str], None],
        check_meta: Callable[[Any], str | None] | None = None,
    ) -> tuple[int, Any] | None:
        steps = self.steps()
        for i, step in enumerate(reversed(steps)):
            folder = self.directory / str(step)
            problem = of_the_first(functools.partial(damage, folder))  # the checksums are read once, by one process
            if problem is None and (missing := _missing(folder)):
                problem = f"{missing} is missing"
            if problem is None:
                try:
                    return step, self._read(step, wanted, check_meta)
                except Exception as error:  # whatever a broken file makes the readers below us raise
                    if isinstance(error, MismatchError) and folder.is_dir():
                        raise
                    if self._outdated(step, steps[-1]):
                        return self._newest(wanted, say, check_meta)
                    problem = one_line(error, 120)
                    if is_sealed(folder) and not isinstance(error, _MetaError) or out_of_memory(error):
                        raise CheckpointError(
                            f"checkpoint {step} in {self.directory} is whole but could not be read: {one_line(error)}"
                        ) from error
            elif self._outdated(step, steps[-1]):
                return self._newest(wanted, say, check_meta)
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

    def _outdated(self, step: int, newest: int) -> bool:
        """Whether a checkpoint that cannot be read is one that its training has deleted, or has a newer one of.

        In a program of one process: of several each would see another moment.
        """
        if not self._read_only or jax.process_count() > 1:
            return False
        assert self._manager is not None
        self._manager.reload()
        now = self.steps()
        return step not in now or now[-1] > newest

    def _read(
        self, step: int, wanted: Callable[[int], dict[str, Any]], check_meta: Callable[[Any], str | None] | None
    ) -> Any:
        """The items of a checkpoint; with `check_meta` the meta dictionary is read first, and says what to expect."""
        assert self._manager is not None
        items: dict[str, Any] = {}
        if check_meta is not None:
            items["meta"] = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            if problem := check_meta(items["meta"]):
                raise _MetaError(f"meta: {problem}")
            if (there := items["meta"].get("format", 1)) != FORMAT:
                raise MismatchError(
                    f"checkpoint {step} in {self.directory} has format {there}, and this version of sgmjax writes "
                    f"format {FORMAT}: samples can be drawn from it, but to train on, use the version that wrote it"
                )
        args = wanted(step)
        for name in sorted(args):  # the averaged parameters first
            check_structure(self.directory / str(step) / name, args[name].item, step)
        read = self._manager.restore(step, args=ocp.args.Composite(**args))
        return items | {name: read[name] for name in args}

    def _set_aside(self, step: int) -> None:
        """Makes room for a checkpoint of the same step without throwing the damaged one away."""
        assert self._manager is not None
        if jax.process_index() == 0:
            target = self.directory.parent / "damaged" / str(step)
            _files.remove_folder(target)
            target.parent.mkdir(exist_ok=True)
            _files.move(self.directory / str(step), target)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("sgmjax_set_aside")
        self._manager.reload()


def _trees() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler of trees, which leaves small arrays whole: slicing a network's takes longer than writing them."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SLICE)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler()), (int, ocp.type_handlers.ScalarHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _into(abstract: PyTree, *, part: bool = False) -> ocp.args.PyTreeRestore:
    """Reads arrays of these shapes to these devices; with `part` there may be more in the item."""
    places = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=places, partial_restore=part)


def _not_raised(record: logging.LogRecord) -> bool:
    """Keeps out what orbax's threads log with a traceback, for they raise it too, where it is told in one line."""
    return not record.exc_info


class _MetaError(ValueError):
    """The meta dictionary of a checkpoint is none of a training run."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device or of the machine was not enough, by the words of all who say so."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def check_structure(folder: AnyPath, wanted: PyTree, step: int) -> None:
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


def _missing(folder: AnyPath) -> str | None:
    """The first file without which an item of a finished checkpoint cannot be read, if it is not there."""
    files = (folder / name / _STRUCTURE for name in _ARRAYS if (folder / name).is_dir())
    return next((str(file.relative_to(folder)) for file in files if not file.is_file()), None)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in named(tree).items()}
