"""SIGTERM and Ctrl-C as a flag that the loop looks at, so that it can save first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import jax


class Interrupt:
    """Within the `with` block, the first SIGTERM or SIGINT is only noted; a second one acts as usual.

    A signal that the process was started to ignore stays ignored. With several processes JAX's own preemption service
    takes the signal, and makes all of them stop at the same step.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    @property
    def name(self) -> str:
        """Of the signal that came."""
        return self.received.name if self.received else "no signal"

    def __enter__(self) -> Interrupt:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) == signal.SIG_IGN:  # as of a job started with nohup or &
                    continue
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def check(self, step: int) -> bool:
        """Whether to stop after this step; with several processes all of them must ask, at every step."""
        if jax.process_count() > 1 and self.received is None:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.received = signal.SIGTERM
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}
