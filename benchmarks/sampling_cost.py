"""What sampling costs by the number of samples and of steps: time, to be linear in both, and memory, to be flat.

    python benchmarks/sampling_cost.py --out=sampling_cost.json                   # minutes, two CPU cores
    python benchmarks/sampling_cost.py --config=psld_cifar_ablation --num=256,512,1024 --config.sampling.batch_size=128
    python benchmarks/sampling_cost.py --quick                                    # does it run here?

Each point is a process of its own that draws with fresh parameters as metrics do: batches of `sampling.batch_size`
from `evaluation.draw.Sampler`, streamed into `evaluation.chunks.Chunks` on disk. It compiles nothing: a process before
it has put the program into a cache. Wall and processor time are of drawing and writing. Memory is the most that the
process held during that (Linux's VmHWM, reset before), what of it the drawing added, and the most of its whole life
(`ru_maxrss`). For each line through the points: the slope, R^2, and the largest distance of a point from it, relative
to the point. The parameters are random: what a step costs does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import timed
from report import hardware, markdown, versions

from sgmjax import _cli
from sgmjax.evaluation import draw, pictures
from sgmjax.evaluation.chunks import Chunks, chunk_size


def point(config_name: str, overrides: list[tuple[str, Any]], num: int) -> dict[str, Any]:
    """Draws `num` samples of a config in this process; seconds and bytes."""
    config, _ = _cli.read_config(config_name, overrides)
    shape = timed.example_shape(config)
    model = timed.Model(timed.with_settings(config, batch=config.sampling.batch_size, dtype="float32"), shape)
    task, weights, batch = model.task, model.state.averaged, config.sampling.batch_size
    places = jax.tree.map(lambda x: x.sharding, weights)
    sampler = draw.sampler_of(task, model.config.sampling, model.run.mesh, places, batch)
    used = sampler(weights, model.key, 1)
    assert used is not None  # nothing stops it
    before = _memory("VmRSS", reset=True)

    def make(first: int, count: int) -> tuple[np.ndarray, dict[str, Any]]:
        drawn = sampler(weights, model.key, count, first=first)
        assert drawn is not None
        return pictures.to_arrays(drawn[0], task.discrete, task.centered), {"nfe": drawn[1]}

    with tempfile.TemporaryDirectory() as folder:
        samples = Chunks(Path(folder) / "samples", {}, chunk_size(num, sampler.batch_size))
        start, busy = time.perf_counter(), time.process_time()
        samples.fill(num, make)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = _memory("VmHWM")
    found = {"num": num, "nfe": used[1], "seconds": seconds, "cpu_seconds": busy, "load": os.getloadavg()[0]}
    whole = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {"peak_bytes": peak, "added_bytes": peak - before, "maxrss_bytes": whole}


def _memory(name: str, *, reset: bool = False) -> int:
    """Bytes by a line of Linux's /proc/self/status; `reset` lets the most that was held begin anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The line through points by least squares, how much of the spread it explains, and how far a point is from it."""
    slope, start = np.polyfit(x, y, 1)
    fitted = slope * np.asarray(x) + start
    left, spread = np.sum((y - fitted) ** 2), np.sum((np.asarray(y) - np.mean(y)) ** 2)
    deviation = np.max(np.abs(fitted - y) / np.asarray(y))
    return {"slope": slope, "start": start, "r2": 1 - left / spread, "deviation": float(deviation)}


def summary(points: list[dict[str, Any]], by: str) -> dict[str, Any]:
    """Of points that differ in `by` ("num" or "steps"): the lines of both times, and the range of the memory."""
    x = [float(p[by]) for p in points]
    found: dict[str, Any] = {"by": by, "from": min(x), "to": max(x)}
    for name in ("seconds", "cpu_seconds"):
        found[name] = line(x, [p[name] for p in points])
    peaks = [p["peak_bytes"] for p in points]
    return found | {"peak_bytes": {"low": min(peaks), "high": max(peaks), "median": statistics.median(peaks)}}


def table(values: dict[str, Any]) -> str:
    """Points and lines as Markdown."""
    rows = [
        [
            p["sampler"], f"{p['num']:,}", str(p["steps"]), f"{p['seconds']:.2f}", f"{p['cpu_seconds']:.2f}",
            f"{1e6 * p['cpu_seconds'] / p['num'] / p['steps']:.1f}", f"{p['peak_bytes'] / 2**20:,.0f}",
            f"{p['added_bytes'] / 2**20:,.1f}", f"{p['load']:.1f}",
        ]
        for p in values["points"]
    ]  # fmt: skip
    columns = (
        "sampler", "samples", "steps", "s", "processor s", "us a sample and step", "peak MiB", "added MiB", "load",
    )  # fmt: skip
    lines = [*markdown(columns, rows), ""]
    rows = [
        [
            s["sampler"], {"num": "samples", "steps": "steps"}[s["by"]],
            f"{1e3 * s['seconds']['slope']:.2f}", f"{s['seconds']['r2']:.4f}",
            f"{100 * s['seconds']['deviation']:.0f}%",
            f"{1e3 * s['cpu_seconds']['slope']:.2f}", f"{s['cpu_seconds']['r2']:.4f}",
            f"{100 * s['cpu_seconds']['deviation']:.0f}%",
            f"{s['peak_bytes']['low'] / 2**20:,.0f} - {s['peak_bytes']['high'] / 2**20:,.0f}",
        ]
        for s in values["lines"]
    ]  # fmt: skip
    columns = (
        "sampler", "by", "ms each", "R^2", "farthest", "processor ms each", "R^2", "farthest", "peak MiB",
    )  # fmt: skip
    return "\n".join([*lines, *markdown(columns, rows)])


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    words, overrides = _cli.split_overrides(argv)

    def integers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="psld_digits")
    parser.add_argument("--samplers", default="em,sscs", type=lambda text: text.split(","))
    parser.add_argument("--num", type=integers, default=[500, 1000, 2000, 4000], help="with the first of --steps")
    parser.add_argument("--steps", type=integers, default=[25, 50, 100, 200], help="with the first of --num")
    parser.add_argument("--out", help="the JSON file")
    parser.add_argument("--quick", action="store_true", help="a tiny network and few points, to see that it runs")
    parser.add_argument("--point", type=int, help=argparse.SUPPRESS)  # what a process is started for
    options = parser.parse_args(words)
    if options.point is not None:
        print(json.dumps(point(options.config, overrides, options.point)))
        return 0
    if options.quick:
        options.num, options.steps, options.samplers = [8, 16, 32], [4, 8, 16], options.samplers[:1]
        overrides = [("model.nf", 8), ("sampling.batch_size", 8), *overrides]
    if min(len(options.num), len(options.steps)) < 2:
        raise _cli.UsageError("--num, --steps: a line needs two points at least; give more, as --num=500,1000,2000")
    values = measure(options, overrides)
    print(table(values))
    return 0


def measure(options: argparse.Namespace, overrides: list[tuple[str, Any]]) -> dict[str, Any]:
    """All points, each in a process, and the lines through them."""
    values: dict[str, Any] = {"hardware": hardware(), "versions": versions(), "config": options.config}
    values |= {"points": [], "lines": []}
    with tempfile.TemporaryDirectory() as folder:
        for sampler in options.samplers:
            found = {}
            for steps in options.steps:
                nums = options.num if steps == options.steps[0] else options.num[:1]
                for num in [1, *nums]:  # the first compiles
                    settings = [*overrides, ("sampling.sampler", sampler), ("sampling.steps", steps)]
                    measured = _in_process(options.config, settings, num, folder)
                    if num > 1:
                        found[num, steps] = {"sampler": sampler, "steps": steps, **measured}
                        print(f"{sampler}, {steps} steps, {num} samples: {measured['seconds']:.2f} s", file=sys.stderr)
            values["points"] += found.values()
            by_num = [found[num, options.steps[0]] for num in options.num]
            by_steps = [found[options.num[0], steps] for steps in options.steps]
            values["lines"] += [{"sampler": sampler, **summary(by_num, "num")}]
            values["lines"] += [{"sampler": sampler, **summary(by_steps, "steps")}]
            if options.out:
                Path(options.out).write_text(json.dumps(values, indent=1) + "\n")
    return values


def _in_process(config: str, overrides: list[tuple[str, Any]], num: int, cache: str) -> dict[str, Any]:
    words = [f"--config={config}", f"--point={num}", *(f"--config.{path}={value}" for path, value in overrides)]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    done = subprocess.run([sys.executable, __file__, *words], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    _cli.run(main, sys.argv[1:])
