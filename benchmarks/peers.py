"""Who takes part in a race of `throughput.py`, and PyTorch's part in it."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import time
from collections.abc import Callable
from typing import Any, Protocol

import timed

from sgmjax.tasks.score import ScoreTask

# Of a peer: its name in the tables, whose network, whether compiled, whether channels last.
KINDS = {
    "eager": ("PyTorch eager", "twin", False, True),
    "diffusers": ("diffusers eager", "diffusers", False, True),
    "compiled": ("PyTorch compiled", "twin", True, True),
    "diffusers_compiled": ("diffusers compiled", "diffusers", True, True),
    "eager_nchw": ("PyTorch eager, channels first", "twin", False, False),
}


class Contestant(Protocol):
    """Something to be timed.

    Attributes:
        name: in the tables.
        unit: what is counted, a step or an evaluation.
        settle: units left untimed at the beginning of each turn.
    """

    name: str
    unit: str
    settle: int

    def prepare(self) -> dict[str, Any]:
        """Compiles, warms up; facts."""
        ...

    def time(self, count: int) -> tuple[float, int]:
        """Seconds of at least `count` units, and how many they were."""
        ...

    def more(self, count: int) -> dict[str, Any]:
        """Facts that take measurements of their own."""
        ...


@functools.cache
def unavailable(kind: str) -> str | None:
    """Why a peer cannot take part, in one line; None: it can."""
    _, network, compiled, _ = KINDS[kind]
    for package in ("torch", "diffusers") if network == "diffusers" else ("torch",):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; pip install 'sgmjax[bench]'"
    import torch

    if compiled and not torch.cuda.is_available():
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return f"torch.compile needs a C++ compiler on a CPU, and there is no {compiler}; install one, or set CXX"
    return None


class TorchContestant:
    """A peer in PyTorch.

    Args:
        kind: of `KINDS`.
        unit: "step" or "evaluation".
        model: a run of the same config.
        mode: of `torch.compile`.
    """

    settle = 1

    def __init__(self, kind: str, unit: str, model: Callable[[], timed.Model], mode: str):
        self.name, self.of, compiled, self._channels_last = KINDS[kind]
        self.unit, self._model, self._mode = unit, model, mode if compiled else None

    def prepare(self) -> dict[str, Any]:
        """Builds the network and takes its first steps, which compile."""
        import torch_peer

        model = self._model()
        task, train = model.task, model.config.train
        assert isinstance(task, ScoreTask)
        channels = model.shape[-1]
        self.peer = torch_peer.Peer(
            model.config,
            self.of,
            task.sde.k * channels,
            task.sde.num_noised * channels,
            model.shape,
            train.batch_size,
            bfloat16=train.compute_dtype == "bfloat16",
            compiled=self._mode,
            channels_last=self._channels_last,
        )
        facts: dict[str, Any] = {"parameters": self.peer.num_parameters, "network": self.of}
        if self.of == "twin" and abs(self.peer.num_parameters / model.num_parameters - 1) > 1e-3:
            raise ValueError(f"the twin has {self.peer.num_parameters} parameters, the network {model.num_parameters}")
        if self.of == "diffusers":  # the twin is credited with our count
            facts["flops"] = self.peer.operations(self.unit == "step")
        elif self._mode is None:
            facts["flops_by_torch"] = self.peer.operations(self.unit == "step")
        self.batches = [self.peer.on_host(batch["x"]) for batch in model.batches()]
        self.peer.peak_memory()
        start = time.perf_counter()
        self.time(1)
        facts["first_s"] = time.perf_counter() - start
        self.time(2)
        return facts | {"memory_bytes": self.peer.peak_memory()}

    def time(self, count: int) -> tuple[float, int]:
        """Seconds of `count` steps or evaluations."""
        peer = self.peer
        return (peer.train(self.batches, count) if self.unit == "step" else peer.sample(count)), count

    def more(self, count: int) -> dict[str, Any]:
        """Nothing."""
        return {}
