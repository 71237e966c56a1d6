"""Recommends the noise levels of NCSNv2 for a data set.

    python -m sgmjax.noise_levels --config=configs/ncsnv2_mnist.py
    python -m sgmjax.noise_levels --data=cifar10 --data_dir=~/tensorflow_datasets
    python -m sgmjax.noise_levels --data=folder --data_dir=images --image_size=64 --bounds
    python -m sgmjax.noise_levels --data=arrays.npz

sigma_1 is the largest distance between two examples (technique 1): exactly, or with --bounds, for sets too large for
that, the upper of two bounds. From there the levels go down to --sigma_min by technique 2, whose equation is solved for
the overlap of the published level counts and for that of the paper. The step size of annealed Langevin dynamics is that
of technique 4 for --steps_per_level steps. The last lines go into a config.

Reference: Song & Ermon 2020, "Improved techniques for training score-based generative models", sec. 3 and 4.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sgmjax import _cli
from sgmjax._ranges import COUNT, OPEN_UNIT, POSITIVE, SIDE

RANGES = {"sigma_max": POSITIVE, "sigma_min": POSITIVE, "steps_per_level": COUNT, "image_size": SIDE}
RANGES |= {"overlap": OPEN_UNIT}

if TYPE_CHECKING:
    from sgmjax.config import Config


class Request(NamedTuple):
    """What a command line asks for: where the data come from, and the flags."""

    config: Config
    flags: Any


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    return _cli.serve(argv, read_flags, recommend)


def read_flags(argv: Sequence[str]) -> Request:
    """The parsed flags, and the config whose `data` section is meant.

    Raises:
        UsageError, ConfigError: naming the flag or setting, and the fix.
    """
    from absl import flags

    from sgmjax.config import from_dict

    words, overrides = _cli.split_overrides(argv)
    values = flags.FlagValues()
    _cli.define_path(values, "config", None, "take the data of this config")
    flags.DEFINE_string("data", None, "or: digits, a 2-D set, folder, an .npz, or a TFDS image set", flag_values=values)
    _cli.define_path(values, "data_dir", None, "TFDS directory, or the folder of images")
    flags.DEFINE_integer("image_size", None, "side to which images are brought", flag_values=values)
    flags.DEFINE_bool("centered", None, "data in [-1, 1]; else in [0, 1], as published", flag_values=values)
    flags.DEFINE_float("sigma_max", None, "sigma_1, in place of technique 1", flag_values=values)
    flags.DEFINE_float("sigma_min", None, "sigma_L; default that of the config, or 0.01", flag_values=values)
    flags.DEFINE_integer("steps_per_level", None, "T; default that of the config, or 5", flag_values=values)
    flags.DEFINE_float("overlap", None, "C of technique 2, for one of your own", flag_values=values)
    flags.DEFINE_bool("bounds", False, "bound the largest distance, in a few passes", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    _cli.parse_flags(values, words, RANGES)
    if values.help:
        _cli.show_help(__doc__, values)
    if (values.config is None) == (values.data is None):
        raise _cli.UsageError("which data? give --config=configs/ncsnv2_mnist.py or --data=cifar10, one of the two")
    if values.config is not None:
        settings = _cli.load_config(*_cli.find_config(values.config))
    else:
        ve = {"name": "ve", "sigma_min": 0.01}
        where = {"name": "npz", "path": values.data} if values.data.endswith(".npz") else {"name": values.data}
        settings = {"data": {**where, "centered": False}, "sde": ve, "model": {"name": "ncsnv2"}}
    given = [(f"data.{name}", getattr(values, name)) for name in ("data_dir", "image_size", "centered")]
    overrides = [*overrides, *((path, value) for path, value in given if value is not None)]
    return Request(from_dict(_cli.override(settings, overrides)), values)


def recommend(request: Request) -> None:
    """Prints the recommendation.

    Raises:
        ValueError: flags that do not fit one another, data that cannot be read.
    """
    from sgmjax import data
    from sgmjax._say import say
    from sgmjax.data.examples import check_values
    from sgmjax.sdes import noise_levels

    config, flags = request
    dataset = data.load(config.data)
    dimension = math.prod(dataset.shape)
    check_values(dataset, config.data.centered)
    scaled = dataset.is_image or dataset.discrete
    scale = ("[-1, 1]" if config.data.centered else "[0, 1]") if scaled else "their own units"
    say(f"{dataset.name}: {dataset.num_examples:,} examples of D = {dimension:,} numbers, in {scale}")
    sigma_max = flags.sigma_max or _technique_1(dataset, config.data.centered, flags.bounds, say)
    sigma_min = flags.sigma_min or getattr(config.sde, "sigma_min", 0.01)
    steps = flags.steps_per_level or config.sampling.options.get("steps_per_level", 5)

    overlaps = {"that of the published level counts": noise_levels.PUBLISHED_OVERLAP}
    overlaps["the paper's"] = noise_levels.PAPER_OVERLAP
    if flags.overlap is not None:
        overlaps = {"as asked": flags.overlap}
    found = {
        why: noise_levels.recommend(
            sigma_max=sigma_max, sigma_min=sigma_min, dimension=dimension, steps_per_level=steps, overlap=overlap,
            nearest=True,
        )
        for why, overlap in overlaps.items()
    }  # fmt: skip
    first = next(iter(found.values()))
    if first.nearest is not None:
        say(
            f"technique 2: no solution for D = {dimension} (none for D <= 4: there levels at any ratio overlap by more "
            f"than 0.9973); the nearest ratio, that of D = {first.nearest}, is taken. More levels do no harm"
        )
    for why, r in found.items():
        say(
            f"technique 2: overlap {r.overlap:g}, {why}: ratio {r.solution:.6g}, so {r.num_levels:,} levels from "
            f"{sigma_max:g} to {sigma_min:g}, {r.ratio:.6g} apart"
        )
        say(
            f"technique 4:   with {steps} steps at each: step size {r.step_size:.4g}, variance ratio "
            f"{r.variance_ratio:.5g} (1 would be exact), {r.num_levels * steps + 1:,} network evaluations"
        )
    _say_published(config, dimension, noise_levels, say)
    say(f"\nFor the config (overlap {first.overlap:g}):\n\n{lines(first, sigma_max, sigma_min)}")


def _technique_1(dataset: Any, centered: bool, bounds: bool, say: Callable[[str], None]) -> float:
    """sigma_1 to three digits, never below the distance."""
    from sgmjax.metrics import distance_bounds, largest_pair

    start = time.perf_counter()
    show = Progress()
    if bounds:
        found = distance_bounds(dataset, centered=centered, progress=show)
        distance = found.upper
        text = f"largest distance between {found.lower:.6g} and {found.upper:.6g}, bounded"
    else:
        pair = largest_pair(dataset, centered=centered, progress=show)
        distance = pair.distance
        text = f"largest distance {pair.distance:.6g}, of examples {pair.indices[0]:,} and {pair.indices[1]:,}"
        text += f" ({100 * pair.compared:.2g}% of the pairs compared)"
    sigma = round_up(distance)
    say(f"technique 1: {text} in {time.perf_counter() - start:.1f} s, so sigma_1 = {sigma:g}")
    return sigma


def round_up(value: float, digits: int = 3) -> float:
    """The next number with so many significant digits, not below `value` > 0."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / unit * (1 - 1e-12)) * unit:.{digits}g}")


class Progress:
    """progress(what, done, total) as a line on a terminal, a new one for each kind of work."""

    def __init__(self) -> None:
        self._what: tuple[str, int] | None = None
        self._show: Callable[[int], None] = lambda done: None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._what != (what, total):
            self._what, self._show = (what, total), _cli.progress(total, f" {what}")
        self._show(done)


def _say_published(config: Config, dimension: int, noise_levels: Any, say: Callable[[str], None]) -> None:
    """What the config itself has, where it has levels."""
    sde, levels = config.sde, config.objective.num_levels
    if sde.name != "ve" or levels is None or levels < 2:
        return
    if sde.sigma_dist == "uniform":
        sigmas = noise_levels.uniform_levels(sde.sigma_max, sde.sigma_min, levels)
        most, least = (noise_levels.overlap(sigmas[i] / sigmas[i + 1], dimension) for i in (0, -2))
        text = f"the config has {levels:,} equally spaced levels from {sde.sigma_max:g} to {sde.sigma_min:g}"
        say(f"{text}: overlap {most:.4g} at the largest, {least:.4g} at the smallest")
        return
    ratio = noise_levels.ratio_of_levels(sde.sigma_max, sde.sigma_min, levels)
    text = f"the config has {levels:,} levels from {sde.sigma_max:g} to {sde.sigma_min:g}, {ratio:.6g} apart: overlap "
    text += f"{noise_levels.overlap(ratio, dimension):.4g}"
    options = config.sampling.options
    if (step_size := options.get("step_size")) is not None:
        given = functools.partial(noise_levels.variance_ratio, sigma_min=sde.sigma_min, ratio=ratio)
        steps = options.get("steps_per_level", 5)
        text += f"; step size {step_size:g}, {steps} steps: variance ratio {given(step_size, steps=steps):.5g}"
    say(text)


def lines(found: Any, sigma_max: float, sigma_min: float) -> str:
    """The recommendation as lines of a config file."""
    steps = found.num_levels * found.steps_per_level + 1
    options = f'{{"steps_per_level": {found.steps_per_level}, "step_size": {found.step_size:.3g}}}'
    return "\n".join(
        (
            f'"sde": {{"name": "ve", "sigma_min": {sigma_min:g}, "sigma_max": {sigma_max:g}}},',
            f'"objective": {{..., "time_sampling": "levels", "num_levels": {found.num_levels}}},',
            f'"sampling": {{"sampler": "annealed_langevin", "grid": "levels", "steps": {steps},',
            f'    "options": {options}}},',
        )
    )
