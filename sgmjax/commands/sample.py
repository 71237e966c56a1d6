"""Draws samples from a run.

    python -m sgmjax.sample --workdir=runs/psld_digits --num=1000
    python -m sgmjax.sample --workdir=runs/psld_cifar --num=50000 --sampler=em --steps=1000 --out=em1000
    python -m sgmjax.sample --workdir=runs/ve_cifar --sampler=pc --steps=2000 --options=snr=0.16,predictor=ancestral
    python -m sgmjax.sample --workdir=runs/edm_digits --process=psld --process.gamma=0.02 --sampler=sscs
    python -m sgmjax.sample --workdir=runs/edm_cifar --sampler=edm --grid=rho --steps=43 --restarts=3,2,0.14,0.3
    python -m sgmjax.sample --workdir=runs/psld_digits --classifier=runs/classifier_digits --labels=3 --guidance=2
    python -m sgmjax.sample --workdir=runs/psld_digits --inpaint=half
    python -m sgmjax.sample --workdir=runs/psld_mnist --inverse=super_resolution:4 --noise=0.05 --method=mmps
    python -m sgmjax.sample --workdir=runs/psld_digits --interpolate
    python -m sgmjax.sample --workdir=runs/ncsnv2_digits --interpolate_samples
    python -m sgmjax.sample --workdir=runs/lsgm_digits --reconstruct

Takes the averaged parameters of the newest checkpoint, with --params=raw those being trained. --process draws with
another process than the run's: a network, of whatever process or of none, is a denoiser, and that the score of all. It
then stops at the noise level at which the run's own process would. What is not said is as in the run's config. Writes
`<out>.npz` (`samples`: (num, *shape of an example), uint8 or float32 as the data; `nfe`, `step`, `settings`) and a
picture, `<out>.png`; files of other settings stay: where the name would be the same it gets a digest. With --inpaint,
--colorize or --inverse (super_resolution:4, blur:1.5, random:0.1, fourier:0.25) they are samples given what is known of
an input: by --method=mmps, tmpd, pigdm or dps (`sgmjax.samplers.posterior`), by c_pigdm, which is a sampler itself, or,
as published for these models, by replacing it after every step (--method=replacement). With these or --start_time they
come from eight inputs in turn, which are in the .npz too (`inputs`); the picture shows the inputs, what was kept of
them, rows of samples, and the samples' mean and twice their standard deviation. With --interpolate each row goes from
one input to the next, with --interpolate_samples from one sample to another, and `samples` has (num, 8, *shape of an
example). Of a run on arrays that were given in Python, --data=FILE.npz says where held-out data are.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from sgmjax import _cli
from sgmjax._files import AnyPath, check_writable, process_label, run_name, short, user_path
from sgmjax._inputs import InputError
from sgmjax._ranges import COUNT, NON_NEGATIVE, OPEN_UNIT, SEED, TOLERANCE, check_memory
from sgmjax.commands import sampling

RANGES = {"num": COUNT, "steps": COUNT, "batch_size": COUNT, "resample": COUNT, "seed": SEED}
RANGES |= {
    "rtol": TOLERANCE,
    "atol": TOLERANCE,
    "guidance": NON_NEGATIVE,
    "noise": NON_NEGATIVE,
    "start_time": OPEN_UNIT,
    "t_min": OPEN_UNIT,
}


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    return _cli.serve(argv, read_flags, draw)


def read_flags(argv: Sequence[str]) -> Any:
    """The parsed flags, and the section that --process makes.

    Raises:
        UsageError: naming the flag and the fix.
    """
    from absl import flags

    argv, settings = sampling.split_process(argv)

    values = flags.FlagValues()
    _cli.define_path(values, "workdir", None, "the run folder")
    flags.DEFINE_integer("num", None, "how many samples", flag_values=values)
    sampling.define(values)
    flags.DEFINE_float("rtol", None, "relative tolerance of adaptive samplers", flag_values=values)
    flags.DEFINE_float("atol", None, "absolute tolerance of adaptive samplers", flag_values=values)
    flags.DEFINE_float("t_min", None, "time where sampling ends", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the samples", flag_values=values)
    flags.DEFINE_integer("batch_size", None, "samples drawn at a time", flag_values=values)
    flags.DEFINE_list("labels", None, "classes, by number or name, as 3 or cat,dog: used in turn", flag_values=values)
    _cli.define_path(values, "classifier", None, "run folder of a classifier that guides to --labels")
    flags.DEFINE_float("guidance", None, "strength of the guidance; 1 is Bayes' rule", flag_values=values)
    text = "noise levels between which that is the strength, as 0.2,5; at others it is 1"
    flags.DEFINE_list("guidance_interval", None, text, flag_values=values)
    _cli.define_path(values, "inpaint", None, "what is kept: half, center, or an .npz with `mask`")
    flags.DEFINE_bool("colorize", False, "keep the grey part of colour images", flag_values=values)
    text = "what was measured of an input: super_resolution:4, blur:1.5, random:0.1, fourier:0.25, inpaint:half, ..."
    _cli.define_path(values, "inverse", None, text)
    flags.DEFINE_float(
        "noise", 0.01, "standard deviation of the noise in it, in the network's range", flag_values=values
    )
    text = "mmps, tmpd, pigdm, dps, c_pigdm or, for --inpaint and --colorize, replacement"
    flags.DEFINE_string("method", None, text, flag_values=values)
    flags.DEFINE_list("method_options", None, "the method's own settings, as iterations=5", flag_values=values)
    text = "times each step of --inpaint or --colorize by replacement is taken"
    flags.DEFINE_integer("resample", 1, text, flag_values=values)
    flags.DEFINE_float("start_time", None, "start from inputs noised to this time", flag_values=values)
    flags.DEFINE_bool("reconstruct", False, "inputs through the VAE and back; for runs with one", flag_values=values)
    flags.DEFINE_bool("interpolate", False, "rows of images between two inputs", flag_values=values)
    flags.DEFINE_bool(
        "interpolate_samples",
        False,
        "rows of samples of annealed Langevin chains whose noise turns",
        flag_values=values,
    )
    _cli.define_path(values, "input", "test", "test (held-out data), or an .npz of examples")
    _cli.define_path(values, "data", None, "an .npz with the held-out data of --input=test, as x_test or x")
    _cli.define_path(values, "out", None, "path without ending; default <workdir>/samples/...")
    sampling.parse(values, argv, RANGES, __doc__)
    return values, sampling.process(values, settings)


def draw(request: Any) -> None:
    """Samples as the flags say, and writes them.

    Raises:
        ValueError: flags that do not fit the run, or no run in the folder.
        CheckpointError: no checkpoint can be read.
    """
    import jax
    import numpy as np

    from sgmjax import sharding as sh
    from sgmjax._say import say
    from sgmjax.commands import control
    from sgmjax.commands.inputs import read_mask, read_operator
    from sgmjax.evaluation import pictures
    from sgmjax.evaluation.draw import Sampler
    from sgmjax.samplers import registry
    from sgmjax.samplers.plan import check as check_plan
    from sgmjax.training import tensors
    from sgmjax.training.load import load_data, load_run

    values, process = request
    if values.interpolate or values.reconstruct:
        what = "--interpolate follows the ODE" if values.interpolate else "--reconstruct draws with the VAE"
        unread = set(sampling.PLAN)
        if not values.reconstruct:  # of the ODE itself these two are refused below
            unread -= {"steps", "grid"} | ({"sampler"} if values.sampler == "ode" else set())
        for name in sorted(unread):
            if values[name].present:
                raise _cli.UsageError(f"--{name}: {what}, which has no use for it; leave it out")
    path = user_path(tensors.find(values.workdir), "--workdir")
    given = sampling.given(values) | ({} if values.t_min is None else {"t_min": values.t_min})
    if values.interpolate:
        given.setdefault("sampler", "ode")  # whose tolerances are those of the flow
    if values.method == control.C_PIGDM:
        given.setdefault("sampler", "conjugate")
    mesh = sh.make_mesh()
    everywhere = sh.replicated(mesh)
    known = values.inpaint or values.colorize or values.inverse
    if "num" not in given and (known or values.start_time is not None):
        given["num"] = 4 * control.COLUMNS
    if "num" not in given and (values.interpolate or values.interpolate_samples or values.reconstruct):
        given["num"] = control.COLUMNS
    run = load_run(path, sampling=given, process=process, sharding=everywhere, say=say, **sampling.which(values))
    task, step = run.task, run.step
    sampling.refuse_classifier(task, path)
    plan = run.plan
    if plan.grid == "tuned" and values.t_min is not None:
        raise _cli.UsageError("--t_min: a tuned grid ends where it was tuned to; leave it out, or tune with another")
    check_plan(plan, task.sde)
    for name, count in (("num", plan.num), ("batch_size", plan.batch_size)):
        fix = "give fewer, and draw the others with another --seed" if name == "num" else "give fewer"
        check_memory(f"--{name}", min(count, plan.num), task.event_shape, fix=fix)
    if values.out and jax.process_index() == 0:
        for ending in (".npz", ".png"):
            check_writable(user_path(values.out.removesuffix(".npz") + ending), "--out")
    guide = None
    if values.classifier:
        guide = control.load_classifier(values.classifier, run, sharding=everywhere, say=say)
    classes = guide.task.num_classes if guide is not None else task.num_classes
    names = guide.task.class_names if guide is not None else task.class_names
    labels = read_labels(values.labels, classes, plan.num, names)
    steer = control.Control(
        guidance=values.guidance,
        interval=read_interval(values.guidance_interval),
        classifier=guide,
        mask=read_mask(values.inpaint, task.event_shape) if values.inpaint else None,
        colorize=values.colorize,
        inverse=read_operator(values.inverse, task.event_shape) if values.inverse else None,
        noise=values.noise,
        method=values.method,
        method_options=sampling.read_options(values.method_options or [], "--method_options"),
        repeats=values.resample,
        start_time=values.start_time,
        interpolate=values.interpolate,
        interpolate_samples=values.interpolate_samples,
        reconstruct=values.reconstruct,
    )
    steer.check(run, labels)
    if values["input"].present and not steer.needs_input:
        raise _cli.UsageError("--input: nothing here starts from data; it is for --inpaint, --start_time, ...")
    if values.data and not (steer.needs_input and values.input == "test"):
        raise _cli.UsageError("--data: nothing here starts from held-out data; it is for --inpaint, --start_time, ...")
    held_out = functools.partial(load_data, path, run, "eval", values.data)
    inputs, labels = steer.inputs(values.input, run, plan.num, labels, held_out)
    variables = steer.variables(run)
    shardings = jax.tree.map(lambda _: everywhere, variables)
    sampler = Sampler(steer.sample_fn(run), mesh, shardings, min(plan.batch_size, plan.num))

    more = sampling.plan_label(values, ("restarts", "options", "denoise", "t_min", "method_options"))
    if registry.is_adaptive(plan.sampler):
        rtol, atol = ("its own" if v is None else f"{v:g}" for v in (plan.rtol, plan.atol))
        how = f"tolerances {rtol} and {atol}"
        name = plan.sampler + ("" if plan.rtol is None else f"_{rtol}") + sampling.plan_label(values, ["atol"])
    else:
        how = f"{plan.steps} steps, {plan.grid} grid" + ", restarts" * bool(plan.restarts)
        name = f"{plan.sampler}_{plan.steps}_{plan.grid}" + "_restarts" * bool(plan.restarts and not values.restarts)
    if values.interpolate:
        how, name = "the probability flow, there and back", "ode"
    elif values.reconstruct:
        how, name = "the VAE", "vae"
    else:
        how = f"{plan.sampler if steer.method != control.C_PIGDM else steer.method} ({how})"
    say(f"drawing {plan.num} samples with {how} from step {step} of {run_name(path)} ...")
    start = time.perf_counter()
    key = sh.replicate(jax.random.key(values.seed), mesh)
    show = _cli.progress(plan.num, " samples")
    drawn = sampler(variables, key, plan.num, labels=labels, inputs=inputs, progress=show)
    assert drawn is not None
    lost, far = pictures.astray(np.asarray(drawn[0]), task.discrete, task.centered)
    samples = pictures.to_arrays(drawn[0], task.discrete, task.centered)
    name = "_".join(filter(None, [process_label(process), name]))
    name = (
        short(f"{steer.name}{name}{more}{label_words(values.labels)}{sampling.label(values)}") + f"_seed{values.seed}"
    )
    rows, about = "", {"step": step, **sampling.told(values, process)}
    if values.out:
        out = user_path(values.out.removesuffix(".npz"))
    else:
        out = tensors.folder_of(path) / "samples" / f"{name}.npz"
        out = sampling.untaken(out, about, _settings_in(out)).with_suffix("")
    if jax.process_index() == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        extra = {} if labels is None else {"labels": labels}
        if "x0" in inputs:
            extra["inputs"] = pictures.to_arrays(inputs["x0"], task.discrete, task.centered)
        if "y" in inputs:
            extra["measured"] = inputs["y"]
        extra |= {"nfe": np.int64(drawn[1]), "step": np.int64(step), "settings": np.array(json.dumps(about))}
        pictures.save_arrays(f"{out}.npz", samples=samples, **extra)
        image, rows = steer.picture(task, samples, inputs)
        pictures.save_picture(f"{out}.png", image)
    fix = "take more --steps, or another --sampler, --grid or --method"
    for count, how in ((lost, "are not finite"), (far, "lie far outside the range of images, which cuts them off")):
        if count:
            say(f"warning: {count} of {len(samples)} samples {how}; {fix}")
    say(
        f"NFE {drawn[1]}{steer.cost()}, {time.perf_counter() - start:.1f} s, {out}.npz and .png"
        + (f", from above: {rows}" if rows else "")
    )


def _settings_in(file: AnyPath) -> dict[str, Any] | None:
    """What the samples in a file are of; None: no file, or one that does not say."""
    import numpy as np

    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            return json.loads(str(archive["settings"]))
    except Exception:  # whatever a broken file, or one of something else, makes zipfile and NumPy raise
        return None


def label_words(words: list[str] | None) -> str:
    """What names of files have of --labels: "_labels3-7"; nothing without."""
    if not words:
        return ""
    text = "-".join(re.sub(r"[^A-Za-z0-9]+", "", word) for word in words)
    return f"_labels{text}"


def read_interval(words: list[str] | None) -> tuple[float, float] | None:
    """What --guidance_interval says: ["0.2", "5"] -> (0.2, 5.0).

    Raises:
        UsageError: what are not two numbers.
    """
    if not words:
        return None
    try:
        low, high = map(float, words)
    except ValueError:
        raise _cli.UsageError(f"--guidance_interval: {','.join(words)!r}: give two noise levels, as 0.2,5") from None
    return low, high


def read_labels(
    words: list[str] | None, num_classes: int | None, num: int, names: tuple[str, ...] | None = None
) -> Any:
    """The classes to draw, (num,) int32, or None. `num_classes` is the network's, `names` those of its classes.

    Raises:
        UsageError: a label that is no class of the data.
    """
    import numpy as np

    from sgmjax.data.classes import to_labels

    if not words:
        return None
    if num_classes is None:
        raise _cli.UsageError(
            "--labels: the network of this run knows no classes (model.num_classes); leave it out, or give --classifier"
        )
    try:
        return np.resize(to_labels(words, num_classes, names, "--labels"), num)
    except InputError as error:
        raise _cli.UsageError(str(error)) from None
