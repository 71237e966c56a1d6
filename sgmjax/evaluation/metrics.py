"""Metrics of a generative model by name, the same during training, after it, and from a notebook.

    subject = Subject(task, variables, data=held_out, plan=plan, mesh=make_mesh())
    found = METRICS["bpd"](subject, Settings(num=1000))

A new one is a function of these two arguments and its name in `METRICS`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import jax
import numpy as np

from sgmjax import exact, metrics
from sgmjax import sharding as sh
from sgmjax._files import AnyPath, replacing
from sgmjax._inputs import InputError
from sgmjax.data import dequantize
from sgmjax.evaluation import feature_metrics, pictures
from sgmjax.evaluation.compare import evaluations, generate
from sgmjax.evaluation.draw import some
from sgmjax.evaluation.likelihood import LikelihoodSettings, held_out_likelihood
from sgmjax.evaluation.nelbo import NelboSettings, held_out_nelbo
from sgmjax.evaluation.subject import Measured, Metric, Settings, Subject, Unfinished, mean_and_error
from sgmjax.models.distributions import bits_per_dim
from sgmjax.tasks.base import Generative
from sgmjax.tasks.vae import LatentModel

__all__ = [
    "DRAW",
    "IN_FEATURES",
    "METRICS",
    "TWO_PARTS",
    "Measured",
    "Metric",
    "Settings",
    "Subject",
    "Unfinished",
    "check",
    "finite",
    "needed",
    "picture_of",
    "write",
]


def check(name: str, task: Any, num: int | None = None, settings: Settings | None = None) -> None:
    """Checks before the work that a metric is one of this task.

    Args:
        name: of the metric.
        task: what is measured.
        num: examples or samples; None: as many as there are.
        settings: how it is measured, if that is known.

    Raises:
        InputError: in one line, what to use instead.

    Examples:
        >>> from sgmjax.evaluation.metrics import check
        >>> model = sgmjax.ScoreModel(sdes.vp(), models.MLP(out_channels=2, width=8))
        >>> check("nelbo", tasks.ScoreTask(model=model, event_shape=(2,)))
        Traceback (most recent call last):
        ...
        sgmjax._inputs.InputError: nelbo is for runs with a VAE; use bpd
    """
    if name not in METRICS:
        raise InputError(f"no metric called {name!r}; there are {', '.join(METRICS)}")
    if not _draws(task):
        raise InputError(f"{name} is of models that draw samples, and this run is a classifier's; leave it out")
    if name in ("frechet", "neighbours") and len(task.event_shape) != 3:
        raise InputError(f"{name} is for images, and examples of this run have shape {task.event_shape}")
    has_vae = isinstance(task, LatentModel)
    if name == "nelbo" and not has_vae:
        raise InputError("nelbo is for runs with a VAE; use bpd")
    if name == "bpd" and has_vae:
        raise InputError("bpd is of models of the data themselves; for a run with a VAE use nelbo")
    if name in ("frechet", *IN_FEATURES) and num == 1:
        raise InputError(f"{name} compares sets of samples, and one is none; give many")
    if name in IN_FEATURES and num is not None:
        feature_metrics.check_number(name, settings or Settings(), num)
    if settings is not None and name in IN_FEATURES:
        feature_metrics.check(name, settings, task)


def needed(name: str, settings: Settings, split: str) -> tuple[str, ...]:
    """The parts of the data, "train" and "test", that a metric cannot do without; its floor may need another one.

    Args:
        name: of the metric.
        settings: how it is measured.
        split: the part that `Subject.data` is.

    Examples:
        >>> from sgmjax.evaluation.metrics import Settings, needed
        >>> needed("bpd", Settings(), "test"), needed("fid", Settings(), "test")
        (('test',), ('train',))
    """
    if name in IN_FEATURES:
        return feature_metrics.needed(name, settings)
    return ("train", "test") if name in TWO_PARTS else (split,)


def _draws(task: Any) -> bool:
    return isinstance(task, Generative)


def bpd(subject: Subject, settings: Settings) -> Measured:
    """Held-out bits/dim (of floats nats/dim, of vectors nats an example), by the ODE and by the variational bound."""
    task, data, key = subject.task, subject.data, jax.random.key(settings.seed)
    chosen = _settings(LikelihoodSettings, settings, t_min=settings.t_min or subject.t_min)
    if not task.discrete:  # a density needs no noise
        chosen = dataclasses.replace(chosen, dequantizations=1)
    num = min(settings.num or data.num_examples, data.num_examples)
    found = held_out_likelihood(
        task,
        subject.variables,
        sh.replicate(key, subject.mesh),
        data,
        num=num,
        batch_size=settings.batch_size or min(subject.batch_size, num),
        settings=chosen,
        mesh=subject.mesh,
        shardings=subject.places,
        seed=settings.seed,
        progress=subject.progress(num * chosen.dequantizations),
    )
    size = math.prod(task.event_shape)
    results = {"ode": found.ode, "variational_bound": found.bound}
    words = {"ode": "probability-flow ODE", "variational_bound": "variational bound (SDE)"}
    if task.discrete:
        unit = "bits/dim"
        results = {name: dequantize.bits_per_dim(-nats, size, centered=task.centered) for name, nats in results.items()}
    elif len(task.event_shape) > 1:
        unit = "nats/dim"
        results = {name: nats / size for name, nats in results.items()}
    else:
        unit = "nats/example"
        known = exact.ring() if data.name.split(" ")[0] == "ring" else None  # the one set with a density in closed form
        if known is not None:
            x = data.read(found.indices)["x"]
            results["exact"] = -np.asarray(jax.jit(known.log_prob)(x), np.float64)
            words["exact"] = "true density of the data"
    summary = {name: mean_and_error(nats) for name, nats in results.items()}
    nfe = {"mean": float(found.nfe.mean()), "max": int(found.nfe.max())}
    lines = [f"{words[name]}: {_show(s)} {unit}" for name, s in summary.items()]
    lines[0] += f", {num} examples, NFE {nfe['mean']:.0f} on average, {nfe['max']} at most"
    record: dict[str, Any] = {"unit": unit, "num": num, "results": summary, "nfe": nfe}
    record |= {"settings": dataclasses.asdict(chosen)}
    if task.discrete:
        record["dequantization"] = {"kind": "uniform", "levels": 256, "centered": task.centered}
    numbers = {"bpd" if name == "ode" else f"bpd_{name}": s["mean"] for name, s in summary.items()}
    return Measured(numbers, lines, record)


def nelbo(subject: Subject, settings: Settings) -> Measured:
    """The negative bound of a run with a VAE, in nats (binary images) or bits/dim."""
    task, data = subject.task, subject.data
    chosen = _settings(NelboSettings, settings, t_min=settings.t_min or subject.plan.t_min)
    num = min(settings.num or data.num_examples, data.num_examples)
    found = held_out_nelbo(
        task,
        subject.variables,
        sh.replicate(jax.random.key(settings.seed), subject.mesh),
        data,
        num=num,
        batch_size=settings.batch_size or min(subject.batch_size, num),
        settings=chosen,
        mesh=subject.mesh,
        shardings=subject.places,
        seed=settings.seed,
        progress=subject.progress(num, " images"),
    )
    binary = task.vae.decoder == "bin"
    unit = "nats" if binary else "bits/dim"
    scale = 1.0 if binary else float(bits_per_dim(1.0, task.vae.dimensions))
    words = {
        "normal": "NELBO with a normal prior",
        "ode": "NELBO, prior by the probability-flow ODE",
        "weighted": "NELBO, prior by the weighted objective",
    }
    results = {name: mean_and_error(scale * nats) for name, nats in found.nelbo.items()}
    numbers = {f"nelbo_{name}": found["mean"] for name, found in results.items()}
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
        + f" nats, {found.active_units} active units of {len(groups) * task.vae.latents_per_group}, {num} images"
    )
    record = {"unit": unit, "num": num, "results": results, "settings": dataclasses.asdict(chosen)}
    record |= {"kl_per_group_nats": groups.tolist(), "active_units": found.active_units}
    record |= {"nfe": {"mean": float(found.nfe.mean()), "max": int(found.nfe.max())}}
    return Measured(numbers, lines, record)


def frechet(subject: Subject, settings: Settings) -> Measured:
    """Frechet distance in pixel space of samples to the data, beside that of as many real images: for small images."""
    samples, about = samples_of(subject, settings)
    real = subject.data.read(np.arange(subject.data.num_examples))["x"]
    numbers = {"frechet": metrics.pixel_frechet(samples, real, centered=subject.task.centered)}
    line = f"pixel-space Frechet distance: {numbers['frechet']:.4f}, {about['num']} samples to {len(real)} images"
    others = None if subject.others is None else subject.others()
    if others is not None and others.num_examples > 1:
        apart = others.read(some(others, about["num"]))["x"]
        numbers["frechet_floor"] = metrics.pixel_frechet(apart, real, centered=subject.task.centered)
        line += f"; of {len(apart)} other real images {numbers['frechet_floor']:.4f}"
    results = {key.replace("frechet", "pixel_frechet"): value for key, value in numbers.items()}
    record = about | {"real": len(real), "results": results}
    return Measured(numbers, [f"{line}, NFE {about['nfe']}"], record)


def neighbours(subject: Subject, settings: Settings) -> Measured:
    """How near samples are to their nearest training images, against how near held-out images are."""
    other = None if subject.others is None else subject.others()
    if other is None or subject.data is None:
        raise InputError("neighbours: compares samples with training and held-out data; give both")
    training, held_out = (other, subject.data) if subject.held_out else (subject.data, other)
    samples, about = samples_of(subject, settings)
    k = min(settings.nearest, training.num_examples)
    near = metrics.nearest(samples, training, k, mirrored=subject.mirrored)  # a mirrored copy is a copy then
    # As many held-out images as samples, 1,000 at the least: the search takes as long for them.
    order = some(held_out, max(len(samples), 1000), settings.seed)
    reference = metrics.nearest(held_out.read(order)["x"], training, mirrored=subject.mirrored)
    found = metrics.memorisation(near.distances[:, 0], reference.distances[:, 0])
    lines = [
        f"distance to the nearest of {training.num_examples} training images, median: {found.sample_median:.4f} of "
        f"{len(samples)} samples, {found.held_out_median:.4f} of {len(order)} held-out images, ratio "
        f"{found.median_ratio:.3f}",
        f"nearer than {found.threshold:.4f}, as 1% of the held-out images are: {100 * found.share_below:.2f}% +- "
        f"{100 * found.share_error:.2f}% of the samples",
    ]
    nearest = int(np.argmin(near.distances[:, 0]))
    record = about | {"training": training.num_examples, "held_out": len(order), "mirrored": subject.mirrored}
    record |= {"nearest": k, "results": dataclasses.asdict(found) | {"smallest": float(near.distances[nearest, 0])}}
    rows = metrics.picture_rows(samples, training, near)
    picture = pictures.picture(rows, limit=len(rows), columns=1 + k, centered=subject.task.centered)
    return Measured({"neighbours_median_ratio": found.median_ratio}, lines, record, picture)


IN_FEATURES: dict[str, Metric] = feature_metrics.METRICS
METRICS: dict[str, Metric] = {
    "bpd": bpd, "nelbo": nelbo, "frechet": frechet, "neighbours": neighbours, **IN_FEATURES,
}  # fmt: skip
DRAW = ("frechet", "neighbours", *IN_FEATURES)  # samples
TWO_PARTS = ("neighbours", "memorisation")  # of the data


def picture_of(subject: Subject, limit: int = 100) -> np.ndarray | None:
    """Some of the samples that metrics of this subject have drawn, uint8 (H, W, 3); None if they have drawn none.

    Examples:
        >>> from sgmjax.evaluation.metrics import METRICS, Settings, Subject, picture_of
        >>> model = sgmjax.ScoreModel(sdes.vp(), models.MLP(out_channels=1, width=8))
        >>> task = tasks.ScoreTask(model=model, event_shape=(2, 2, 1))
        >>> subject = Subject(task=task, variables=task.init(jax.random.key(0)), mesh=sgmjax.sharding.make_mesh(),
        ...     data=data.arrays(np.zeros((4, 2, 2, 1))), plan=samplers.plan.Plan(sampler="ddim", steps=3))
        >>> _ = METRICS["frechet"](subject, Settings(num=4))  # draws samples
        >>> picture_of(subject).dtype, picture_of(subject).shape[2]
        (dtype('uint8'), 3)
    """
    for key, samples in subject.memo.items():
        if key[0] == "samples":
            some = samples.read(np.arange(min(limit, samples.num)))["x"]
            return pictures.picture(some, centered=subject.task.centered)
    return None


def write(path: AnyPath, found: Measured, common: dict[str, Any]) -> None:
    """Writes what a metric found: the record as JSON, in one move, and the picture beside it. By process 0.

    Args:
        path: of the JSON file; numbers that are not finite become null, which JSON can hold.
        found: of the metric.
        common: what else belongs into the record: which metric, step, data, ...

    Examples:
        >>> import json, pathlib, tempfile
        >>> from sgmjax.evaluation.metrics import Measured, write
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "bpd.json"
        ...     write(path, Measured({"bpd": 3.0}, ["3.0 bits/dim"], {"results": 3.0}), {"metric": "bpd", "step": 100})
        ...     json.loads(path.read_text())
        {'metric': 'bpd', 'step': 100, 'results': 3.0}
    """
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(finite(common | found.record), indent=2) + "\n", encoding="utf-8")
    if found.picture is not None:
        pictures.save_picture(path.with_suffix(".png"), found.picture)


def finite(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON cannot hold.

    Examples:
        >>> from sgmjax.evaluation.metrics import finite
        >>> finite({"bpd": float("nan"), "results": [1.0, float("inf")]})
        {'bpd': None, 'results': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------------------------------------------------------- parts
def samples_of(subject: Subject, settings: Settings) -> tuple[np.ndarray, dict[str, Any]]:
    """Samples by the subject's plan, as they are saved, and what to record about them."""
    samples = generate(subject, settings)
    chosen = dataclasses.asdict(subject.plan) | {"num": samples.num}
    return np.concatenate(list(samples)), {"num": samples.num, "nfe": evaluations(samples), "settings": chosen}


def _show(found: dict[str, Any]) -> str:
    """What `mean_and_error` found, in words; one example has no error."""
    error = found["standard_error"]
    return f"{found['mean']:.4f}" + ("" if error is None else f" +- {error:.4f}")


def _settings(kind: Any, settings: Settings, **others: Any) -> Any:
    """The part of the settings that one kind of evaluation has."""
    names = {field.name for field in dataclasses.fields(kind)} - others.keys()
    return kind(**{name: getattr(settings, name) for name in names}, **others)
