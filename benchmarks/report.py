"""What `throughput.py` writes: the results as JSON and as tables, with hardware and versions."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from sgmjax._files import replacing


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
            with replacing(path) as partial:
                partial.write_text(text + "\n")

    def table(self) -> str:
        """Everything as Markdown."""
        hardware = self.values["hardware"]
        lines = ["# Throughput", "", ", ".join(f"{name} {value}" for name, value in hardware.items()), ""]
        lines += [", ".join(f"{name} {version}" for name, version in self.values["versions"].items()), ""]
        rows = [_row(entry) for entry in self.values["measurements"]]
        lines += markdown(_COLUMNS, rows)
        if any(entry["provisional"] for entry in self.values["measurements"]):
            lines += ["", "*: not all of its turns were taken."]
        if self.values["ratios"]:
            rows = [
                [r["item"], r["one"], r["other"], f"{r['ratio']:.2f}", f"{r['low']:.2f} - {r['high']:.2f}"]
                for r in self.values["ratios"]
            ]
            lines += ["", "Time of the other over that of the one, in the same rounds:", ""]
            lines += markdown(("", "one", "other", "ratio", "lowest - highest"), rows)
        if self.values["parts"]:
            rows = [
                [p["name"], p["by"], f"{p['ms']:.3f}", _digits(p.get("rate")), p["unit"]] for p in self.values["parts"]
            ]
            lines += ["", "Single parts:", "", *markdown(("part", "by", "ms", "rate", "unit"), rows)]
        for entry in self.values.get("traces", ()):
            kinds = ", ".join(f"{kind} {ms:.1f}" for kind, ms in entry["kinds"].items())
            lines += [
                "",
                f"{entry['item']}: device busy {entry['busy_ms']:.1f} of {entry['window_ms']:.1f} ms: {kinds}",
            ]
            rows = [[name[:90].replace("|", "/"), str(calls), f"{ms:.2f}"] for name, calls, ms in entry["kernels"][:20]]
            lines += ["", *markdown(("kernel", "calls", "ms"), rows)]
        left: dict[str, list[str]] = {}
        for entry in self.values["skipped"]:
            left.setdefault(entry["why"], []).append(entry["item"])
        if self.values.get("not_reached"):
            left["not reached"] = self.values["not_reached"]
        if left:
            lines += ["", "Not measured:", "", *(f"- {', '.join(items)}: {why}" for why, items in left.items())]
        return "\n".join(lines)


_COLUMNS = (
    "", "what", "parameters", "ms", "lowest - highest", "images/s", "TFLOP/s", "MFU", "GiB", "trace s", "compile s",
    "host ms", "blocked ms", "load",
)  # fmt: skip


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _row(entry: dict[str, Any]) -> list[str]:
    name = entry["name"] if "nfe" not in entry else f"{entry['name']} {entry['sampler']}, NFE {entry['nfe']}"
    memory = entry.get("memory_bytes")
    return [
        entry["item"],
        name,
        _number(entry.get("parameters"), 0),
        f"{entry['ms']:.3f}" + ("*" if entry["provisional"] else ""),
        f"{entry['low']:.3f} - {entry['high']:.3f}",
        _number(entry["images_per_s"], 1),
        _digits(entry.get("tflops_per_s")),
        "" if entry.get("mfu") is None else f"{100 * entry['mfu']:.1f}%",
        "" if memory is None else f"{memory / 2**30:.2f}",
        _number(entry.get("trace_s"), 1),
        _number(entry.get("compile_s", entry.get("first_s")), 1),
        _number(entry.get("host_ms"), 2),
        _number(entry.get("blocked_ms"), 3),
        f"{entry['load']:.1f}",
    ]


def markdown(header: Sequence[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


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
        "diffusers",
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
