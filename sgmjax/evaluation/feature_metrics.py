"""FID, KID, Inception score, precision and recall, density and coverage, MIND, class balance, memorisation: by name.

Each is a function of a `Subject` and `Settings`, and stands in `METRICS`. The number of a set of
real examples, of as many as there are samples where there are as many, stands beside each: its floor.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from sgmjax import metrics
from sgmjax._inputs import InputError
from sgmjax.evaluation.compare import Comparison, FeatureSet, comparison, features_of, parts_of
from sgmjax.evaluation.features import Features
from sgmjax.evaluation.statistics_file import INCEPTION
from sgmjax.evaluation.subject import Measured, Metric, Settings, Subject

Scored = tuple[dict[str, float], dict[str, Any]]  # numbers by the ends of their names, and the settings that were used
Score = Callable[[FeatureSet, Comparison, Settings], Scored]


def check(name: str, settings: Settings, task: Any) -> None:
    """Raises InputError, before the work, for settings with which a metric of this task's samples says nothing."""
    if settings.reference is not None and name not in ("fid", "fd", "is"):
        raise InputError(f"{name} needs the features of the data, and a file of statistics has none; leave it out")
    if name == "memorisation" and settings.against != "train":
        raise InputError("memorisation compares samples and held-out data with the training data; use against='train'")
    if name == "fid" and isinstance(settings.features, Features):
        network = settings.features.convention.network
        if network != INCEPTION:
            raise InputError(f"fid is of the published Inception features, and these are {network}; use fd")
    if isinstance(settings.features, Features):
        _check_features(name, settings.features, task)


def check_number(name: str, settings: Settings, num: int) -> None:
    """Raises InputError, before the work, where a metric needs more samples than these."""
    if name in _K and num <= (k := _k(name, settings)):
        raise InputError(
            f"{name} looks for the {k} nearest of the other samples, and there are {num} in all; give more"
        )


def needed(name: str, settings: Settings) -> tuple[str, ...]:
    """The parts of the data, "train" and "test", that a metric cannot do without; its floor may need another one."""
    if name == "memorisation":
        return "train", "test"
    return () if name == "is" or settings.reference is not None else (settings.against,)


def _check_features(name: str, features: Features, task: Any) -> None:
    if features.discrete and not task.discrete:
        raise InputError(
            f"features {features.name!r} are of 8-bit images, and examples of this run are floats; use features "
            "'pixels', or data of uint8"
        )
    if name in ("is", "balance") and not features.has_classes(task.event_shape, task.discrete):
        raise InputError(f"{name} needs a classifier, and features {features.name!r} have no classes")


_K = {"pr": 3, "dc": 5}  # neighbours, as published


def _k(name: str, settings: Settings) -> int:
    return settings.k or _K[name]


def memorisation(subject: Subject, settings: Settings) -> Measured:
    """Distances to the nearest training example in features, of samples against held-out data."""
    found = _comparison("memorisation", subject, settings)
    assert found.real is not None and found.spare is not None
    far = [metrics.nearest(one.rows, found.real.rows).distances[:, 0] for one in (found.generated, found.spare)]
    result = metrics.memorisation(*far)
    lines = [
        f"distance to the nearest training example in features, median: {result.sample_median:.4g} of the samples, "
        f"{result.held_out_median:.4g} of held-out data, ratio {result.median_ratio:.3f}; nearer than 1% of the "
        f"held-out data are: {100 * result.share_below:.2f}% +- {100 * result.share_error:.2f}% of the samples"
    ]
    numbers = {"memorisation_ratio": result.median_ratio, "memorisation_share": result.share_below}
    return Measured(numbers, lines, found.about | {"results": vars(result)})


# ---------------------------------------------------------------------------------------------------------------- parts
def _frechet(one: FeatureSet, found: Comparison, settings: Settings) -> Scored:
    assert found.statistics is not None
    return {"": metrics.frechet_distance(metrics.statistics(iter(one.rows)), found.statistics)}, {}


def _kid(one: FeatureSet, found: Comparison, settings: Settings) -> Scored:
    assert found.real is not None
    size = min(settings.subset_size, one.rows.num_examples, found.real.rows.num_examples)
    value = metrics.kid(one.rows, found.real.rows, num_subsets=settings.subsets, subset_size=size)
    return {"": value.mean, "_std": value.spread}, {"subsets": settings.subsets, "subset_size": size}


def _inception_score(one: FeatureSet, found: Comparison, settings: Settings) -> Scored:
    assert one.logits is not None
    logits = np.concatenate(list(one.logits))
    splits = min(settings.splits, len(logits))
    value = metrics.inception_score(logits, splits=splits)
    return {"": value.mean, "_std": value.std}, {"splits": splits}


def _balance(one: FeatureSet, found: Comparison, settings: Settings) -> Scored:
    """Of the classes that the features' network sees: the total variation distance of their shares to those of the
    data, and the share of the one that is rarest beside its share of the data."""
    assert found.real is not None and one.logits is not None and found.real.logits is not None
    classes = found.real.logits.shape[0]
    shares, real = (_shares(each.logits, classes) for each in (one, found.real))
    rarest = float(np.min(shares[real > 0] / real[real > 0]))
    return {"": 0.5 * float(np.abs(shares - real).sum()), "_rarest": rarest}, {}


def _shares(logits: Any, classes: int) -> np.ndarray:
    seen = np.concatenate([np.argmax(piece, axis=-1) for piece in logits])
    return np.bincount(seen, minlength=classes) / len(seen)


def _pr(one: FeatureSet, found: Comparison, settings: Settings) -> Scored:
    assert found.real is not None
    k = _k("pr", settings)
    value = metrics.precision_recall(one.rows, found.real.rows, k=k, real_radii=found.radii(k))
    return {"_precision": value.precision, "_recall": value.recall}, {"k": k}


def _dc(one: FeatureSet, found: Comparison, settings: Settings) -> Scored:
    assert found.real is not None
    k = _k("dc", settings)
    value = metrics.density_coverage(one.rows, found.real.rows, k=k, real_radii=found.radii(k))
    return {"_density": value.density, "_coverage": value.coverage}, {"k": k}


def _mind(one: FeatureSet, found: Comparison, settings: Settings) -> Scored:
    assert found.real is not None
    value = metrics.monge_inception_distance(one.rows, found.real.rows, seed=settings.seed)
    return {"": value}, {"seed": settings.seed}


def _comparison(name: str, subject: Subject, settings: Settings) -> Comparison:
    check(name, dataclasses.replace(settings, features=features_of(subject, settings)), subject.task)
    check_number(name, settings, settings.num or subject.num)
    for part in needed(name, settings):
        if parts_of(subject)[part] is None:
            fix = (
                "it needs both parts"
                if name == "memorisation"
                else "give them, or compare with the other part (against)"
            )
            raise InputError(f"{name}: there are no {part} data here; {fix}")
    return comparison(subject, settings)


def _measure(name: str, words: str, score: Score, subject: Subject, settings: Settings) -> Measured:
    """A score of the samples, and of the spare real examples beside it."""
    found = _comparison(name, subject, settings)
    values, used = score(found.generated, found, settings)
    enough = found.spare is not None and found.spare.rows.num_examples > (_k(name, settings) if name in _K else 1)
    floor, of_floor = score(found.spare, found, settings) if found.spare is not None and enough else ({}, used)
    about: dict[str, Any] = dict(found.about)
    if of_floor != used:  # fewer spare examples than samples
        about["floor"] = about["floor"] | {"settings": of_floor}
    against = ""
    if name != "is":
        data = about["data"]
        which = f"{data['num']} {data['split']} images" if "split" in data else f"the statistics of {data['file']}"
        against = f" against {which}"
    line = f"{words} ({about['features']}): {_shown(values)} of {about['num']} samples{against}, NFE {about['nfe']}"
    if floor:
        line += f"; {_shown(floor)} of {about['floor']['num']} real images of the other part"
    results = {f"{name}{key}": value for key, value in values.items()}
    results |= {f"{name}{key}_floor": value for key, value in floor.items()}
    record = about | {"results": results, "settings": used}
    return Measured(results, [line], record)


def _shown(values: dict[str, float]) -> str:
    std = values.get("_std")
    parts = [f"{key.lstrip('_')} {value:.4f}".strip() for key, value in values.items() if key != "_std"]
    return ", ".join(parts) + ("" if std is None else f" +- {std:.4f}")


_SCORES: dict[str, tuple[str, Score]] = {
    "fid": ("FID", _frechet),  # of the published Inception features; of others it is
    "fd": ("Frechet distance", _frechet),
    "kid": ("KID", _kid),
    "is": ("Inception score", _inception_score),
    "pr": ("precision and recall", _pr),
    "dc": ("density and coverage", _dc),
    "mind": ("MIND", _mind),
    "balance": ("class balance", _balance),
}
METRICS: dict[str, Metric] = {name: functools.partial(_measure, name, *score) for name, score in _SCORES.items()}
METRICS["memorisation"] = memorisation
