"""Finds the time grid with which a sampler does best on a run, for a number of evaluations.

    python -m sgmjax.tune_grid --workdir=runs/psld_digits --sampler=unipc --steps=10
    python -m sgmjax.tune_grid --workdir=runs/psld_digits --sampler=unipc --steps=5 --weights --analytic_start
    python -m sgmjax.tune_grid --workdir=runs/edm_digits --process=cld --sampler=unipc --options=order=3 --steps=10
    python -m sgmjax.sample --workdir=runs/psld_digits --sampler=unipc --steps=10 --grid=tuned

A teacher follows --num paths in many small steps; the grid is chosen among --levels noise levels so that what its steps
miss of these paths is least, and then moved downhill in --refine iterations; with --weights the weights that the method
gives to its predictions are learned as well; with --analytic_start the first score is not asked of the network, but is
that of normal data with the mean that the network names at high noise. All is written into the run's folder, as
`grids/<sampler>_<steps>.json`, where --grid=tuned of `sample` and `evaluate` (and `load_run`) finds it: by the sampler,
its options, the number of evaluations, the last step and --process. Printed is how far the samples are from those of
the same starts in many steps, in standard deviations of the data, beside the best of the plain grids.

It costs about 5 --levels + (16 + 20 --refine) --steps evaluations of --num examples.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

from sgmjax import _cli
from sgmjax._files import run_name, user_path
from sgmjax._ranges import COUNT, COUNT_OR_ZERO, OPEN_UNIT, SEED, check_memory
from sgmjax.commands import sampling

RANGES = {"num": COUNT, "steps": COUNT, "levels": COUNT, "refine": COUNT_OR_ZERO, "seed": SEED}
RANGES |= {"t_min": OPEN_UNIT}


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    return _cli.serve(argv, read_flags, tune)


def read_flags(argv: Sequence[str]) -> Any:
    """The parsed flags, and the section that --process makes.

    Raises:
        UsageError: naming the flag and the fix.
    """
    from absl import flags

    argv, settings = sampling.split_process(argv)
    values = flags.FlagValues()
    _cli.define_path(values, "workdir", None, "the run folder")
    sampling.define(values, grid=False)
    flags.DEFINE_integer("num", 64, "paths that are followed", flag_values=values)
    flags.DEFINE_integer("levels", 60, "noise levels from which the grid is chosen", flag_values=values)
    flags.DEFINE_integer("refine", 30, "iterations in which the levels are moved", flag_values=values)
    flags.DEFINE_bool(
        "weights", False, "also learn the method's weights, in as many iterations more", flag_values=values
    )
    text = "take the first score from what is known of the data at t = 1: one step more for the same evaluations"
    flags.DEFINE_bool("analytic_start", False, text, flag_values=values)
    flags.DEFINE_float("t_min", None, "where the teacher ends; the grid may end before", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the starts", flag_values=values)
    sampling.parse(values, argv, RANGES, __doc__)
    return values, sampling.process(values, settings)


def tune(request: Any) -> None:
    """Tunes as the flags say, and writes the grid.

    Raises:
        ValueError: flags that do not fit the run, or no run in the folder.
        CheckpointError: no checkpoint can be read.
    """
    import jax
    import numpy as np

    from sgmjax import samplers
    from sgmjax._say import say
    from sgmjax.samplers import plan as plans
    from sgmjax.samplers import registry
    from sgmjax.samplers.grids import host_noise_level
    from sgmjax.training import tensors, tuned
    from sgmjax.training.load import load_run

    values, process = request
    path = user_path(tensors.find(values.workdir), "--workdir")
    given = sampling.given(values) | ({} if values.t_min is None else {"t_min": values.t_min})
    run = load_run(
        path, sampling=given | {"grid": "quadratic", "restarts": ()}, process=process, say=say, **sampling.which(values)
    )
    task, plan = run.task, run.plan
    sampling.refuse_classifier(task, path)
    if registry.is_adaptive(plan.sampler):
        raise _cli.UsageError(f"--sampler: {plan.sampler!r} chooses its own steps; name one that steps on a grid")
    if plan.denoise == "x_mean":
        raise _cli.UsageError("--denoise: 'x_mean' is of pc's last step; give True, False or tweedie")
    plans.check(plan, task.sde)
    if values.analytic_start and task.num_classes is not None:
        raise _cli.UsageError(
            "--analytic_start: this network knows classes, and at t = 1 their means differ; leave it out"
        )
    shape = (values.num, *getattr(task, "latent_shape", task.event_shape))
    check_memory("--num", values.num, shape[1:], fix="give fewer")
    labels = None if task.num_classes is None else np.arange(values.num) % task.num_classes

    say(f"following {values.num} paths of {run_name(path)} at step {run.step} ...")
    start = time.perf_counter()
    free = values.analytic_start
    found = samplers.tune_grid(
        jax.random.key(values.seed), functools.partial(task.score_fn, labels=labels), task.sde, shape,
        steps=plans.grid_steps(plan) + free, sampler=plan.sampler, options=plan.options, denoise=plan.denoise,
        t_min=plan.t_min, levels=values.levels, refine=values.refine, weights=values.weights,
        analytic_start=free, variables=run.variables, progress=say,
    )  # fmt: skip
    file = tuned.write(path, plan, process, found, step=run.step, seed=values.seed, num=values.num)
    levels = host_noise_level(task.sde, found.times)
    say(f"noise levels {', '.join(f'{level:.3g}' for level in levels)}; {time.perf_counter() - start:.1f} s, {file}")
