"""What each technique of NCSNv2 buys: one table, of networks that differ in that technique only.

    python benchmarks/ncsnv2_techniques.py                                       # an accelerator
    python benchmarks/ncsnv2_techniques.py --image_size 14 --steps 1200 --num 500 -- --config.model.ngf=16   # two cores
    python benchmarks/ncsnv2_techniques.py --report                              # the table again, nothing drawn

Each line of the table leaves one technique out. Those of training need a run of their own, those of sampling only
samples of the whole one; finished runs and samples in --out are kept, so that a stopped benchmark goes on. All lines
train for as many steps and sample with as many evaluations, those with fewer levels with more steps at each.

Distances are to the held-out images: sliced W2 of pixels in [0, 1] and the pixel-space Frechet distance; beside them
the floor, those of as many training images, mean and standard deviation of twenty draws. Both are biased upwards with
few samples, the floor as much.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from commands import call

from sgmjax import data, metrics
from sgmjax.commands.noise_levels import round_up
from sgmjax.commands.train import read_flags
from sgmjax.metrics.frechet import pixel_frechet
from sgmjax.metrics.sliced import sliced_wasserstein
from sgmjax.sdes import noise_levels

CONFIG = "configs/ncsnv2_mnist.py"
FEW = 10  # levels of Song & Ermon 2019
STEP_SIZE = 2e-5  # theirs


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table: how its run is trained and how its samples are drawn, beyond the whole of NCSNv2."""

    run: str = "whole"
    train: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()


def lines(levels: int, steps_per_level: int, ngf: int) -> dict[str, Line]:
    """The lines of the table by title; `levels` and `steps_per_level` are those of the whole."""
    budget = levels * steps_per_level
    few_steps = max(1, round(budget / FEW))
    few = (
        f"--config.objective.num_levels={FEW}",
        f"--config.sampling.options.steps_per_level={few_steps}",
        f"--config.sampling.steps={FEW * few_steps + 1}",
    )
    told = (
        "--config.model.name=ncsn",
        f"--config.model.ngf={ngf}",
        "--config.objective.time_conditioning=level",
    )
    first = "--config.sde.sigma_max=1.0"
    old_step = f"--options=step_size={STEP_SIZE}"
    plain = ("--params=raw", "--denoise=False")
    return {
        "all": Line(),
        "without 1 and 2: 10 levels from 1": Line("levels_from_1", (first, *few)),
        "without 2: 10 levels": Line("few_levels", few),
        "without 3: a network told the level (NCSN)": Line("ncsn", (*told, f"--config.model.num_levels={levels}")),
        f"without 4: step size {STEP_SIZE:g}": Line(sample=(old_step,)),
        "without 5: parameters not averaged": Line(sample=("--params=raw",)),
        "without the denoising step": Line(sample=("--denoise=False", f"--steps={budget}")),
        "none: NCSN of 2019, as many evaluations": Line(
            "none",
            (first, *few, *told, f"--config.model.num_levels={FEW}"),
            (old_step, *plain, f"--steps={FEW * few_steps}"),
        ),
    }


def main(argv) -> int:
    end = argv.index("--") if "--" in argv else len(argv)
    own, overrides = argv[:end], argv[end + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=28)
    parser.add_argument("--steps", type=int, default=10_000, help="of training")
    parser.add_argument("--steps_per_level", type=int, default=5)
    parser.add_argument("--num", type=int, default=2000, help="samples of each line")
    parser.add_argument("--only", default="", help="part of a title: the lines to make now")
    parser.add_argument("--report", action="store_true", help="the table of the samples there are")
    parser.add_argument("--out", type=Path, default=Path("runs/ncsnv2_techniques"))
    given = parser.parse_args(own)
    given.out.mkdir(parents=True, exist_ok=True)
    config: Any = read_flags(["", f"--config={CONFIG}", f"--config.data.image_size={given.image_size}", *overrides])[0]
    train, test = (data.load(config.data, split) for split in ("train", "eval"))
    real = test.read(np.arange(test.num_examples))["x"]

    values = given.out / "levels.json"
    if not values.is_file():
        sigma_max = round_up(metrics.largest_pair(train, centered=config.data.centered).distance)
        ratio = noise_levels.ratio_of_overlap(int(np.prod(real.shape[1:])))
        levels = noise_levels.levels_of_ratio(sigma_max, config.sde.sigma_min, ratio)
        values.write_text(json.dumps([sigma_max, levels]))
    sigma_max, levels = json.loads(values.read_text())
    print(f"{levels} levels from {sigma_max} to {config.sde.sigma_min}, {given.steps_per_level} steps at each")

    def files(title: str) -> Path:
        return given.out / "samples" / ("".join(c if c.isalnum() else "_" for c in title) + ".npz")

    common = [
        f"--config={CONFIG}",
        f"--config.data.image_size={given.image_size}",
        f"--config.train.steps={given.steps}",
        f"--config.sde.sigma_max={sigma_max}",
        f"--config.objective.num_levels={levels}",
        f"--config.sampling.options.steps_per_level={given.steps_per_level}",
        f"--config.sampling.steps={levels * given.steps_per_level + 1}",
        f"--config.sampling.num={min(given.num, 64)}",
        *overrides,
    ]
    table = lines(levels, given.steps_per_level, config.model.ngf)
    for title, line in table.items():
        if given.report or given.only not in title or files(title).is_file():
            continue
        workdir = given.out / line.run
        call("train", *common, *line.train, f"--workdir={workdir}")
        call("sample", f"--workdir={workdir}", f"--num={given.num}", *line.sample, f"--out={files(title)}")

    def distances(x: np.ndarray) -> tuple[float, float]:
        x = x.reshape(real[: len(x)].shape)
        return sliced_wasserstein(x / 255.0, real / 255.0), pixel_frechet(x, real)

    draws = np.random.default_rng(0).integers(train.num_examples, size=(20, given.num))
    floors = np.asarray([distances(train.read(np.sort(draw))["x"]) for draw in draws])
    print(f"\n| {given.num} samples | evaluations | sliced W2 | Frechet |\n|---|--:|--:|--:|")
    (w, f), (dw, df) = floors.mean(axis=0), floors.std(axis=0)
    print(f"| training images (floor) | | {w:.4f} +- {dw:.4f} | {f:.3f} +- {df:.3f} |")
    for title in table:
        if files(title).is_file():
            with np.load(files(title)) as drawn:
                w, f = distances(drawn["samples"])
                print(f"| {title} | {int(drawn['nfe'])} | {w:.4f} | {f:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
