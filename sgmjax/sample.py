"""Draws samples from a run.

    python -m sgmjax.sample --workdir=runs/psld_digits --num=1000
    python -m sgmjax.sample --workdir=runs/psld_cifar --num=50000 --sampler=em --steps=1000 --out=em1000

Takes the averaged parameters of the newest checkpoint. What is not said is as in the run's config. Writes
`<out>.npz` (`samples`: uint8 (num, H, W, C), or float32 (num, D); `nfe`, `step`) and a picture, `<out>.png`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgmjax import _cli


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    try:
        values = read_flags(argv)
        _cli.use_compilation_cache()
        from sgmjax.training.sharding import initialize_distributed

        initialize_distributed()
        draw(values)
    except (ValueError, OSError, ImportError) as error:
        return _cli.fail(error)
    except RuntimeError as error:
        from sgmjax.training.checkpoint import CheckpointError

        if isinstance(error, CheckpointError):
            return _cli.fail(error)
        raise
    return 0


def read_flags(argv: Sequence[str]) -> Any:
    """The parsed flags.

    Raises:
        UsageError: naming the flag and the fix.
    """
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run folder", flag_values=values)
    flags.DEFINE_integer("num", None, "how many samples", flag_values=values)
    flags.DEFINE_string("sampler", None, "name of the sampler", flag_values=values)
    flags.DEFINE_integer("steps", None, "network evaluations a sample, the denoising one included", flag_values=values)
    flags.DEFINE_string("grid", None, "time grid: uniform or quadratic", flag_values=values)
    flags.DEFINE_bool("denoise", None, "end with a denoising step", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the samples", flag_values=values)
    flags.DEFINE_integer("batch_size", None, "samples drawn at a time", flag_values=values)
    flags.DEFINE_list("labels", None, "classes, as 3 or 0,1,2: used in turn", flag_values=values)
    flags.DEFINE_string("out", None, "path without ending; default <workdir>/samples/...", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    _cli.parse_flags(values, argv)
    if values.help:
        print(__doc__)
        print("\n".join(f"  --{flag.name}: {flag.help}" for flag in map(values.__getitem__, sorted(values))))
        raise SystemExit(0)
    if not values.workdir:
        raise _cli.UsageError("--workdir: which run? give its folder, as --workdir=runs/psld_digits")
    for name in ("num", "steps", "batch_size"):
        if (value := getattr(values, name)) is not None and value < 1:
            raise _cli.UsageError(f"--{name}: must be positive, got {value}")
    if values.seed < 0:
        raise _cli.UsageError(f"--seed: must not be negative, got {values.seed}")
    return values


def draw(values: Any) -> None:
    """Samples as the flags say, and writes them.

    Raises:
        ValueError: flags that do not fit the run, or no run in the folder.
        CheckpointError: no checkpoint can be read.
    """
    import jax
    import numpy as np

    from sgmjax.training import evaluation, pictures
    from sgmjax.training import sharding as sh
    from sgmjax.training.logging import say
    from sgmjax.training.runs import load_run

    path = Path(values.workdir)
    names = ("num", "sampler", "steps", "grid", "denoise", "batch_size")
    given = {name: value for name in names if (value := getattr(values, name)) is not None}
    mesh = sh.make_mesh()
    everywhere = sh.replicated(mesh)
    problem, params, step = load_run(path, sampling=given, sharding=everywhere, say=say)
    sampling = problem.config.sampling
    labels = read_labels(values.labels, problem.num_classes, sampling.num)
    shardings = jax.tree.map(lambda _: everywhere, params)
    sampler = evaluation.Sampler(problem.sample_fn, mesh, shardings, min(sampling.batch_size, sampling.num))

    if sampling.sampler == "ode":
        how = f"tolerances {sampling.rtol:g} and {sampling.atol:g}"
        name = f"ode_{sampling.rtol:g}"
    else:
        how = f"{sampling.steps} steps, {sampling.grid} grid"
        name = f"{sampling.sampler}_{sampling.steps}_{sampling.grid}"
    say(f"drawing {sampling.num} samples with {sampling.sampler} ({how}) from step {step} of {path} ...")
    start = time.perf_counter()
    key = jax.device_put(jax.random.key(values.seed), everywhere)
    drawn = sampler(params, key, sampling.num, labels=labels, progress=_progress(sampling.num, start))
    assert drawn is not None
    samples = pictures.to_arrays(drawn[0], problem.is_image, problem.centered)
    out = Path(values.out.removesuffix(".npz")) if values.out else path / "samples" / f"{name}_seed{values.seed}"
    if jax.process_index() == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        extra = {} if labels is None else {"labels": labels}
        pictures.save_arrays(f"{out}.npz", samples=samples, nfe=np.int64(drawn[1]), step=np.int64(step), **extra)
        pictures.save_picture(f"{out}.png", pictures.picture(samples))
    say(f"NFE {drawn[1]}, {time.perf_counter() - start:.1f} s, {out}.npz and .png")


def read_labels(words: list[str] | None, num_classes: int | None, num: int):
    """The classes to draw, (num,) int32, or None. `num_classes` is the network's.

    Raises:
        UsageError: a label that is no class of the data.
    """
    import numpy as np

    if not words:
        return None
    if num_classes is None:
        raise _cli.UsageError("--labels: the network of this run knows no classes (model.num_classes); leave it out")
    for word in words:
        if not word.isdigit() or int(word) >= num_classes:
            raise _cli.UsageError(f"--labels: {word!r} is no class; they are 0 to {num_classes - 1}")
    return np.resize(np.asarray([int(word) for word in words], np.int32), num)


def _progress(num: int, start: float):
    def show(done: int) -> None:
        if sys.stderr.isatty():
            rate = done / (time.perf_counter() - start)
            print(f"\r{done}/{num}  {rate:,.1f} samples/s", end="\n" if done == num else "", file=sys.stderr)

    return show


if __name__ == "__main__":
    _cli.run(main, sys.argv)
