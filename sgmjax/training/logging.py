"""What a run tells: `metrics.jsonl`, TensorBoard events and one line of progress. Only process 0 writes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax

from sgmjax._files import Mirror, replacing, user_path
from sgmjax._inputs import one_line
from sgmjax._say import say


class MetricsWriter:
    """Appends to `metrics.jsonl` (one JSON object a line, with `step`) and to TensorBoard's events.

    Args:
        workdir: the run folder.
        step: the step the run goes on from. Lines of later steps, which an interrupted run may have left, are dropped,
            and so is a line that was cut short: no step is ever there twice.
        tensorboard: write events too, where tensorboardX is installed.
    """

    def __init__(self, workdir: str | os.PathLike, step: int = 0, *, tensorboard: bool = True):
        self._file: TextIO | None = None
        self._events: Any = None
        if jax.process_index() != 0:
            return
        self._mirror = Mirror(user_path(workdir, "--workdir"), ["metrics.jsonl"])
        path = self._mirror.place / "metrics.jsonl"
        truncate(path, step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            try:
                self._events = _Events(self._mirror.place / "tensorboard", step)
            except ImportError:
                pass
            except BaseException:  # a folder that cannot be written
                self.close()
                raise

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step; NaN and infinities become null, which JSON can hold."""
        if self._file is None:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.add(lambda events: [events.add_scalar(name, value, step) for name, value in values.items()])
        self._mirror.sync()

    def image(self, step: int, name: str, image: Any) -> None:
        """Adds a picture, uint8 (H, W, 3), to the events."""
        if self._events is not None:
            self._events.add(lambda events: events.add_image(name, image, step, dataformats="HWC"))

    def save(self) -> None:
        """Returns when what was written is in the run folder, also in a bucket: before a checkpoint is."""
        if self._file is not None:
            self._mirror.sync(wait=True)

    def close(self) -> None:
        """Flushes and closes both."""
        if self._events is not None:
            self._events.close()
        if self._file is not None:
            self._file.close()
            self._mirror.close()


class _Events:
    """TensorBoard's events, which never stop a run: where they cannot be written (a full disk) they end, in one line.

    A thread of tensorboardX writes them. When it fails it prints a traceback, and whoever adds events then waits for it
    forever: so its errors are caught, and a thread that has ended is left alone.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None, max_queue=1000)
        self._failed = threading.Event()
        self._hook, threading.excepthook = threading.excepthook, self._caught

    def _caught(self, arguments: threading.ExceptHookArgs) -> None:
        if isinstance(arguments.exc_value, OSError) and type(arguments.thread).__name__ == "_EventLoggerThread":
            self._failed.set()
        else:
            self._hook(arguments)

    def add(self, write: Callable[[Any], Any]) -> None:
        if self._writer is None:
            return
        try:
            if self._failed.is_set():
                raise OSError("no space left, or none to be had")
            write(self._writer)
        except OSError as error:
            say(f"TensorBoard's events cannot be written ({one_line(error)}); the run goes on without them")
            self.close()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        with contextlib.suppress(OSError):
            writer.close()
        threading.excepthook = self._hook


def truncate(path: Path, step: int) -> None:
    """Drops the lines after `step` from a metrics file, and lines that are none of its own, which it counts aloud.

    The file is replaced in one move.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    kept = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
    if len(kept) != len(lines):
        if broken := sum(at is None for at in steps):
            say(f"{path}: {broken} {'line' if broken == 1 else 'lines'} that cannot be read left out")
        with replacing(path) as partial:
            partial.write_bytes(b"".join(kept))


def _step_of(line: bytes) -> int | None:
    """The step of a line; None of one that is cut short or something else."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None


class Progress:
    """Step, loss, examples a second and the time left: one line, rewritten on a terminal, printed elsewhere.

    Args:
        total: steps of the run.
        step: steps already taken.
        batch_size: examples a step.
        unit: what an example is called.
        stream: where to, default stdout.
    """

    def __init__(self, total: int, step: int, batch_size: int, unit: str = "images", stream: TextIO | None = None):
        self._total, self._batch_size, self._unit = total, batch_size, unit
        self._stream = sys.stdout if stream is None else stream
        self._live = self._stream.isatty()
        self._open_line = False
        self._step, self._time = step, time.perf_counter()
        self._paused = 0.0

    def pause(self, since: float) -> None:
        """Leaves out the time since a `perf_counter`, which was not spent on steps (evaluation, samples, ...)."""
        self._paused += time.perf_counter() - max(since, self._time)

    def update(self, step: int, loss: float) -> float:
        """Shows the line; returns examples a second since the last call."""
        now = time.perf_counter()
        seconds = max(now - self._time - self._paused, 1e-9)
        rate = (step - self._step) / seconds
        self._step, self._time, self._paused = step, now, 0.0
        if jax.process_index() == 0:
            left = duration((self._total - step) / rate) if rate > 0 else "?"
            width = len(str(self._total))
            text = (
                f"step {step:>{width}}/{self._total}  loss {loss:.4g}  "
                f"{rate * self._batch_size:,.0f} {self._unit}/s  ETA {left}"
            )
            if self._live:
                columns = shutil.get_terminal_size().columns - 1
                self._stream.write("\r" + text[:columns].ljust(columns))
                self._open_line = True
            else:
                self._stream.write(text + "\n")
            self._stream.flush()
        return rate * self._batch_size

    def break_line(self) -> None:
        """Ends a line that is being rewritten, so that something else can be printed."""
        if self._open_line:
            self._stream.write("\n")
            self._stream.flush()
            self._open_line = False


def duration(seconds: float) -> str:
    """`45s`, `3m20s`, `5h07m`, `2d03h`."""
    s = int(round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"
