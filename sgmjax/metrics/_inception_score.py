"""The Inception score: how sure a classifier is of each image, and how different the images are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sgmjax._inputs import InputError


class InceptionScore(NamedTuple):
    """Mean and standard deviation (divided by the number of splits) over splits, and the score of each."""

    mean: float
    std: float
    values: np.ndarray


def inception_score(logits: np.ndarray, *, splits: int = 10, seed: int | None = None) -> InceptionScore:
    """`exp(E_x KL(p(y | x), p(y)))` of consecutive parts of the images, from 1 to the number of classes.

    It says nothing about the data: a model that draws one perfect image of each class has the largest score.

    Args:
        logits: `(n, classes)`, of all classes of the network. Published scores leave out the bias of the last layer
            (`logits_unbiased`).
        splits: parts, each of which is scored by itself: rows `i n // splits` to `(i + 1) n // splits`.
        seed: of a permutation before that, as torch-fidelity does with 2020; None: the order as it is.

    Raises:
        ValueError: for fewer images than splits, or logits that are not finite.

    Reference: Salimans et al. 2016, section 4.

    Examples:
        >>> logits = 100.0 * np.eye(4)  # sure of each of four images, and sees four classes
        >>> round(metrics.inception_score(logits, splits=1).mean, 3)
        4.0
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not logits.size:
        raise InputError(f"expected logits (n, classes), got {logits.shape}")
    if not np.isfinite(logits).all():
        raise InputError("the logits hold NaN or infinities")
    num = len(logits)
    if not 1 <= splits <= num:
        raise InputError(f"splits = {splits}: must be from 1 to the {num} images")
    if seed is not None:
        logits = logits[np.random.RandomState(seed).permutation(num)]
    parts = [logits[i * num // splits : (i + 1) * num // splits] for i in range(splits)]
    values = np.array([_score(part) for part in parts])
    return InceptionScore(float(values.mean()), float(values.std()), values)


def _score(logits: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - np.log(marginal)), 0.0)  # 0 log 0 = 0
    return float(np.exp(terms.sum(axis=1).mean()))
