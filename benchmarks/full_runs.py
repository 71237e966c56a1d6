"""What the published trainings cost: operations of a step and of the whole, and the time that one H100 would take.

    python benchmarks/full_runs.py
    python benchmarks/full_runs.py --configs psld_cifar ve_cifar

Nothing runs: the training step of each configuration is traced at its published batch, and its convolutions and matrix
products are counted, as `throughput.py` does. The time is that of the steps that were measured (`MEASURED`; no
evaluation, no samples on the way); without a measurement it is that of `psld_cifar`'s operations a second, which is a
guess the better, the more a network is like that one. NVAE's is not: its cells are five by five convolutions of single
channels, which no device does at that rate, so there is no time for LSGM.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import NamedTuple

import jax
from timed import abstract_step, example_shape, operations

from sgmjax import _cli, models
from sgmjax import sharding as sh
from sgmjax.config import Config
from sgmjax.tasks import build
from sgmjax.training.train import phases_of

MEASURED = {"psld_cifar": 0.0909, "psld_cifar_ablation": 0.0245}  # s a step on an H100 in bfloat16: docs/performance.md
CONFIGS = [
    "psld_cifar", "psld_cifar_ablation", "psld_celeba64", "cld_cifar", "vp_cifar", "subvp_cifar", "ve_cifar",
    "edm_cifar", "ncsnv2_cifar", "lsgm_mnist", "lsgm_omniglot", "lsgm_cifar_fid",
]  # fmt: skip


class Cost(NamedTuple):
    """Of a training: trained parameters, images a step, steps, and operations of all of them."""

    parameters: int
    batch: int
    steps: int
    operations: float


def cost(config: Config) -> Cost:
    """What the trainings of a configuration's phases cost, traced only.

    Raises:
        InputError: data of which the configuration does not say the shape.
    """
    shape, classes = example_shape(config), getattr(config.model, "num_classes", None)
    train = dataclasses.replace(config.train, steps_per_dispatch=1)
    mesh = sh.make_mesh(1, jax.devices()[:1])
    steps, total, parameters = 0, 0.0, 0
    for phase in phases_of(config, build.phases(config, shape, classes)):
        step, arguments = abstract_step(phase, train, shape, mesh)
        with jax.set_mesh(mesh):
            total += phase.steps * operations(step, *arguments)
        steps, parameters = steps + phase.steps, models.count_parameters(arguments[0].params)
    return Cost(parameters, train.batch_size, steps, total)


def hours(name: str, found: Cost, rate: float | None) -> str:
    """On one H100. rate: operations a second where the step itself was not measured."""
    if name in MEASURED:
        return f"{found.steps * MEASURED[name] / 3600:.3g} h"
    return "" if rate is None or name.startswith("lsgm") else f"about {found.operations / rate / 3600:.2g} h"


def table(costs: dict[str, Cost]) -> list[str]:
    """Markdown, a line for each configuration."""
    known = costs.get("psld_cifar")
    rate = known.operations / known.steps / MEASURED["psld_cifar"] if known else None
    lines = ["| `python -m sgmjax.train --config=` | parameters | batch | steps | TFLOP a step | EFLOP | one H100 |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for name, found in costs.items():
        each = f"{found.operations / found.steps / 1e12:.3g} | {found.operations / 1e18:,.3g}"
        stem, colon, argument = name.partition(":")
        head = f"`configs/{stem}.py{colon}{argument}` | {found.parameters / 1e6:.1f}M | {found.batch} | {found.steps:,}"
        lines.append(f"| {head} | {each} | {hours(name, found, rate)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, metavar="NAME")
    flags = parser.parse_args()
    costs: dict[str, Cost] = {}
    for name in flags.configs:
        costs[name] = cost(_cli.read_config(name, ())[0])
        print(table(costs)[-1], flush=True)
    print("\n".join(["", *table(costs)]))


if __name__ == "__main__":
    main()
