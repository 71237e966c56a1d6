"""How fast it trains and samples, beside PyTorch in the same run: time, memory, compilation, utilisation.

    python benchmarks/throughput.py --configs=psld_cifar,psld_cifar_ablation --out=throughput.json      # minutes, a GPU
    python benchmarks/throughput.py --quick                                                # seconds, tiny networks
    python benchmarks/throughput.py --configs=psld_cifar_ablation --batch=4 --dtypes=float32 --only=train

For each config, first in the first of --dtypes:

    train     the training step (forward, backward, clipping, Adam, moving average), as a run dispatches it
    sample    one evaluation of the network, and the config's sampler whole, by network evaluations
    kernels   its 3 x 3 convolutions one by one, forward and backward; a matrix product; a copy: what the hardware gives
    trace     where the device's time goes in three training steps, and how long it waits
    variants  the training step with several steps a call, another random generator, other settings of XLA (--variants)

The peer is `torch_twin.py`: the same network with the same number of parameters, training and sampling alike, eager
(channels last, and channels first) and compiled; for configs of other networks there is none. Ours and the peers take
turns; each turn is one number, and medians and extremes of the turns are reported, ratios from turns of one round.
Utilisation (MFU) is the operations of the network's convolutions and matrix products over time and the hardware's dense
peak (--peak in TFLOP/s where the table has none); the peer is credited with the same operations.

Writes --out (JSON) after every measurement, and the same as a table beside it, `.md`. What --budget (seconds) does not
reach is listed as skipped. Settings of the configs can be overridden as for training, --config.model.nf=64.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the memory is shared with PyTorch

import argparse
import contextlib
import dataclasses
import gc
import importlib
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import timed

from sgmjax import _cli
from sgmjax._inputs import one_line
from sgmjax.config import Config

# Dense peaks in TFLOP/s, (bfloat16, float32 as JAX multiplies by default: TF32 on NVIDIA, bfloat16 passes on TPUs).
PEAKS = {
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "TPU v6": (918.0, 918.0),
    "TPU v5 lite": (197.0, 197.0),
    "TPU v5": (459.0, 459.0),
    "TPU v4": (275.0, 275.0),
}
QUICK = [
    ("model.nf", 8), ("model.num_res_blocks", 1), ("model.dropout", 0.1), ("sampling.rtol", 1e-2),
    ("sampling.atol", 1e-2), ("data.image_size", 16),
]  # fmt: skip


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


class TorchContestant:
    """The twin in PyTorch.

    Args:
        name: "eager", "eager_nchw" (channels first) or "compiled".
        unit: "step" or "evaluation".
        model: a run of the same config.
        mode: of `torch.compile`.
    """

    settle = 1

    def __init__(self, name: str, unit: str, model: Callable[[], timed.Model], mode: str):
        self.name, self.unit, self._model, self._mode = f"PyTorch {name}", unit, model, mode
        self._kind = name

    def prepare(self) -> dict[str, Any]:
        """Builds the network and takes its first steps, which compile."""
        import torch_twin

        model = self._model()
        sde, channels, train = model.task.sde, model.shape[-1], model.config.train
        self.peer = torch_twin.Peer(
            model.config,
            sde.k * channels,
            sde.num_noised * channels,
            model.shape,
            train.batch_size,
            bfloat16=train.compute_dtype == "bfloat16",
            compiled=self._mode if self._kind == "compiled" else None,
            channels_last=self._kind != "eager_nchw",
        )
        ours = model.num_parameters
        if abs(self.peer.num_parameters / ours - 1) > 1e-3:
            raise ValueError(f"the twin has {self.peer.num_parameters} parameters, the network {ours}")
        self.batches = [self.peer.on_host(batch["x"]) for batch in model.batches()]
        self.peer.peak_memory()
        start = time.perf_counter()
        self.time(1)
        first = time.perf_counter() - start
        self.time(2)
        return {"first_s": first, "memory_bytes": self.peer.peak_memory(), "parameters": self.peer.num_parameters}

    def time(self, count: int) -> tuple[float, int]:
        """Seconds of `count` steps or evaluations."""
        peer = self.peer
        return (peer.train(self.batches, count) if self.unit == "step" else peer.sample(count)), count

    def more(self, count: int) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclasses.dataclass
class Item:
    """One entry of the plan."""

    what: str
    config: str
    dtype: str

    @property
    def title(self) -> str:
        return f"{self.what} {self.config} {self.dtype}"


class Report:
    """All results so far, in a file that is whole at any time."""

    def __init__(self, path: Path | None, **facts: Any):
        self.path = path
        self.values: dict[str, Any] = {**facts, "measurements": [], "ratios": [], "parts": [], "skipped": []}

    def write(self) -> None:
        """Writes the JSON file and the tables."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (self.path, json.dumps(self.values, indent=1)),
            (self.path.with_suffix(".md"), self.table()),
        ):
            new = path.with_name(path.name + ".new")
            new.write_text(text + "\n")
            new.replace(path)

    def table(self) -> str:
        """Everything as Markdown."""
        hardware = self.values["hardware"]
        lines = ["# Throughput", "", ", ".join(f"{name} {value}" for name, value in hardware.items()), ""]
        lines += [", ".join(f"{name} {version}" for name, version in self.values["versions"].items()), ""]
        rows = [_row(entry) for entry in self.values["measurements"]]
        lines += _markdown(_COLUMNS, rows)
        if self.values["ratios"]:
            rows = [
                [r["item"], r["one"], r["other"], f"{r['ratio']:.2f}", f"{r['low']:.2f} - {r['high']:.2f}"]
                for r in self.values["ratios"]
            ]
            lines += ["", "Time of the other over that of the one, in the same rounds:", ""]
            lines += _markdown(("", "one", "other", "ratio", "lowest - highest"), rows)
        if self.values["parts"]:
            rows = [
                [p["name"], p["by"], f"{p['ms']:.3f}", _number(p.get("rate"), 1), p["unit"]]
                for p in self.values["parts"]
            ]
            lines += ["", "Single parts:", "", *_markdown(("part", "by", "ms", "rate", "unit"), rows)]
        for entry in self.values.get("traces", ()):
            kinds = ", ".join(f"{kind} {ms:.1f}" for kind, ms in entry["kinds"].items())
            lines += [
                "",
                f"{entry['item']}: device busy {entry['busy_ms']:.1f} of {entry['window_ms']:.1f} ms: {kinds}",
            ]
            rows = [[name[:90].replace("|", "/"), str(calls), f"{ms:.2f}"] for name, calls, ms in entry["kernels"][:20]]
            lines += ["", *_markdown(("kernel", "calls", "ms"), rows)]
        if self.values["skipped"]:
            lines += ["", "Not measured: " + "; ".join(f"{s['item']} ({s['why']})" for s in self.values["skipped"])]
        return "\n".join(lines)


_COLUMNS = (
    "", "what", "ms", "lowest - highest", "images/s", "TFLOP/s", "MFU", "GiB", "trace s", "compile s", "host ms",
    "blocked ms", "load",
)  # fmt: skip


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _row(entry: dict[str, Any]) -> list[str]:
    name = entry["name"] if "nfe" not in entry else f"{entry['name']} {entry['sampler']}, NFE {entry['nfe']}"
    if "error" in entry:
        return [entry["item"], name, entry["error"][:80].replace("|", "/"), *[""] * (len(_COLUMNS) - 3)]
    memory = entry.get("memory_bytes")
    return [
        entry["item"],
        name,
        f"{entry['ms']:.3f}",
        f"{entry['low']:.3f} - {entry['high']:.3f}",
        _number(entry["images_per_s"], 1),
        _number(entry.get("tflops_per_s"), 1),
        "" if entry.get("mfu") is None else f"{100 * entry['mfu']:.1f}%",
        "" if memory is None else f"{memory / 2**30:.2f}",
        _number(entry.get("trace_s"), 1),
        _number(entry.get("compile_s", entry.get("first_s")), 1),
        _number(entry.get("host_ms"), 2),
        _number(entry.get("blocked_ms"), 3),
        f"{entry['load']:.1f}",
    ]


def _markdown(header: Sequence[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


class Benchmark:
    """The plan, done one item after the other within the budget."""

    def __init__(self, options: argparse.Namespace, overrides: Sequence[tuple[str, Any]]):
        self.options, self.overrides = options, list(overrides)
        self.start = time.perf_counter()
        kind = jax.devices()[0].device_kind
        self.peak = {"bfloat16": options.peak, "float32": options.peak}
        if options.peak is None:
            known = next((peaks for name, peaks in PEAKS.items() if name.lower() in kind.lower()), (None, None))
            self.peak = dict(zip(self.peak, known, strict=True))
        # JAX has the device before PyTorch is imported: each then loads its own libraries in an order known to work.
        jax.block_until_ready(timed.convolution(8, 8, 8, 1, "float32")(1))
        report = {"hardware": hardware(), "versions": versions(), "command": sys.argv[1:]}
        self.report = Report(Path(options.out) if options.out else None, **report, traces=[])
        self.longest: dict[str, float] = {}  # seconds to prepare, by what is prepared

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def plan(self) -> list[Item]:
        """What is measured, the most important first."""
        options = self.options
        first, *others = options.dtypes
        items = []
        for i, name in enumerate(options.configs):
            items += [Item("train", name, first), Item("sample", name, first)]
            if i == 0:
                items += [Item("trace", name, first), Item("kernels", name, first)]
                items += [Item(what, name, dtype) for dtype in others for what in ("train", "sample")]
        if options.variants:
            items.append(Item("variants", options.variants_config or options.configs[-1], first))
        for name in options.configs[1:]:
            items += [Item(what, name, dtype) for dtype in others for what in ("train", "sample")]
        return [item for item in items if item.what in options.only]

    def run(self) -> dict[str, Any]:
        """Measures; returns the report."""
        for item in self.plan():
            if self.options.budget and self.elapsed > self.options.budget:
                self.skip(item.title, "no time left")
                continue
            self.say(f"{item.title} ...")
            try:
                getattr(self, f"_{item.what}")(item)
            except Exception as error:  # the other items are still worth having
                self.skip(item.title, f"{type(error).__name__}: {one_line(error, 300)}")
                if os.environ.get("SGMJAX_TRACEBACK", "0") not in ("", "0"):
                    raise
            self.clean()
        self.report.values["elapsed_s"] = self.elapsed
        self.report.write()
        return self.report.values

    def say(self, text: str) -> None:
        """A line on stderr, with the time."""
        print(f"[{self.elapsed:6.1f} s] {text}", file=sys.stderr, flush=True)

    def skip(self, title: str, why: str) -> None:
        """Records what was not measured."""
        self.say(f"skipped {title}: {why}")
        self.report.values["skipped"].append({"item": title, "why": why})
        self.report.write()

    def clean(self) -> None:
        """Gives back what the last item held."""
        gc.collect()
        if "torch" in sys.modules:
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------------------------------ items
    def _config(self, item: Item, *, batch: int, dispatch: int = 1) -> tuple[Config, Config]:
        """The config as published, with the overrides, and as it is timed."""
        overrides = [*(QUICK if self.options.quick else ()), *self.overrides]
        settings = _cli.load_config(*_cli.find_config(item.config))
        if self.options.quick:  # only what this network has
            overrides = [(path, value) for path, value in overrides if _has(settings, path)]
        config, _ = _cli.read_config(item.config, overrides)
        limit = self.options.evaluations
        settings = {"batch": batch, "dtype": item.dtype, "dispatch": dispatch, "evaluations": limit}
        return config, timed.with_settings(config, **settings)

    def _maker(self, item: Item, *, batch: int, dispatch: int = 1, shared: bool = False) -> Callable[[], timed.Model]:
        _, config = self._config(item, batch=batch, dispatch=dispatch)
        made: list[timed.Model] = []

        def make() -> timed.Model:
            if made and shared:
                return made[0]
            made[:] = [timed.Model(config, timed.example_shape(config))]
            return made[0]

        return make

    def _peers(self, unit: str, model: Callable[[], timed.Model], config: Config) -> list[Contestant]:
        if config.model.name != "ncsnpp" or config.vae is not None:
            return []
        return [TorchContestant(name, unit, model, self.options.torch_mode) for name in self.options.peers]

    def _train(self, item: Item) -> None:
        batch = self.options.batch
        # The step consumes its state, and the peers need the model only for its sizes.
        make = self._maker(item, batch=batch, shared=True)
        config, _ = self._config(item, batch=batch)
        contestants = [timed.Training("sgmjax", make), *self._peers("step", make, config)]
        self.race(item, contestants, batch)

    def _sample(self, item: Item) -> None:
        batch = self.options.sample_batch or self.options.batch
        make = self._maker(item, batch=batch, shared=True)
        config, _ = self._config(item, batch=batch)
        contestants: list[Contestant] = []
        if config.vae is None:
            contestants.append(timed.Evaluations("sgmjax network", make))
        contestants += self._peers("evaluation", make, config)
        contestants.append(timed.Sampling("sgmjax sampler", make, config.sampling.steps))
        self.race(item, contestants, batch)

    def _variants(self, item: Item) -> None:
        batch = self.options.batch
        contestants: list[Contestant] = [timed.Training("sgmjax", self._maker(item, batch=batch))]
        for text in self.options.variants:
            name, _, value = text.partition("=")
            if name == "dispatch":
                contestants.append(timed.Training(text, self._maker(item, batch=batch, dispatch=int(value))))
            elif name == "prng":
                contestants.append(_OtherRandomness(text, self._maker(item, batch=batch), value))
            else:
                pairs = [pair.partition(":") for pair in text.split("+")]
                chosen = {key: _cli.literal(value) for key, _, value in pairs}
                contestants.append(timed.Training(text, self._maker(item, batch=batch), chosen))
        self.race(item, contestants, batch)

    def _trace(self, item: Item) -> None:
        training = timed.Training("sgmjax", self._maker(item, batch=self.options.batch))
        training.prepare()
        training.time(3)
        keep = None if self.report.path is None else self.report.path.with_name("throughput_trace.json.gz")
        found = timed.profile(lambda: training.time(3), keep)
        self.report.values["traces"].append({"item": item.title, "steps": 3, **found})
        self.report.write()

    def _kernels(self, item: Item) -> None:
        quick, batch = self.options.quick, self.options.batch
        with contextlib.suppress(ImportError):
            importlib.import_module("torch_twin")
        config, _ = self._config(item, batch=batch)
        size = 128 if quick else 8192
        self.part(f"{size} x {size} matrix product {item.dtype}", "JAX", timed.matmul(size, item.dtype), 2.0 * size**3)
        megabytes = 1 if quick else 1024
        self.part(f"read and write of {megabytes} MiB", "JAX", timed.copy(megabytes), 2.0 * megabytes * 2**20, "GB/s")
        model: Any = config.model
        if not hasattr(model, "ch_mult"):
            return
        side = timed.example_shape(config)[0]
        shapes = []
        for level, mult in enumerate(model.ch_mult):
            c = model.nf * mult
            shapes.append((side // 2**level, c, c))
            if level == 0:
                shapes.append((side, 2 * c, c))
        for side, c_in, c_out in shapes:
            flops = 3 * 2.0 * 9 * side * side * batch * c_in * c_out
            title = f"convolution {side} x {side}, {c_in} to {c_out}, both ways, {item.dtype}"
            self.part(title, "JAX", timed.convolution(side, c_in, c_out, batch, item.dtype), flops)
            if "torch_twin" in sys.modules:
                run = sys.modules["torch_twin"].convolution(side, c_in, c_out, batch, item.dtype == "bfloat16")
                self.part(title, "PyTorch", run, flops)

    # ---------------------------------------------------------------------------------------------------------- timing
    def part(self, name: str, by: str, run: Callable[[int], float], amount: float, unit: str = "TFLOP/s") -> None:
        """Times one piece of work; `amount` are its operations or bytes."""
        run(2)
        count = int(np.clip(0.1 * self.options.seconds / max(run(1), 1e-6), 1, 200))
        ms = 1e3 * statistics.median(run(count) / count for _ in range(self.options.rounds))
        rate = amount / (ms / 1e3) / (1e12 if unit == "TFLOP/s" else 1e9)
        self.report.values["parts"].append({"name": name, "by": by, "ms": ms, "rate": rate, "unit": unit})
        self.report.write()

    def race(self, item: Item, contestants: Sequence[Contestant], batch: int) -> None:
        """Prepares all, then times them in turns; every contestant's entry is written as soon as it is there."""
        ready: list[tuple[Contestant, dict[str, Any], int, list[float]]] = []
        for contestant in contestants:
            key = f"{item.what} {contestant.name}"
            if self.options.budget and self.elapsed + self.longest.get(key, 0.0) > self.options.budget:
                self.skip(f"{item.title}: {contestant.name}", "no time left")
                continue
            entry: dict[str, Any] = {
                "item": item.title,
                "name": contestant.name,
                "unit": contestant.unit,
                "batch": batch,
            }
            self.report.values["measurements"].append(entry)
            start = time.perf_counter()
            try:
                facts = contestant.prepare()
                seconds, count = contestant.time(1)
                if contestant.settle:
                    seconds, count = contestant.time(3)
            except ImportError as error:
                entry["error"] = one_line(error, 200)
                continue
            except Exception as error:  # out of memory, say
                entry["error"] = f"{type(error).__name__}: {one_line(error, 1000)}"
                self.say(f"{contestant.name}: {entry['error']}")
                self.report.write()
                if os.environ.get("SGMJAX_TRACEBACK", "0") not in ("", "0"):
                    raise
                continue
            self.longest[key] = time.perf_counter() - start
            entry |= {**facts, "load": os.getloadavg()[0], "prepare_s": self.longest[key]}
            units = max(1, round(self.options.seconds / (seconds / count)))
            ready.append((contestant, entry, units, [1e3 * seconds / count]))
            self._enter(item, ready)  # to be replaced
            self.say(f"{contestant.name}: {1e3 * seconds / count:.3f} ms, prepared in {self.longest[key]:.1f} s")
        for *_, turns in ready:
            turns.clear()
        for _ in range(self.options.rounds):
            for contestant, entry, units, turns in ready:
                if contestant.settle:
                    contestant.time(contestant.settle)
                seconds, count = contestant.time(units)
                turns.append(1e3 * seconds / count)
                entry["load"] = os.getloadavg()[0]
            self._enter(item, ready)
        for contestant, entry, units, _ in ready:
            entry |= contestant.more(units)
        self._enter(item, ready)

    def _enter(self, item: Item, ready: list[tuple[Contestant, dict[str, Any], int, list[float]]]) -> None:
        """Brings the report up to date with the turns that were taken."""
        values = self.report.values
        first = next((e for _, e, _, _ in ready if "flops" in e), {})
        for _, entry, _, turns in ready:
            ms = statistics.median(turns)
            entry |= {"ms": ms, "low": min(turns), "high": max(turns), "turns": list(turns), "provisional": False}
            entry["provisional"] = len(turns) < self.options.rounds
            evaluations = entry.get("nfe_of_config", 1)
            entry["images_per_s"] = entry["batch"] / (ms / 1e3) / evaluations
            if "flops" in first:
                entry["tflops_per_s"] = first["flops"] / (ms / 1e3) / 1e12
                peak = self.peak[item.dtype]
                entry["mfu"] = None if peak is None else entry["tflops_per_s"] / peak
        values["ratios"] = [r for r in values["ratios"] if r["item"] != item.title]
        pairs = [(ready[0], other) for other in ready[1:]]
        for one in (one for one in ready[1:] if isinstance(one[0], timed.Sampling)):
            pairs += [(one, other) for other in ready if isinstance(other[0], TorchContestant)]
        for one, other in pairs:
            rates = [b / a for a, b in zip(one[3], other[3], strict=False)]
            ratio = {"ratio": statistics.median(rates), "low": min(rates), "high": max(rates)}
            values["ratios"].append({"item": item.title, "other": other[1]["name"], "one": one[1]["name"], **ratio})
        self.report.write()


class _OtherRandomness(timed.Training):
    """The training step with another random generator."""

    def __init__(self, name: str, model: Callable[[], timed.Model], generator: str):
        super().__init__(name, model)
        self._generator = generator

    def prepare(self) -> dict[str, Any]:
        """With keys of that generator throughout."""
        before = jax.config.jax_default_prng_impl  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_default_prng_impl", self._generator)
        try:
            return super().prepare()
        finally:
            jax.config.update("jax_default_prng_impl", before)


def _has(settings: Any, path: str) -> bool:
    for name in path.split("."):
        if not isinstance(settings, dict) or name not in settings:
            return False
        settings = settings[name]
    return True


def hardware() -> dict[str, Any]:
    """Devices, processor, cores, load, and what the driver says."""
    device = jax.devices()[0]
    found: dict[str, Any] = {"device": f"{jax.device_count()} x {device.device_kind}", "backend": jax.default_backend()}
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found["processor"] = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    found |= {"cores": os.cpu_count(), "load": " ".join(f"{value:.2f}" for value in os.getloadavg())}
    if shutil.which("nvidia-smi"):
        fields = "driver_version,clocks.sm,clocks.max.sm,power.draw,temperature.gpu,utilization.gpu"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found["driver"] = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    return found


def versions() -> dict[str, str]:
    """Of the software that matters, and the settings of XLA."""
    found = {"python": platform.python_version()}
    for name in (
        "sgmjax",
        "jax",
        "jaxlib",
        "jax-cuda12-plugin",
        "jax-cuda13-plugin",
        "flax",
        "optax",
        "torch",
        "triton",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    for name in ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if os.environ.get("XLA_FLAGS"):
        found["XLA_FLAGS"] = os.environ["XLA_FLAGS"]
    return found


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, Any]]]:
    """The flags, and the overrides of settings."""
    words, overrides = _cli.split_overrides(argv)

    def listed(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=listed, default=["psld_cifar", "psld_cifar_ablation"])
    parser.add_argument("--batch", type=int, help="images a step; default 128, quick 2")
    parser.add_argument("--sample-batch", type=int, help="images drawn at a time; default --batch")
    parser.add_argument("--dtypes", type=listed, default=["bfloat16", "float32"])
    parser.add_argument("--only", type=listed, default=["train", "sample", "trace", "kernels", "variants"])
    parser.add_argument("--peers", type=listed, help="eager, eager_nchw, compiled; default all, quick eager")
    parser.add_argument("--torch-mode", default="default", help="of torch.compile")
    parser.add_argument(
        "--variants", type=listed, help="dispatch=8, prng=rbg, and options of XLA as name:value+name:value"
    )
    parser.add_argument("--variants-config", help="default the last of --configs")
    parser.add_argument("--evaluations", type=int, help="at most so many of samplers on a grid; default 100, quick 12")
    parser.add_argument("--rounds", type=int, help="turns of each; default 5, quick 2")
    parser.add_argument("--seconds", type=float, help="of a turn; default 1, quick 0.02")
    parser.add_argument("--budget", type=float, help="seconds after which nothing new is begun")
    parser.add_argument("--peak", type=float, help="of the hardware, TFLOP/s")
    parser.add_argument("--out", help="the JSON file")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it runs")
    options = parser.parse_args(words)
    quick = options.quick
    defaults = {
        "batch": 2 if quick else 128,
        "peers": ["eager"] if quick else ["eager", "eager_nchw", "compiled"],
        "variants": ["dispatch=2", "prng=rbg"] if quick else ["dispatch=8", "prng=rbg"],
        "evaluations": 12 if quick else 100,
        "rounds": 2 if quick else 5,
        "seconds": 0.02 if quick else 1.0,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options, overrides


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    options, overrides = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        # Programs are compiled afresh, but those which several measurements share (initialisation) only once.
        jax.config.update("jax_compilation_cache_dir", folder)
        benchmark = Benchmark(options, overrides)
        try:
            benchmark.run()
        finally:
            benchmark.report.write()
            print(benchmark.report.table())
            jax.config.update("jax_compilation_cache_dir", None)
    return 0


if __name__ == "__main__":
    _cli.run(main, sys.argv[1:])
