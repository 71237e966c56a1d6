"""Memory of one device, and what it sends, when the state of a training step is split over N devices.

    python benchmarks/fsdp_memory.py [--config=configs/psld_cifar.py] [--devices=1,2,4,8] [--out=fsdp.json]

Nothing runs: the training step is compiled for N of eight virtual CPU devices, at the batch of the config over all of
them and with the convolutions of accelerators (`models.convolution.native`), and what the compiler says of the program
is printed as a table and written to --out (JSON). Bytes are those of one device: `state` and batch that it is given
(the state comes out in its place), `temp` what the step needs besides, and their sum, with its ratio to that of N = 1.
The collective operations are counted, with the bytes that come out of them. `psld_cifar` takes some three minutes of
two cores for each N. Other settings as for training.
"""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import collections
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from sgmjax import _cli

OPERATIONS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "pred": 1, "f64": 8, "s64": 8, "u64": 8}


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """{operation: (how many, bytes that come out of them)} of a compiled program."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    for types, name in re.findall(rf"^\s*(?:ROOT )?%\S+ = (.*?) ({OPERATIONS})(?:-start)?\(", text, flags=re.M):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
        counts = [math.prod(map(int, filter(None, dims.split(",")))) for _, dims in arrays]
        found[name].append(sum(SIZES[kind] * count for (kind, _), count in zip(arrays, counts, strict=True)))
    return {name: (len(sizes), sum(sizes)) for name, sizes in found.items()}


def measure(config: Any, shape: tuple[int, ...], devices: int) -> dict[str, Any]:
    """What the compiler says of the step on `devices` devices, the state split over all of them."""
    import jax
    from timed import abstract_step

    from sgmjax import sharding as sh
    from sgmjax.models import convolution
    from sgmjax.tasks import build
    from sgmjax.training.train import phases_of

    (phase, *_) = phases_of(config, build.phases(config, shape, None))
    mesh = sh.make_mesh(devices, jax.devices()[:devices])
    step, arguments = abstract_step(phase, config.train, shape, mesh)
    start = time.perf_counter()
    with jax.set_mesh(mesh), convolution.native():
        compiled = step.lower(*arguments).compile()
    memory: Any = compiled.memory_analysis()
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    state, temp = memory.argument_size_in_bytes + fresh, memory.temp_size_in_bytes
    return {
        "devices": devices, "state": state, "temp": temp, "total": state + temp,
        "collectives": collectives(compiled.as_text()), "compile_s": time.perf_counter() - start,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """As markdown, in MB of a million bytes."""
    lines = ["| N | state (MB) | temp (MB) | total (MB) | total x N / first | sent |", "|---|---|---|---|---|---|"]
    for row in rows:
        sent = ", ".join(f"{n} {name} {size / 1e6:,.1f} MB" for name, (n, size) in row["collectives"].items()) or "-"
        sizes = " | ".join(f"{row[name] / 1e6:,.1f}" for name in ("state", "temp", "total"))
        ratio = row["total"] * row["devices"] / (rows[0]["total"] * rows[0]["devices"])
        lines.append(f"| {row['devices']} | {sizes} | {ratio:.3f} | {sent} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Prints the table after each number of devices."""
    from timed import example_shape

    from sgmjax.commands.train import read_flags

    own = dict(word[2:].split("=", 1) for word in argv if word.startswith(("--devices=", "--out=")))
    rest = [word for word in argv if not word.startswith(("--devices=", "--out="))]
    if not any(word.startswith("--config=") for word in rest):
        rest.append("--config=configs/psld_cifar.py")
    _, config, _ = read_flags(rest)
    rows = []
    for devices in map(int, own.get("devices", "1,2,4,8").split(",")):
        rows.append(measure(config, example_shape(config), devices))
        print(table(rows), flush=True)
        if "out" in own:
            with open(own["out"], "w") as file:
                json.dump({"batch_size": config.train.batch_size, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    _cli.run(main, sys.argv)
