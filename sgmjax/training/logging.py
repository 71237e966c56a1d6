"""What a run tells: `metrics.jsonl`, TensorBoard events and one line of progress. Only process 0 writes."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax

from sgmjax._inputs import replacing


def say(text: str) -> None:
    """Prints a message of the run, once for all processes."""
    if jax.process_index() == 0:
        print(text, flush=True)


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
        path = Path(workdir) / "metrics.jsonl"
        truncate(path, step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                return
            self._events = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step; NaN and infinities become null, which JSON can hold."""
        if self._file is None:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: Any) -> None:
        """Adds a picture, uint8 (H, W, 3), to the events."""
        if self._events is not None:
            self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes both."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def truncate(path: Path, step: int) -> None:
    """Drops the lines after `step`, and broken ones, from a metrics file; replaces it in one move."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
    if len(kept) != len(lines):
        with replacing(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


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
