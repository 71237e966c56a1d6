"""What `throughput.py` times beside whole steps: single convolutions, a matrix product, a copy; and a profile."""

from __future__ import annotations

import collections
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


def _repeated(function: Callable[..., Any], *args: Any) -> Callable[[int], float]:
    jitted = jax.jit(function)
    jax.block_until_ready(jitted(*args))

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count - 1):
            jitted(*args)
        jax.block_until_ready(jitted(*args))
        return time.perf_counter() - start

    return run


def convolution(side: int, c_in: int, c_out: int, batch: int, dtype: str) -> Callable[[int], float]:
    """run(count) -> seconds of so many 3 x 3 convolutions, forward and backward, channels last."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((batch, side, side, c_in), (3, 3, c_in, c_out), (batch, side, side, c_out))
    x, w, g = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def both(x, w, g):
        out, pull = jax.vjp(conv, x, w)
        return out, pull(g)

    return _repeated(both, x, w, g)


def matmul(size: int, dtype: str) -> Callable[[int], float]:
    """run(count) -> seconds of so many products of two square matrices."""
    a, b = (jax.random.normal(key, (size, size), dtype) for key in jax.random.split(jax.random.key(0)))
    return _repeated(jnp.matmul, a, b)


def copy(megabytes: int) -> Callable[[int], float]:
    """run(count) -> seconds of so many passes that read and write an array of this size."""
    return _repeated(lambda x: x + 1, jnp.zeros(megabytes * 2**18, jnp.float32))


KINDS = {  # of a kernel, by its name
    "convolution": r"conv|xmma|fprop|dgrad|wgrad|implicit|cudnn|nhwc|nchw",
    "matrix product": r"gemm|cublas|cutlass|dot|matmul",
    "attention": r"flash|fmha|softmax",
    "copy": r"memcpy|copy|memset|transpose",
    "reduction": r"reduce",
    "fusion": r"fusion|triton|loop|wrapped|input_",
}


def _is_kernel(event: Any) -> bool:
    """Not a thread pool's or the runtime's own word."""
    return event.duration_ns > 0 and "::" not in event.name and not event.name.startswith("end: ")


def profile(work: Callable[[], Any], keep: Path | None = None) -> dict[str, Any]:
    """Where a piece of work spends the device's time, from JAX's profiler.

    Args:
        work: what is done; ends when the device has ended.
        keep: file for the trace itself, to be opened by Perfetto.

    Returns:
        `window_ms` from the first kernel to the end of the last, `busy_ms` in which any ran, `idle` the share in which
        none did, `kinds` {kind: ms}, `kernels` [(name, calls, ms)] of the longest.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            work()
        planes = []
        for file in Path(folder).rglob("*.xplane.pb"):
            planes += jax.profiler.ProfileData.from_file(str(file)).planes
        if keep is not None:
            for file in Path(folder).rglob("*.trace.json.gz"):
                shutil.copy(file, keep)
        devices = [p for p in planes if p.name.startswith("/device:")] or [p for p in planes if "CPU" in p.name]
        lines = [line for plane in devices for line in plane.lines]
        lines = [line for line in lines if line.name.startswith("Stream")] or lines
        lines = [line for line in lines if line.name != "python"]  # what the host did, on a CPU
        events = [(e.name, e.start_ns, e.duration_ns) for line in lines for e in line.events if _is_kernel(e)]
    calls: collections.Counter[str] = collections.Counter()
    spent: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    busy, end = 0.0, -math.inf  # on several threads of a CPU at once, or on one
    for name, start, length in sorted(events, key=lambda event: event[1]):
        calls[name] += 1
        spent[name] += length
        kinds[next((kind for kind, words in KINDS.items() if re.search(words, name, re.I)), "other")] += length
        busy += max(0.0, start + length - max(start, end))
        end = max(end, start + length)
    window = end - min((start for _, start, _ in events), default=0.0)
    return {
        "window_ms": window / 1e6,
        "busy_ms": busy / 1e6,
        "idle": 1 - busy / window if window else None,
        "kinds": {kind: total / 1e6 for kind, total in kinds.most_common()},
        "kernels": [(name, calls[name], total / 1e6) for name, total in spent.most_common(60)],
    }
