"""Ends of a run that are neither a wrong setting nor a bug, as a full disk and a lost process. One line each.

What was saved until then is whole, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from sgmjax._files import AnyPath, remove_folder, trouble
from sgmjax._inputs import one_line, shown
from sgmjax.training.checkpoint import CheckpointError, out_of_memory

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file grew too large",
}
_FULL_TEXT = {"ENOSPC": errno.ENOSPC, "No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT,
              "EFBIG": errno.EFBIG, "File too large": errno.EFBIG}  # fmt: skip
_LOST_TEXT = re.compile(
    r"Connection (closed|reset|refused|timed out)|Broken pipe|Socket closed|heartbeat|coordination (service|agent)"
    r"|Gloo|NCCL|barrier|UNAVAILABLE|DEADLINE_EXCEEDED|preempted",
    re.IGNORECASE,
)


class TroubleError(RuntimeError):
    """A run could not go on. The message is one line: why, and how to go on from the last checkpoint."""


class LostProcessError(TroubleError):
    """Another process of the run is gone, so nothing can be waited for that needs it."""


@contextlib.contextmanager
def explained(path: AnyPath) -> Iterator[None]:
    """Turns what a full disk or a lost process makes the libraries below raise into a `TroubleError`.

    Args:
        path: the run folder.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TroubleError):
            raise
        if (number := full_disk(error)) is not None:
            raise TroubleError(
                f"{_FULL[number]}: nothing more can be written to {path}; its checkpoints are whole, and with room "
                "made the same command goes on from the last one"
            ) from error
        if not isinstance(error, CheckpointError) and (why := no_memory(error)) is not None:
            raise TroubleError(
                f"out of memory ({why}): give a smaller train.batch_size or more train.grad_accumulation (in a run "
                "that has begun with --allow_changes), for a new run model.remat=True; of samples a smaller "
                "sampling.batch_size"
            ) from error
        if jax.process_count() > 1 and is_lost(error):
            raise LostProcessError(
                f"process {jax.process_index()} of {jax.process_count()} lost another one ({_peer(error)}); the same "
                "command, started for all of them, goes on from the last checkpoint"
            ) from error
        if why := next((words for one in _causes(error) if (words := trouble(one))), None):
            raise TroubleError(
                f"the bucket of {path} could not be written or read ({why}); once it can be, the same command goes on "
                "from the last checkpoint"
            ) from error
        if isinstance(error, OSError) and error.filename is not None:
            done = "write" if Path(os.fsdecode(error.filename)).is_relative_to(str(path)) else "read"
            raise TroubleError(
                f"cannot {done} {shown(error.filename)}: {error.strerror}; mend that and start again"
            ) from error
        raise


def sweep(path: AnyPath) -> None:
    """Removes checkpoints that could not be written to their end, which take up room; when nothing is being written."""
    if jax.process_index() == 0:
        for folder in path.glob("checkpoints/*.orbax-checkpoint-tmp"):
            remove_folder(folder)


def full_disk(error: BaseException) -> int | None:
    """The errno of a full disk, a used up quota or a file that grew too large, if one of these is the cause."""
    for one in _causes(error):
        if isinstance(one, OSError) and one.errno in _FULL:
            return one.errno
        for text, number in _FULL_TEXT.items():
            if text in str(one):
                return number
    return None


def no_memory(error: BaseException) -> str | None:
    """What did not fit into the memory of a device or of the machine, in words; None: the error is another one."""
    for one in _causes(error):
        if isinstance(one, MemoryError | jax.errors.JaxRuntimeError) and out_of_memory(one):
            return one_line(one, 120)
    return None


def is_lost(error: BaseException) -> bool:
    """Whether a collective or the coordination service failed because another process has gone."""
    return any(
        isinstance(one, jax.errors.JaxRuntimeError | ConnectionError) and _LOST_TEXT.search(str(one))
        for one in _causes(error)
    )


def _peer(error: BaseException) -> str:
    """What the error says of the other process."""
    text = " ".join(str(error).split())
    for pattern in (r"task[^.,;]{0,40}?\d+", r"Connection [^.;]*?\[[\d.:a-fA-F]+\](:\d+)?"):
        if found := re.search(pattern, text):
            return shown(found.group(), 120)
    return one_line(error, 120)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
