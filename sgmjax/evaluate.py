"""Measures a run.

    python -m sgmjax.evaluate --workdir=runs/psld_digits --metrics=bpd
    python -m sgmjax.evaluate --workdir=runs/cld_cifar --metrics=bpd --num=1000 --momenta=8 --probes=4
    python -m sgmjax.evaluate --workdir=runs/psld_digits --metrics=bpd,frechet

    nelbo    of runs with a VAE: the negative bound in nats (binary images) or bits/dim, by the probability-flow ODE of
             the prior, by the weighted objective, and with a normal prior; KL per group, active units
    bpd      bits/dim of held-out images with uniform dequantisation (of floats nats/dim, of vectors nats per example),
             by the probability-flow ODE; and beside it the variational bound, which is of the generative SDE
    frechet  Frechet distance in pixel space of samples, drawn as the run's config says, to the data: for small images
    neighbours  how near such samples are to their nearest training images, against how near held-out images are: has
             the model memorised? With a picture, each row a sample and its nearest training images

Takes the averaged parameters of the newest checkpoint, with --params=raw those being trained. The data are those of
the run's config; --data=FILE.npz gives others, as runs on arrays given in Python need. Writes
`<workdir>/metrics/<metric>_step<step>.json` with all settings that matter. --t_min is by default the time where the
run's training ended.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgmjax import _cli
from sgmjax._inputs import check_writable, replacing, shown
from sgmjax._ranges import COUNT, OPEN_UNIT, SEED, TOLERANCE, check_memory

METRICS = ("bpd", "frechet", "neighbours", "nelbo")
_COUNTS = ("num", "batch_size", "probes", "momenta", "dequantizations", "draws", "posterior_samples", "nearest")
RANGES = dict.fromkeys(_COUNTS, COUNT) | {"rtol": TOLERANCE, "atol": TOLERANCE, "t_min": OPEN_UNIT, "seed": SEED}


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    return _cli.serve(argv, read_flags, evaluate)


def read_flags(argv: Sequence[str]) -> Any:
    """The parsed flags.

    Raises:
        UsageError: naming the flag and the fix.
    """
    from absl import flags

    values = flags.FlagValues()
    _cli.define_path(values, "workdir", None, "the run folder")
    flags.DEFINE_list("metrics", ["bpd"], f"what to measure: {', '.join(METRICS)}", flag_values=values)
    flags.DEFINE_enum("split", "test", ["test", "train"], "held-out or training data", flag_values=values)
    _cli.define_path(values, "data", None, "an .npz with the data: x_test, or x, held out")
    flags.DEFINE_enum(
        "params", "ema", ["ema", "raw"], "averaged parameters, or those being trained", flag_values=values
    )
    flags.DEFINE_integer("num", None, "examples or samples; default all examples", flag_values=values)
    flags.DEFINE_integer("batch_size", None, "examples at a time", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of all that is random, and of which examples", flag_values=values)
    flags.DEFINE_float("t_min", None, "where the integration starts", flag_values=values)
    flags.DEFINE_float("rtol", 1e-5, "relative tolerance of the ODE", flag_values=values)
    flags.DEFINE_float("atol", 1e-5, "absolute tolerance of the ODE", flag_values=values)
    flags.DEFINE_string("solver", "Dopri5", "an explicit Runge-Kutta solver of diffrax", flag_values=values)
    kinds = ["rademacher", "gaussian", "exact"]
    flags.DEFINE_enum("trace", "rademacher", kinds, "probes of the divergence, or exact", flag_values=values)
    flags.DEFINE_integer("probes", 1, "probes to average", flag_values=values)
    kinds = ["blocks", "joint", "drift"]
    flags.DEFINE_enum("probing", "blocks", kinds, "what a probe sees; drift: as the official codes", flag_values=values)
    flags.DEFINE_integer("momenta", 1, "importance samples of the auxiliary variables", flag_values=values)
    kinds = ["ignore", "bound"]
    flags.DEFINE_enum("truncation", "ignore", kinds, "of t_min > 0; ignore: as published", flag_values=values)
    flags.DEFINE_integer("dequantizations", 1, "draws of the noise on discrete data", flag_values=values)
    flags.DEFINE_integer("draws", 16, "times drawn for the variational bound of an example", flag_values=values)
    flags.DEFINE_integer("posterior_samples", 1, "draws of an image's latent variables, of nelbo", flag_values=values)
    flags.DEFINE_integer("nearest", 8, "neighbours of a sample to show", flag_values=values)
    _cli.define_path(values, "out", None, "file of the result; for one metric only")
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    _cli.parse_flags(values, argv, RANGES)
    if values.help:
        _cli.show_help(__doc__, values)
    if not values.workdir:
        raise _cli.UsageError("--workdir: which run? give its folder, as --workdir=runs/psld_digits")
    if not values.metrics:
        raise _cli.UsageError(f"--metrics: which? there are {', '.join(METRICS)}")
    for name in values.metrics:
        if name not in METRICS:
            raise _cli.UsageError(f"--metrics: no metric called {name!r}; there are {', '.join(METRICS)}")
    if values.out and len(values.metrics) > 1:
        raise _cli.UsageError("--out: is for one metric; leave it out, and each gets a file in <workdir>/metrics")
    return values


def evaluate(values: Any) -> None:
    """Measures as the flags say; prints a line for every result and writes them.

    Raises:
        ValueError: flags that do not fit the run, or no run in the folder.
        CheckpointError: no checkpoint can be read.
    """
    import jax

    from sgmjax.training import sharding as sh
    from sgmjax.training.logging import say
    from sgmjax.training.pictures import save_picture
    from sgmjax.training.runs import load_data, load_run

    path = Path(values.workdir)
    mesh = sh.make_mesh()
    run = load_run(path, sharding=sh.replicated(mesh), say=say, averaged=values.params == "ema")
    if not hasattr(run.problem, "sample_fn"):
        raise _cli.UsageError(f"--workdir: {shown(path)} is a classifier's run; give that of a score network")
    if values.out and jax.process_index() == 0:
        check_writable(Path(values.out), "--out")
    for name in ("frechet", "neighbours"):
        if name in values.metrics and not run.problem.is_image:
            shape = run.problem.event_shape
            raise _cli.UsageError(f"--metrics: {name} is for images, and examples of this run have shape {shape}")
    has_vae = run.problem.config.vae is not None
    if "nelbo" in values.metrics and not has_vae:
        raise _cli.UsageError("--metrics: nelbo is for runs with a VAE; use bpd")
    if "bpd" in values.metrics and has_vae:
        raise _cli.UsageError("--metrics: bpd is of models of the data themselves; for a run with a VAE use nelbo")
    if values.num == 1 and "frechet" in values.metrics:
        raise _cli.UsageError("--num: frechet compares covariances, which one sample has not; give many")
    dataset = load_data(path, run.problem, "eval" if values.split == "test" else "train", values.data)
    largest = values.num or max(run.problem.config.sampling.num, dataset.num_examples)
    if {"frechet", "neighbours"} & set(values.metrics):
        check_memory("--num", values.num or 1, run.problem.event_shape, fix="give fewer")
    check_memory("--batch_size", min(values.batch_size or 1, largest), run.problem.event_shape, fix="give fewer")
    for name in values.metrics:
        measure = {"bpd": likelihood, "frechet": frechet, "neighbours": neighbours, "nelbo": nelbo}[name]
        say(f"{name} on {dataset.name}, step {run.step} of {path} ...")
        start = time.perf_counter()
        lines, result, *images = measure(values, run, dataset, mesh)
        seconds = time.perf_counter() - start
        out = (
            Path(values.out)
            if values.out
            else path / "metrics" / f"{name}_step{run.step}{'' if values.params == 'ema' else '_raw'}.json"
        )
        common = {
            "metric": name,
            "workdir": str(path),
            "step": run.step,
            "parameters": values.params,
            "split": values.split,
        }
        common |= {"data": dataset.name, "seed": values.seed}
        if jax.process_index() == 0:
            write(out, common | result | {"seconds": round(seconds, 2)})
            for image in images:
                save_picture(out.with_suffix(".png"), image)
        for line in lines:
            say(line)
        say(f"{seconds:.1f} s, {out}")


def likelihood(values: Any, run: Any, dataset: Any, mesh: Any) -> tuple[list[str], dict[str, Any]]:
    """Lines to print and what to write, of the metric `bpd`."""
    import dataclasses

    import jax
    import numpy as np

    from sgmjax.data import dequantize
    from sgmjax.training import sharding as sh
    from sgmjax.training.likelihood import LikelihoodSettings, held_out_likelihood

    problem = run.problem
    names = [field.name for field in dataclasses.fields(LikelihoodSettings)]
    settings = {name: getattr(values, name) for name in names}
    settings["t_min"] = values.t_min or problem.config.objective.t_min
    settings["dequantizations"] = values.dequantizations if problem.discrete else 1  # a density needs no noise
    num = min(values.num or dataset.num_examples, dataset.num_examples)
    everywhere = sh.replicated(mesh)
    found = held_out_likelihood(
        problem,
        run.params,
        jax.device_put(jax.random.key(values.seed), everywhere),
        dataset,
        num=num,
        batch_size=values.batch_size or min(problem.config.sampling.batch_size, num),
        settings=LikelihoodSettings(**settings),
        mesh=mesh,
        shardings=jax.tree.map(lambda _: everywhere, run.params),
        seed=values.seed,
        progress=_cli.progress(num * settings["dequantizations"]),
    )
    size = math.prod(problem.event_shape)
    results = {"ode": found.ode, "variational_bound": found.bound}
    words = {"ode": "probability-flow ODE", "variational_bound": "variational bound (SDE)"}
    if problem.discrete:
        unit = "bits/dim"
        results = {
            name: dequantize.bits_per_dim(-nats, size, centered=problem.centered) for name, nats in results.items()
        }
    elif len(problem.event_shape) > 1:
        unit = "nats/dim"
        results = {name: nats / size for name, nats in results.items()}
    else:
        unit = "nats/example"
        known = known_density(problem.config.data.name) if values.data is None else None
        if known is not None:
            x = dataset.read(found.indices)["x"]
            results["exact"] = -np.asarray(jax.jit(known.log_prob)(x), np.float64)
            words["exact"] = "true density of the data"
    summary = {name: mean_and_error(nats) for name, nats in results.items()}
    nfe = {"mean": float(found.nfe.mean()), "max": int(found.nfe.max())}
    lines = [f"{words[name]}: {_show(s)} {unit}" for name, s in summary.items()]
    lines[0] += f", {num} examples, NFE {nfe['mean']:.0f} on average, {nfe['max']} at most"
    result: dict[str, Any] = {"unit": unit, "num": num, "results": summary, "nfe": nfe, "settings": settings}
    if problem.discrete:
        result["dequantization"] = {"kind": "uniform", "levels": 256, "centered": problem.centered}
    return lines, result


def draw(values: Any, run: Any, mesh: Any) -> tuple[Any, dict[str, Any]]:
    """Samples as the run's config says, as they are saved, and what to write about them."""
    import dataclasses

    import jax

    from sgmjax.training import evaluation, pictures
    from sgmjax.training import sharding as sh

    problem = run.problem
    sampling = problem.config.sampling
    num = values.num or sampling.num
    everywhere = sh.replicated(mesh)
    batch_size = min(values.batch_size or sampling.batch_size, num)
    shardings = jax.tree.map(lambda _: everywhere, run.params)
    sampler = evaluation.Sampler(problem.sample_fn, mesh, shardings, batch_size)
    key = jax.device_put(jax.random.key(values.seed), everywhere)
    drawn = sampler(run.params, key, num, progress=_cli.progress(num))
    assert drawn is not None
    settings = dataclasses.asdict(sampling) | {"num": num, "batch_size": sampler.batch_size}
    samples = pictures.to_arrays(drawn[0], problem.discrete, problem.centered)
    return samples, {"num": num, "nfe": drawn[1], "settings": settings}


def nelbo(values: Any, run: Any, dataset: Any, mesh: Any) -> tuple[list[str], dict[str, Any]]:
    """Lines to print and what to write, of the metric `nelbo`."""
    import dataclasses

    import jax

    from sgmjax.models.distributions import bits_per_dim
    from sgmjax.training import sharding as sh
    from sgmjax.training.nelbo import NelboSettings, held_out_nelbo

    problem = run.problem
    settings = {field.name: getattr(values, field.name) for field in dataclasses.fields(NelboSettings)}
    settings["t_min"] = values.t_min or problem.config.sampling.t_min
    num = min(values.num or dataset.num_examples, dataset.num_examples)
    everywhere = sh.replicated(mesh)
    found = held_out_nelbo(
        problem,
        run.params,
        jax.device_put(jax.random.key(values.seed), everywhere),
        dataset,
        num=num,
        batch_size=values.batch_size or min(problem.config.sampling.batch_size, num),
        settings=NelboSettings(**settings),
        mesh=mesh,
        shardings=jax.tree.map(lambda _: everywhere, run.params),
        seed=values.seed,
        progress=_cli.progress(num, " images"),
    )
    binary = problem.vae.decoder == "bin"
    unit = "nats" if binary else "bits/dim"
    scale = 1.0 if binary else float(bits_per_dim(1.0, problem.vae.dimensions))
    words = {
        "normal": "NELBO with a normal prior",
        "ode": "NELBO, prior by the probability-flow ODE",
        "weighted": "NELBO, prior by the weighted objective",
    }
    results = {name: mean_and_error(scale * nats) for name, nats in found.nelbo.items()}
    results["reconstruction"] = mean_and_error(scale * found.reconstruction)
    lines = [f"{words[n]}: {_show(r)} {unit}" for n, r in results.items() if n in words]
    if "ode" in results:
        lines[1] += f", NFE {found.nfe.mean():.0f} on average, {found.nfe.max():.0f} at most"
        results["normal_minus_ode"] = mean_and_error(scale * (found.nelbo["normal"] - found.nelbo["ode"]))
        results["weighted_minus_ode"] = mean_and_error(scale * (found.nelbo["weighted"] - found.nelbo["ode"]))
    groups = found.kl_per_group.mean(axis=0)
    lines.append(
        f"reconstruction {results['reconstruction']['mean']:.4f} {unit}, KL per group "
        + ", ".join(f"{kl:.2f}" for kl in groups)
        + f" nats, {found.active_units} active units of {len(groups) * problem.vae.latents_per_group}, {num} images"
    )
    result = {"unit": unit, "num": num, "results": results, "settings": settings}
    result |= {"kl_per_group_nats": groups.tolist(), "active_units": found.active_units}
    return lines, result | {"nfe": {"mean": float(found.nfe.mean()), "max": int(found.nfe.max())}}


def frechet(values: Any, run: Any, dataset: Any, mesh: Any) -> tuple[list[str], dict[str, Any]]:
    """Lines to print and what to write, of the metric `frechet`."""
    import numpy as np

    from sgmjax import metrics

    samples, about = draw(values, run, mesh)
    real = dataset.read(np.arange(dataset.num_examples))["x"]
    distance = metrics.pixel_frechet(samples, real, centered=run.problem.centered)
    line = f"pixel-space Frechet distance: {distance:.4f}, {about['num']} samples to {len(real)} images"
    return [f"{line}, NFE {about['nfe']}"], about | {"real": len(real), "results": {"pixel_frechet": distance}}


def neighbours(values: Any, run: Any, dataset: Any, mesh: Any) -> tuple[list[str], dict[str, Any], Any]:
    """Lines to print, what to write, and a picture, of the metric `neighbours`; it needs both parts of the data."""
    import dataclasses

    import numpy as np

    from sgmjax import metrics
    from sgmjax.training import pictures
    from sgmjax.training.runs import load_data

    config = run.problem.config.data
    other = load_data(Path(values.workdir), run.problem, "train" if values.split == "test" else "eval", values.data)
    training, held_out = (other, dataset) if values.split == "test" else (dataset, other)
    samples, about = draw(values, run, mesh)
    k = min(values.nearest, training.num_examples)
    options = {"mirrored": config.flip}  # a mirrored copy is a copy where mirrored images were trained on
    near = metrics.nearest(samples, training, k, **options)
    # As many held-out images as there are samples, at most: the search takes as long for them.
    order = np.random.default_rng(values.seed).permutation(held_out.num_examples)[: max(len(samples), 1000)]
    reference = metrics.nearest(held_out.read(np.sort(order))["x"], training, **options)
    found = metrics.memorisation(near.distances[:, 0], reference.distances[:, 0])
    lines = [
        f"distance to the nearest of {training.num_examples} training images, median: {found.sample_median:.4f} of "
        f"{len(samples)} samples, {found.held_out_median:.4f} of {len(order)} held-out images, ratio "
        f"{found.median_ratio:.3f}",
        f"nearer than {found.threshold:.4f}, as 1% of the held-out images are: {100 * found.share_below:.2f}% +- "
        f"{100 * found.share_error:.2f}% of the samples",
    ]
    nearest = int(np.argmin(near.distances[:, 0]))
    result = about | {"training": training.num_examples, "held_out": len(order), "mirrored": config.flip, "nearest": k}
    result["results"] = dataclasses.asdict(found) | {"smallest": float(near.distances[nearest, 0])}
    rows = metrics.picture_rows(samples, training, near)
    return lines, result, pictures.picture(rows, limit=len(rows), columns=1 + k, centered=run.problem.centered)


def mean_and_error(values: Any) -> dict[str, float | None]:
    """The mean over examples and its standard error; None for one example."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error}


def _show(found: dict[str, float | None]) -> str:
    """What `mean_and_error` found, in words; one example has no error."""
    error = found["standard_error"]
    return f"{found['mean']:.4f}" + ("" if error is None else f" +- {error:.4f}")


def known_density(name: str) -> Any:
    """The law of a generated set, where it has a density in closed form; else None."""
    from sgmjax import exact

    return exact.ring() if name == "ring" else None


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes JSON in one move; numbers that are not finite become null, which JSON can hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(_finite(result), indent=2) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    _cli.run(main, sys.argv)
