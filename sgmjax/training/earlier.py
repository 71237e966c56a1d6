"""What an earlier launch left in a run folder: what is swept away, what is set aside, and what must not be lost."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator

import jax

from sgmjax._files import AnyPath, modified, move
from sgmjax._inputs import one_line
from sgmjax._say import say
from sgmjax.sharding import wait_for_all
from sgmjax.training.checkpoint import PROGRESS
from sgmjax.training.lock import NAME as LOCK
from sgmjax.training.lock import TAKEOVER, RunLock
from sgmjax.training.workdir import WorkdirError, prepare

# Of the run itself, as opposed to what its user keeps beside it.
_FOLDERS = ("checkpoints", "best", "damaged", "samples", "tensorboard", "metrics")
_FILES = ("config.json", PROGRESS, "metrics.jsonl", "accuracy.npz", "samples/final.npz", "samples/final.png")


class Entry:
    """A run folder whose lock this process holds.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: AnyPath):
        self.path = path
        self._lock: RunLock | None = RunLock(path, say)

    def keep(self) -> RunLock:
        """The lock, for whoever holds the folder beyond `entered`."""
        assert self._lock is not None
        lock, self._lock = self._lock, None
        return lock

    def leave(self) -> None:
        """Releases the lock, unless it was given away."""
        if self._lock is not None:
            self._lock.release()


@contextlib.contextmanager
def entered(folder: str | os.PathLike, *, restart: bool = False) -> Iterator[Entry]:
    """Holds a run folder, which is made if need be, for the time of its checks.

    Args:
        folder: the run folder.
        restart: move what is there of a run aside.

    Raises:
        WorkdirError: it cannot be written, or another process trains there.
    """
    entry = Entry(prepare(folder))
    try:
        if restart:
            set_aside(entry.path, say)
        yield entry
    finally:
        entry.leave()


def check_resumable(path: AnyPath) -> None:
    """Checks that a run which had saved a checkpoint still has one, damaged or not.

    A run that was stopped before its first checkpoint has lost nothing that could be kept, and starts again.

    Raises:
        WorkdirError: training would start again from step 0, over what the folder tells of the steps taken.
    """
    if any(folder.name.isdigit() for folder in _entries(path / "checkpoints")):
        return
    signs = [name for name in (PROGRESS, "samples/final.npz", "accuracy.npz") if (path / name).exists()]
    if _entries(path / "damaged"):
        signs.append("damaged/")
    if signs:
        raise WorkdirError(
            f"{path} holds a run that had taken {_steps_taken(path)}steps ({', '.join(signs)}) and no checkpoint; "
            "put a copy of one back into its checkpoints folder, or start again from step 0 with --restart, which "
            "moves what is there to earlier/"
        )


def _steps_taken(path: AnyPath) -> str:
    try:
        return f"{int(json.loads((path / PROGRESS).read_text())['step'])} "
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def set_aside(path: AnyPath, say: Callable[[str], None]) -> None:
    """Moves what there is of a run to `earlier/<n>`, so that another can begin; to be called by all processes."""
    if jax.process_index() == 0:
        there = [path / name for name in (*_FOLDERS, *_FILES) if (path / name).exists() and "/" not in name]
        if there := [item for item in there if not item.is_dir() or _entries(item)]:
            numbers = [int(item.name) for item in _entries(path / "earlier") if item.name.isdigit()]
            target = path / "earlier" / str(max(numbers, default=0) + 1)
            target.mkdir(parents=True)
            for item in there:
                move(item, target / item.name)
            say(f"starting again from step 0; the earlier run is now in {target}")
        (path / "samples").mkdir(exist_ok=True)
    wait_for_all("sgmjax_set_aside_run")


def tidy(path: AnyPath, say: Callable[[str], None]) -> None:
    """Removes half-written files of processes that were killed, and moves what stands where a file must go.

    By process 0, under the lock of the folder.
    """
    if jax.process_index() != 0:
        return
    for file in (*path.glob("*.partial"), *path.glob("*/*.partial"), *path.glob("checkpoints/*/*.partial")):
        with contextlib.suppress(OSError):
            file.unlink()
    for file in (*path.glob(f"{LOCK}.*"), *path.glob(".probe*")):  # others may be at the door at this moment
        with contextlib.suppress(OSError):
            if modified(path / LOCK) - modified(file) > TAKEOVER:
                file.unlink()
    for place in (*_FILES, "samples/step_*.png"):
        for item in path.glob(place):
            if item.is_dir() and item.name != "config.json":
                _move(item, say, "a folder where a file belongs")
    for name in ("tensorboard", "damaged", "checkpoints"):
        if (path / name).is_file():
            _move(path / name, say, "a file where a folder belongs")


def _move(item: AnyPath, say: Callable[[str], None], why: str) -> None:
    number = 1
    while (target := item.with_name(f"{item.name}.aside{number}")).exists():
        number += 1
    try:
        item.rename(target)
    except OSError as error:
        raise WorkdirError(f"{item} is {why}, and cannot be moved: {one_line(error)}; move it away") from None
    say(f"{item} was {why}; it is now {target.name}")


def _entries(folder: AnyPath) -> list[AnyPath]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
