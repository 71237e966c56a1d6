"""Measures a run.

    python -m sgmjax.evaluate --workdir=runs/psld_digits --metrics=bpd
    python -m sgmjax.evaluate --workdir=runs/cld_cifar --metrics=bpd --num=1000 --momenta=8 --probes=4
    python -m sgmjax.evaluate --workdir=runs/psld_cifar --metrics=fid,kid,pr --num=50000
    python -m sgmjax.evaluate --workdir=runs/psld_mnist --metrics=fd,pr,dc --features=zoo:features_mnist --num=10000

Of data:
    nelbo    of runs with a VAE: the negative bound in nats (binary images) or bits/dim, by the probability-flow ODE of
             the prior, by the weighted objective, and with a normal prior; KL per group, active units
    bpd      bits/dim of held-out images with uniform dequantisation (of floats nats/dim, of vectors nats per example),
             by the probability-flow ODE; and beside it the variational bound, which is of the generative SDE
Of samples, drawn as the run's config says, or as --sampler, --steps, --grid, --options, --denoise do:
    fid      Frechet Inception distance; fd: the same in other features
    kid      kernel distance     mind  Monge Inception distance     is  Inception score
    pr       precision and recall     dc  density and coverage
    balance  of the classes that the features' network sees: total variation distance of their shares to the data's
    memorisation  nearest training examples in features, of samples and of held-out data
    frechet  Frechet distance in pixel space to the data: for small images
    neighbours  the same as memorisation in pixels, with a picture: each row a sample and its nearest training images

Features (--features): inception (pytorch-fid's), inception_tf1 (TensorFlow 1's preprocessing), pixels, or a run of a
feature network, as configs/features_mnist.py trains one: its folder or file; zoo:features_mnist comes with sgmjax.
Samples are compared with the training data, as published; --against=test takes held-out data, --reference=FILE a file
of statistics (pytorch-fid's, EDM's, guided-diffusion's, ...). Beside each number stands its floor: that of as many real
examples of the other part.

Takes the averaged parameters of the newest checkpoint, with --params=raw those being trained; --process=psld measures
them with another process than the run's, as `python -m sgmjax.sample` draws with it. The data are those of the run's
config; --data=FILE.npz gives others, as runs on arrays given in Python need. Writes
`<workdir>/metrics/<metric>_step<step>.json` with all settings that matter, and a report of all metrics, JSON, Markdown
and a picture; names of what was drawn have --sampler, --steps, ... too, where they are given, and results of other
flags, which the name does not have, stay: then it gets a digest. Samples and features are kept in
`<workdir>/metrics/samples_step<step>_...`: the same command goes on from what is there, also with a larger --num.
--t_min is by default, of bpd the time where the run's training ended (objective.t_min), of nelbo that where its samples
end (sampling.t_min).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Container, Mapping, Sequence
from typing import Any

from sgmjax import _cli
from sgmjax._files import AnyPath, check_writable, process_label, run_name, short, user_path
from sgmjax._inputs import InputError
from sgmjax._ranges import COUNT, OPEN_UNIT, SEED, TOLERANCE, check_memory
from sgmjax.commands import sampling

_COUNTS = (
    "num", "batch_size", "probes", "momenta", "dequantizations", "draws", "posterior_samples", "nearest", "steps",
    "subsets", "splits", "k",
)  # fmt: skip
_FLOW = ("bpd", "nelbo")
# Flags of some metrics alone; "" stands for those in features, and of metrics of one's own nothing is known.
_OF = dict.fromkeys(("solver", "trace", "probes", "probing", "momenta", "draws", "t_min", "rtol", "atol"), _FLOW) | {
    "truncation": ("bpd",), "dequantizations": ("bpd",), "posterior_samples": ("nelbo",), "nearest": ("neighbours",),
    "subsets": ("kid",), "splits": ("is",), "k": ("pr", "dc"), "reference": ("fid", "fd", "is"),
    "features": ("",), "against": ("",),
}  # fmt: skip
RANGES = dict.fromkeys(_COUNTS, COUNT) | {"rtol": TOLERANCE, "atol": TOLERANCE, "t_min": OPEN_UNIT, "seed": SEED}


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    return _cli.serve(argv, read_flags, evaluate)


def read_flags(argv: Sequence[str]) -> Any:
    """The parsed flags, the section that --process makes, and the words they were read from.

    Raises:
        UsageError: naming the flag and the fix.
    """
    from absl import flags

    words, (argv, settings) = list(argv), sampling.split_process(argv)
    values = flags.FlagValues()
    _cli.define_path(values, "workdir", None, "the run folder")
    flags.DEFINE_list("metrics", ["bpd"], "what to measure: bpd, fid, ...", flag_values=values)
    flags.DEFINE_enum("split", "test", ["test", "train"], "data of bpd, nelbo, frechet", flag_values=values)
    _cli.define_path(values, "data", None, "an .npz with the data: x_test, or x, held out")
    flags.DEFINE_integer("num", None, "examples or samples; default all examples", flag_values=values)
    flags.DEFINE_integer("batch_size", None, "examples at a time, or samples on each device", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of all that is random, and of which examples", flag_values=values)
    sampling.define(values)
    _cli.define_path(values, "features", "inception", "of the metrics of samples: a name, or a feature network's run")
    flags.DEFINE_enum("against", "train", ["train", "test"], "the data samples are compared with", flag_values=values)
    _cli.define_path(values, "reference", None, "a file of statistics in place of the data, for fid and fd")
    kinds = ["pytorch_fid", "tf1"]
    flags.DEFINE_enum("preprocessing", None, kinds, "of --reference, where it does not say", flag_values=values)
    flags.DEFINE_integer("subsets", 100, "of kid", flag_values=values)
    flags.DEFINE_integer("splits", 10, "of is", flag_values=values)
    flags.DEFINE_integer("k", None, "neighbours of pr (3) and dc (5)", flag_values=values)
    flags.DEFINE_float("t_min", None, "where the integration starts", flag_values=values)
    flags.DEFINE_float("rtol", None, "relative tolerance of the ODE, 1e-5; of adaptive samplers", flag_values=values)
    flags.DEFINE_float("atol", None, "absolute tolerance of the ODE, 1e-5; of adaptive samplers", flag_values=values)
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
    sampling.parse(values, argv, RANGES, __doc__)
    if not values.metrics:
        raise _cli.UsageError("--metrics: which? give some, as --metrics=bpd,fid")
    if values.out and len(values.metrics) > 1:
        raise _cli.UsageError("--out: is for one metric; leave it out, and each gets a file in <workdir>/metrics")
    return values, sampling.process(values, settings), words


def evaluate(request: Any) -> None:
    """Measures as the flags say; prints a line for every result and writes them.

    Raises:
        ValueError: flags that do not fit the run, or no run in the folder.
        CheckpointError: no checkpoint can be read.
    """
    import jax

    from sgmjax import sharding as sh
    from sgmjax._say import say
    from sgmjax.config import to_dict
    from sgmjax.data import DataError
    from sgmjax.evaluation import metrics
    from sgmjax.evaluation.report import write_report
    from sgmjax.samplers import registry
    from sgmjax.samplers.plan import check as check_plan
    from sgmjax.training import tensors
    from sgmjax.training.load import load_data, load_run, read_config

    values, process, words = request
    for name in values.metrics:
        if name not in metrics.METRICS:
            names = ", ".join(metrics.METRICS)
            raise _cli.UsageError(f"--metrics: no metric called {name!r}; there are {names}")
    drawing = [name for name in values.metrics if name in metrics.DRAW]
    path = user_path(tensors.find(values.workdir), "--workdir")
    place = tensors.folder_of(path) / "metrics"
    mesh = sh.make_mesh()
    wanted = sampling.given(values)
    chosen = {key: wanted[key] for key in sampling.PLAN if key in wanted}
    if chosen and not drawing:
        raise _cli.UsageError(f"--{next(iter(chosen))}: is of metrics that draw samples, and there is none here")
    adaptive = bool(drawing) and registry.is_adaptive(read_config(path, chosen).sampling.sampler)
    _refuse_unread(values, metrics.IN_FEATURES, ("rtol", "atol") if adaptive else ())
    if adaptive:
        chosen |= {key: wanted[key] for key in ("rtol", "atol") if key in wanted}
    run = load_run(
        path, sampling=chosen, process=process, sharding=sh.replicated(mesh), say=say, **sampling.which(values)
    )
    task, config = run.task, run.config
    assert config is not None
    sampling.refuse_classifier(task, path)
    if drawing:
        check_plan(run.plan, task.sde)
    if values.out and jax.process_index() == 0:
        check_writable(user_path(values.out), "--out")
    settings = _settings(values, task)
    for name in values.metrics:
        try:
            metrics.check(name, task, values.num or config.sampling.num, settings)
        except InputError as error:
            raise _cli.UsageError(f"--metrics: {error}") from None
    other = "train" if values.split == "test" else "test"
    needed = {part for name in values.metrics for part in metrics.needed(name, settings, values.split)}

    @functools.cache
    def data_of(part: str) -> Any:
        """The training or test data; None where there are none and only floors would be of them."""
        try:
            return load_data(path, run, "train" if part == "train" else "eval", values.data)
        except DataError as error:
            if part in needed:
                raise
            say(f"going on without the {part} data: {error}")
            return None

    for part in sorted(needed):  # before samples are drawn
        data_of(part)
    dataset = data_of(values.split)
    largest = values.num or max(config.sampling.num, 0 if dataset is None else dataset.num_examples)
    named = data_of(other) if dataset is None else dataset
    data_name = values.reference or "no data" if named is None else named.name
    if {"frechet", "neighbours"} & set(values.metrics):
        check_memory("--num", values.num or 1, task.event_shape, fix="give fewer")
    check_memory("--batch_size", min(values.batch_size or 1, largest), task.event_shape, fix="give fewer")
    as_other = process_label(process)
    raw = sampling.label(values) + (f"_{as_other}" if as_other else "")
    how = sampling.plan_label(values, [*sampling.PLAN, "rtol", "atol"]) if drawing else ""
    raw, how = (short(words, 100) for words in (raw, how))  # of long settings a digest
    about = {"workdir": str(path), "step": run.step, "checkpoint": values.checkpoint, "parameters": values.params}
    about |= {} if process is None else {"process": process}
    about |= {"split": values.split, "data": data_name, "seed": values.seed}
    about |= {"flags": sampling.told(values, process, "metrics", "batch_size")}
    if set(drawing) & set(metrics.IN_FEATURES):
        plan = hashlib.sha256(
            repr((dataclasses.astuple(run.plan), values.seed, *([process] if process else []))).encode()
        ).hexdigest()[:8]
        folder = place / f"samples_step{run.step}{raw}_{plan}"
        settings = dataclasses.replace(settings, folder=folder)
    subject = metrics.Subject(
        task=task, variables=run.variables, data=dataset, plan=run.plan, mesh=mesh, held_out=values.split == "test",
        others=lambda: data_of(other), mirrored=config.data.flip, num=config.sampling.num,
        batch_size=config.sampling.batch_size, t_min=config.objective.t_min, progress=_cli.progress,
        identity={"step": run.step, "parameters": values.params},
    )  # fmt: skip
    measured: dict[str, metrics.Measured] = {}
    for name in values.metrics:
        say(f"{name} on {data_name}, step {run.step} of {run_name(path)} ...")
        start = time.perf_counter()
        found = measured[name] = metrics.METRICS[name](subject, settings)
        seconds = time.perf_counter() - start
        drawn = how if name in drawing else ""
        out = user_path(values.out) if values.out else _place_of(place, f"{name}_step{run.step}{raw}{drawn}", about)
        metrics.write(out, found, {"metric": name, **about, "seconds": round(seconds, 2)})
        for line in found.lines:
            say(line)
        say(f"{seconds:.1f} s, {out}")
    about["flags"] |= {"metrics": values.metrics}
    report = _place_of(place, f"report_step{run.step}{raw}{how}", about).stem
    about["config"] = to_dict(config)
    if drawing:
        about |= {"sampling": dataclasses.asdict(run.plan)}
    page = write_report(
        place, report, measured, about=about,
        command=["python -m sgmjax.evaluate", *words[1:]], picture=metrics.picture_of(subject),
    )  # fmt: skip
    say(f"report: {page}")


def _refuse_unread(values: Any, in_features: Container[str], but: Sequence[str] = ()) -> None:
    """Raises UsageError for a flag of other metrics than those asked for, some left out."""
    measured = {"" if name in in_features else name for name in values.metrics}
    if not measured <= {*_FLOW, "frechet", "neighbours", ""}:
        return  # one of the user's own
    measured |= set(values.metrics)
    for flag, readers in _OF.items():
        reads = measured & set(readers)
        if values[flag].present and flag not in but and not reads:
            whose = " and ".join(readers) if "" not in readers else "metrics in features, as fid"
            also = ", or of an adaptive sampler" if flag in ("rtol", "atol") else ""
            raise _cli.UsageError(f"--{flag}: is of {whose}{also}; leave it out")
    if values.preprocessing is not None and values.reference is None:
        raise _cli.UsageError("--preprocessing: is of --reference; leave it out")


def _place_of(folder: AnyPath, name: str, about: Mapping[str, Any]) -> AnyPath:
    """Where a result is written: results of other settings stay."""
    path = folder / f"{name}.json"
    try:
        there = json.loads(path.read_text(encoding="utf-8"))["flags"]
    except (OSError, ValueError, KeyError, TypeError):
        there = None
    return sampling.untaken(path, about["flags"], there)


def _settings(values: Any, task: Any) -> Any:
    """What the flags say of how it is measured."""
    from sgmjax.evaluation import metrics
    from sgmjax.tasks import ClassifierTask, FeatureTask
    from sgmjax.training.load import load_features

    names = {field.name for field in dataclasses.fields(metrics.Settings)} & set(values)
    given = {name: value for name in names if (value := getattr(values, name)) is not None}
    if set(values.metrics) & set(metrics.IN_FEATURES) and not isinstance(task, ClassifierTask | FeatureTask):
        given["features"] = load_features(values.features, task)
    return metrics.Settings(**given)
