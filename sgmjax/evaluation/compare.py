"""Samples against data in features: FID and its kin, each beside its floor, the same number of real against real.

A sample set, the features of it and those of the data are made once for all metrics (`comparison`). Beside each number
stands what it depends on: the features and their preprocessing, how many of each, which parameters, sampler and steps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from sgmjax import metrics
from sgmjax import sharding as sh
from sgmjax.evaluation import pictures
from sgmjax.evaluation.chunks import Chunks, Columns, chunk_size
from sgmjax.evaluation.draw import sampler_of, some
from sgmjax.evaluation.features import Extractor, Features, cache_folder, digest, extractor_of, load_features
from sgmjax.evaluation.statistics_file import check_same, read_statistics
from sgmjax.evaluation.subject import Settings, Subject, Unfinished
from sgmjax.metrics import Statistics
from sgmjax.metrics.manifold import radii

PER_DEVICE = 128  # samples at a time, at most, where nobody says how many


class FeatureSet(NamedTuple):
    """Features of a set of images, (num, dim), and their logits, (num, classes) or None; both read in pieces."""

    rows: Columns
    logits: Columns | None


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What the metrics of one set of samples share.

    Attributes:
        features: in which they are compared.
        samples: the samples as they are saved, a set that is read in pieces.
        generated: their features.
        real: those of the data; None where only statistics of them are known.
        statistics: of the features of the data; None where there are none.
        spare: features of real examples that are not among the data, for the floor; None: there are none.
        about: all that the numbers depend on.
        memo: what metrics share; empty at first.
    """

    features: Features
    samples: Chunks
    generated: FeatureSet
    real: FeatureSet | None
    statistics: Statistics | None
    spare: FeatureSet | None
    about: dict[str, Any]
    memo: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def radii(self, k: int) -> np.ndarray:
        """Of the balls about the data, see `metrics.manifold`; kept with their features."""
        assert self.real is not None
        rows = self.real.rows
        if ("radii", k) not in self.memo:
            self.memo["radii", k] = rows.kept(f"radii_{k}", lambda: radii(rows, k))
        return self.memo["radii", k]


def comparison(subject: Subject, settings: Settings) -> Comparison:
    """Draws the samples and computes the features, or takes those there are.

    Raises:
        InputError: features or a reference that cannot be, or do not go together.
        Unfinished: a signal came; what is on disk stays.
    """
    if ("comparison", settings) not in subject.memo:
        subject.memo["comparison", settings] = _compare(subject, settings)
    return subject.memo["comparison", settings]


def features_of(subject: Subject, settings: Settings) -> Features:
    """Those of the settings; of a name the same ones each time."""
    name = settings.features
    if not isinstance(name, str):
        return name
    if ("features", name) not in subject.memo:
        subject.memo["features", name] = load_features(name, subject.task.event_shape)
    return subject.memo["features", name]


def parts_of(subject: Subject) -> dict[str, Any]:
    """The data "train" and "test"; None where there are none."""
    if "parts" not in subject.memo:
        others = None if subject.others is None else subject.others()
        first, second = ("test", "train") if subject.held_out else ("train", "test")
        subject.memo["parts"] = {first: subject.data, second: others}
    return subject.memo["parts"]


def _compare(subject: Subject, settings: Settings) -> Comparison:
    features = features_of(subject, settings)
    reference = None
    if settings.reference is not None:
        reference = read_statistics(settings.reference, preprocessing=settings.preprocessing)
        check_same(reference.convention, features.convention, f"the statistics in {settings.reference}")
    samples = generate(subject, settings)
    extractor = extractor_of(features, subject.mesh)
    generated = _features_of_samples(samples, extractor, subject, settings)
    parts = parts_of(subject)
    data, spare = parts[settings.against], parts["test" if settings.against == "train" else "train"]
    about = {"features": str(features.convention), "num": samples.num, "nfe": evaluations(samples)}
    about |= {"seconds_per_sample": seconds_per_sample(samples), "sampling": samples.about}
    statistics = real = None
    if reference is not None:
        statistics = reference.statistics
        spare = data if spare is None else spare
        about["data"] = reference.about | {"num": statistics.num}
    elif data is not None:
        real = real_features(data, extractor, subject)
        statistics = metrics.statistics(iter(real.rows))
        about["data"] = {"name": data.name, "split": settings.against, "num": real.rows.num_examples}
    floor = None
    if spare is not None and spare.num_examples > 1:
        floor = real_features(spare, extractor, subject, limit=samples.num)
        about["floor"] = {"name": spare.name, "num": floor.rows.num_examples}
    return Comparison(features, samples, generated, real, statistics, floor, about)


def generate(subject: Subject, settings: Settings) -> Chunks:
    """`settings.num` samples by the subject's plan, each of its own index; on disk where a folder is given.

    `batch_size` is of each device here: so its program is the same on any number of devices, and the samples have the
    same bits.

    Raises:
        Unfinished: a signal came; the pieces on disk stay, and the same call goes on from them.
    """
    num = settings.num or subject.num
    batch_size = subject.mesh.size * min(settings.batch_size or min(subject.batch_size, PER_DEVICE), num)
    memo = ("samples", num, settings.seed, settings.folder)
    if memo in subject.memo:
        return subject.memo[memo]

    if ("sampler", batch_size) not in subject.programs:
        made = sampler_of(subject.task, subject.plan, subject.mesh, subject.places, batch_size)
        subject.programs["sampler", batch_size] = made
    sampler = subject.programs["sampler", batch_size]
    key = sh.replicate(jax.random.key(settings.seed), subject.mesh)
    about = {"plan": dataclasses.asdict(subject.plan), "seed": settings.seed, **subject.identity}
    if settings.folder is not None:
        about["digest"] = digest(subject.variables)
    if getattr(subject.task, "num_classes", None) is not None:
        about["labels"] = "drawn evenly by the model"

    def make(first: int, count: int) -> tuple[np.ndarray, dict[str, Any]]:
        done: list[tuple[int, float]] = []
        drawn = sampler(
            subject.variables, key, count, first=first, progress=lambda n: done.append((n, time.perf_counter()))
        )
        assert drawn is not None
        notes: dict[str, Any] = {"nfe": drawn[1]}
        if len(done) > 1:  # the first batch waits for the compiler
            notes["seconds_per_sample"] = (done[-1][1] - done[0][1]) / (done[-1][0] - done[0][0])
        return pictures.to_arrays(drawn[0], subject.task.discrete, subject.task.centered), notes

    folder = None if settings.folder is None else settings.folder / "samples"
    size = chunk_size(num, sampler.batch_size)
    samples = Chunks(folder, about, size)
    if not samples.fill(num, make, subject.progress(num, " samples"), subject.stop, at_once=size):
        raise Unfinished(f"stopped; the samples so far are in {folder}, and the same command goes on from them")
    subject.memo[memo] = samples
    return samples


def evaluations(samples: Chunks) -> int:
    """Network evaluations that a sample took, the most of any."""
    return max(notes["nfe"] for notes in samples.notes())


def seconds_per_sample(samples: Chunks) -> float | None:
    """How long a sample took, the compilation left out; None where all were one batch."""
    found = [notes["seconds_per_sample"] for notes in samples.notes() if "seconds_per_sample" in notes]
    return float(np.mean(found)) if found else None


def real_features(dataset: Any, extractor: Extractor, subject: Subject, *, limit: int | None = None) -> FeatureSet:
    """Features of the examples of a data set, all or the first `limit` in a fixed random order, kept in the cache.

    Every example counts: the last batch is filled up, and what fills it is left out.
    """
    features, num = extractor.features, dataset.num_examples
    order = some(dataset, limit)
    looked_at = np.unique(np.linspace(0, num - 1, min(num, 256)).astype(int))
    contents = hashlib.sha256(np.ascontiguousarray(dataset.read(looked_at)["x"]).tobytes()).hexdigest()[:12]
    about = {
        "features": str(features.convention), "parameters": features.digest, "data": dataset.name,
        "num": num, "taken": len(order), "contents": contents,
    }  # fmt: skip
    name = hashlib.sha256(repr(sorted(about.items())).encode()).hexdigest()[:16]
    folder = None if features.convention.network == "pixels" else cache_folder() / "features" / name
    words = f"features of {dataset.name}"
    found = Chunks(folder, about, 1000)
    return _extract(found, extractor, lambda i: dataset.read(order[i])["x"], len(order), len(order), words, subject)


def _features_of_samples(samples: Chunks, extractor: Extractor, subject: Subject, settings: Settings) -> FeatureSet:
    convention = extractor.features.convention
    about = {"features": str(convention), "parameters": extractor.features.digest, "of": samples.about}
    name = "features_" + re.sub(r"[^A-Za-z0-9.-]+", "_", str(convention))
    folder = None if settings.folder is None else settings.folder / name
    found = Chunks(folder, about, samples.size)
    words = "features of the samples"
    return _extract(found, extractor, lambda i: samples.read(i)["x"], samples.num, samples.capacity, words, subject)


def _extract(
    found: Chunks, extractor: Extractor, read: Callable, num: int, there: int, words: str, subject: Subject
) -> FeatureSet:
    """Features of `num` images that are read by their places, each row followed by the logits where there are any.

    Pieces on disk are whole: filled from the images beyond `num`, of which `there` can be read in all, or with zeros.
    """
    dim = extractor.features.dim

    def make(first: int, count: int) -> tuple[np.ndarray, dict[str, Any]]:
        features, logits = extractor(read(np.arange(first, min(first + count, there))))
        row = features if logits is None else np.concatenate([features, logits.astype(np.float32)], axis=1)
        return np.pad(row, ((0, count - len(row)), (0, 0))), {}

    if not found.fill(num, make, subject.progress(num, f" {words}"), subject.stop, at_once=1000):
        raise Unfinished("stopped while features were computed; the same command goes on from there")
    wide = found.shape[0]
    return FeatureSet(Columns(found, 0, dim), Columns(found, dim, wide) if wide > dim else None)
