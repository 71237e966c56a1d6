"""FID, KID, Inception score, precision and recall, density and coverage, MIND, memorisation: by name.

Each is a function of a `Subject` and `Settings`, and stands in `evaluation.metrics.METRICS`. The number of a set of
real examples, of as many as there are samples where there are as many, stands beside each: its floor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from sgmjax import metrics
from sgmjax._inputs import InputError
from sgmjax.evaluation.compare import Comparison, FeatureSet, comparison
from sgmjax.evaluation.features import Features
from sgmjax.evaluation.statistics_file import INCEPTION
from sgmjax.evaluation.subject import Measured, Settings, Subject

Score = Callable[[FeatureSet, Comparison, Settings], dict[str, float]]


def check(name: str, settings: Settings) -> None:
    """Raises InputError, before the work, for settings with which a metric says nothing."""
    if settings.reference is not None and name not in ("fid", "fd", "is"):
        raise InputError(f"{name} needs the features of the data, and a file of statistics has none; leave it out")
    if name == "memorisation" and settings.against != "train":
        raise InputError("memorisation compares samples and held-out data with the training data; use against='train'")
    if name == "fid" and isinstance(settings.features, Features):
        network = settings.features.convention.network
        if network != INCEPTION:
            raise InputError(f"fid is of the published Inception features, and these are {network}; use fd")


def fid(subject: Subject, settings: Settings) -> Measured:
    """The Frechet Inception distance; of any other features it is `fd`."""
    found = _comparison("fid", subject, settings)
    return _measured("fid", "FID", found, settings, _frechet)


def fd(subject: Subject, settings: Settings) -> Measured:
    """The Frechet distance in any features."""
    found = _comparison("fd", subject, settings)
    return _measured("fd", "Frechet distance", found, settings, _frechet)


def kid(subject: Subject, settings: Settings) -> Measured:
    """The kernel distance, mean and standard deviation over subsets."""
    return _measured("kid", "KID", _comparison("kid", subject, settings), settings, _kid)


def inception_score(subject: Subject, settings: Settings) -> Measured:
    """The Inception score, in the features' own classes."""
    found = _comparison("is", subject, settings)
    if found.generated.logits is None:
        raise InputError(f"is needs a classifier, and features {found.features.name!r} have no classes")
    return _measured("is", "Inception score", found, settings, _inception_score)


def pr(subject: Subject, settings: Settings) -> Measured:
    """Precision and recall."""
    return _measured("pr", "precision and recall", _comparison("pr", subject, settings), settings, _pr)


def dc(subject: Subject, settings: Settings) -> Measured:
    """Density and coverage."""
    return _measured("dc", "density and coverage", _comparison("dc", subject, settings), settings, _dc)


def mind(subject: Subject, settings: Settings) -> Measured:
    """The Monge Inception distance."""
    return _measured("mind", "MIND", _comparison("mind", subject, settings), settings, _mind)


def memorisation(subject: Subject, settings: Settings) -> Measured:
    """Distances to the nearest training example in features, of samples against held-out data."""
    found = _comparison("memorisation", subject, settings)
    if found.spare is None:
        raise InputError("memorisation compares samples and held-out data with the training data; it needs both parts")
    assert found.real is not None
    far = [_nearest(one, found.real) for one in (found.generated, found.spare)]
    result = metrics.memorisation(*far)
    lines = [
        f"distance to the nearest training example in features, median: {result.sample_median:.4g} of the samples, "
        f"{result.held_out_median:.4g} of held-out data, ratio {result.median_ratio:.3f}; nearer than 1% of the "
        f"held-out data are: {100 * result.share_below:.2f}% +- {100 * result.share_error:.2f}% of the samples"
    ]
    numbers = {"memorisation_ratio": result.median_ratio, "memorisation_share": result.share_below}
    return Measured(numbers, lines, found.about | {"results": vars(result)})


# ---------------------------------------------------------------------------------------------------------------- parts
def _frechet(one: FeatureSet, found: Comparison, settings: Settings) -> dict[str, float]:
    return {"": metrics.frechet_distance(metrics.statistics(iter(one.rows)), found.statistics)}


def _kid(one: FeatureSet, found: Comparison, settings: Settings) -> dict[str, float]:
    assert found.real is not None
    size = min(settings.subset_size, one.rows.num_examples, found.real.rows.num_examples)
    value = metrics.kid(one.rows, found.real.rows, num_subsets=settings.subsets, subset_size=size)
    return {"": value.mean, "_std": value.spread}


def _inception_score(one: FeatureSet, found: Comparison, settings: Settings) -> dict[str, float]:
    assert one.logits is not None
    logits = np.concatenate(list(one.logits))
    value = metrics.inception_score(logits, splits=min(settings.splits, len(logits)))
    return {"": value.mean, "_std": value.std}


def _pr(one: FeatureSet, found: Comparison, settings: Settings) -> dict[str, float]:
    assert found.real is not None
    k = settings.k or 3
    value = metrics.precision_recall(one.rows, found.real.rows, k=k, real_radii=found.radii(k))
    return {"_precision": value.precision, "_recall": value.recall}


def _dc(one: FeatureSet, found: Comparison, settings: Settings) -> dict[str, float]:
    assert found.real is not None
    k = settings.k or 5
    value = metrics.density_coverage(one.rows, found.real.rows, k=k, real_radii=found.radii(k))
    return {"_density": value.density, "_coverage": value.coverage}


def _mind(one: FeatureSet, found: Comparison, settings: Settings) -> dict[str, float]:
    assert found.real is not None
    return {"": metrics.monge_inception_distance(one.rows, found.real.rows, seed=settings.seed)}


def _nearest(one: FeatureSet, real: FeatureSet) -> np.ndarray:
    every = one.rows.read(np.arange(one.rows.num_examples))["x"]
    return metrics.nearest(every, real.rows).distances[:, 0]


def _comparison(name: str, subject: Subject, settings: Settings) -> Comparison:
    check(name, settings)
    found = comparison(subject, settings)
    check(name, dataclasses.replace(settings, features=found.features))
    return found


def _measured(name: str, words: str, found: Comparison, settings: Settings, score: Score) -> Measured:
    """A score of the samples, and of the spare real examples beside it."""
    values = score(found.generated, found, settings)
    floor = {} if found.spare is None else score(found.spare, found, settings)
    about: dict[str, Any] = found.about
    data = about["data"]
    which = f"{data['num']} {data['split']} images" if "split" in data else f"the statistics of {data['file']}"
    against = "" if name == "is" else f" against {which}"
    line = f"{words} ({about['features']}): {_shown(values)} of {about['num']} samples{against}, NFE {about['nfe']}"
    if floor:
        line += f"; {_shown(floor)} of {about['floor']['num']} real images of the other part"
    results = {f"{name}{key}": value for key, value in values.items()}
    results |= {f"{name}{key}_floor": value for key, value in floor.items()}
    used = {
        "k": settings.k,
        "subsets": settings.subsets,
        "subset_size": settings.subset_size,
        "splits": settings.splits,
    }
    record = about | {"results": results, "settings": used}
    return Measured(results, [line], record)


def _shown(values: dict[str, float]) -> str:
    std = values.get("_std")
    parts = [f"{key.lstrip('_')} {value:.4f}".strip() for key, value in values.items() if key != "_std"]
    return ", ".join(parts) + ("" if std is None else f" +- {std:.4f}")
