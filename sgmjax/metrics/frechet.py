"""The Frechet distance between Gaussians fitted to two sets of vectors: FID, on any features.

    d = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

All arithmetic is NumPy in float64. No matrix square root is taken: with `S = A A^T`, A from the eigenvectors of S,
`tr (S_1 S_2)^(1/2) = tr (A_1^T S_2 A_1)^(1/2)` is the sum of the singular values of `A_1^T A_2`. That needs no product
of covariances under a root, is exact to rounding for rank-deficient covariances (fewer examples than dimensions), and
cannot turn complex. Its value is the squared 2-Wasserstein distance of the two Gaussians.

Reference: Dowson & Landau 1982; Heusel et al. 2017, section 3. Covariances are divided by n - 1, as `numpy.cov` does
and with it the published FIDs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Real

from sgmjax._inputs import InputError, check_unmasked
from sgmjax._types import AnyArray


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean `mu` (d,) and covariance `sigma` (d, d), divided by n - 1, of `num` vectors (0 where unknown), float64."""

    mu: np.ndarray
    sigma: np.ndarray
    num: int = 0

    def __post_init__(self):
        mu, sigma = np.asarray(self.mu, np.float64), np.asarray(self.sigma, np.float64)
        if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
            raise InputError(f"mu must be (d,) and sigma (d, d), got {mu.shape} and {sigma.shape}")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise InputError("the mean or the covariance is not finite: the features hold NaN or infinities")
        object.__setattr__(self, "mu", mu)
        object.__setattr__(self, "sigma", sigma)


class Moments:
    """Mean and covariance of vectors that come in chunks, in one pass.

    Chunks and accumulators are merged by the pairwise update of Chan, Golub & LeVeque 1983: the scatter matrix is
    always taken about a mean, so nothing cancels when the mean is large against the spread. Any chunk size is right,
    one vector included; the result does not depend on the chunking beyond rounding.

    Attributes:
        num: vectors seen.
        mean: `(d,)` float64.
        scatter: `(d, d)` float64, the sum of `(x - mean) (x - mean)^T`.
    """

    def __init__(self, dim: int):
        self.num = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))

    def update(self, x: Real[AnyArray, " n ..."]) -> Moments:
        """Adds a chunk `(n, ...)`, flattened to vectors; n may be 0. Returns itself.

        Raises:
            ValueError: if the vectors have another length, or hold NaN or infinities.
        """
        vectors = np.asarray(x)
        vectors = vectors.reshape(len(vectors), int(np.prod(vectors.shape[1:]))).astype(np.float64)
        if vectors.shape[1] != self.mean.size:
            raise InputError(f"expected vectors of length {self.mean.size}, got {vectors.shape[1]}")
        if not len(vectors):
            return self
        if not np.isfinite(vectors).all():
            raise InputError("the features hold NaN or infinities")
        mean = vectors.mean(axis=0)
        vectors -= mean
        return self._merge(len(vectors), mean, vectors.T @ vectors)

    def merge(self, other: Moments) -> Moments:
        """Adds what another accumulator has seen, such as that of another process. Returns itself."""
        if other.mean.size != self.mean.size:
            raise InputError(f"cannot merge moments of dimension {other.mean.size} into {self.mean.size}")
        return self._merge(other.num, other.mean, other.scatter)

    def _merge(self, num: int, mean: np.ndarray, scatter: np.ndarray) -> Moments:
        if num:
            total = self.num + num
            delta = mean - self.mean
            self.mean = self.mean + delta * (num / total)
            self.scatter = self.scatter + scatter + np.outer(delta, delta) * (self.num * num / total)
            self.num = total
        return self

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance.

        Raises:
            ValueError: with fewer than two vectors, for which there is no covariance.
        """
        if self.num < 2:
            raise InputError(f"a covariance needs at least 2 vectors, got {self.num}")
        return Statistics(self.mean, self.scatter / (self.num - 1), self.num)


def statistics(chunks: Real[AnyArray, " n ..."] | Iterable[Real[AnyArray, " n ..."]]) -> Statistics:
    """Mean and covariance of an array `(n, ...)`, or of an iterable of such arrays; every example counts.

    Raises:
        ValueError: with fewer than two examples, or different lengths.

    Examples:
        >>> found = metrics.statistics([np.array([[0.0]]), np.array([[2.0]])])  # in two pieces
        >>> found.mu.tolist(), found.sigma.tolist(), found.num
        ([1.0], [[2.0]], 2)
    """
    moments = None
    for chunk in [chunks] if hasattr(chunks, "dtype") else chunks:
        check_unmasked(chunk, "the features")
        chunk = np.asarray(chunk)
        if moments is None:
            moments = Moments(int(np.prod(chunk.shape[1:])))
        moments.update(chunk)
    if moments is None:
        raise InputError("a covariance needs at least 2 vectors, got none")
    return moments.statistics()


def frechet_distance(a: Statistics | Real[AnyArray, "n d"], b: Statistics | Real[AnyArray, "m d"]) -> float:
    """The (squared) Frechet distance of two sets.

    Args:
        a: statistics, or the feature vectors themselves, `(n, d)`, n >= 2.
        b: the same for the other set.

    Returns:
        d >= 0 up to rounding; about -1e-15 times the traces for equal sets.

    Raises:
        ValueError: for different dimensions, or features that are not finite.

    Examples:
        >>> a = metrics.Statistics(np.array([0.0]), np.array([[1.0]]))
        >>> b = metrics.Statistics(np.array([1.0]), np.array([[4.0]]))
        >>> round(metrics.frechet_distance(a, b), 3)  # of N(0, 1) and N(1, 4): (0 - 1)^2 + (1 - 2)^2
        2.0
    """
    (mu_a, root_a), (mu_b, root_b) = _gaussian(a), _gaussian(b)
    if mu_a.size != mu_b.size:
        raise InputError(f"the two sets have dimensions {mu_a.size} and {mu_b.size}")
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    return float(np.sum((mu_a - mu_b) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2.0 * cross)


def _gaussian(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and a root A (d, r) of the covariance, `A A^T = sigma`.

    Of n <= d vectors the centred vectors themselves are a root. Of a covariance it is made of the eigenvectors;
    eigenvalues at the rounding level are dropped: kept, their square roots (1e-8 for a rounding error of 1e-16) would
    add up to the distance.
    """
    if not isinstance(x, Statistics):
        check_unmasked(x, "the features")
        x = np.asarray(x)
        if x.ndim < 2:
            raise InputError(f"expected statistics, or features (n, d), got an array of shape {x.shape}")
        if 2 <= len(x) <= int(np.prod(x.shape[1:])):
            x = x.reshape(len(x), -1).astype(np.float64)
            if not np.isfinite(x).all():
                raise InputError("the features hold NaN or infinities")
            mu = x.mean(axis=0)
            return mu, (x - mu).T / np.sqrt(len(x) - 1)
        x = statistics(x)
    values, vectors = np.linalg.eigh((x.sigma + x.sigma.T) / 2.0)
    rank = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return x.mu, vectors[:, rank] * np.sqrt(values[rank])


def pixel_frechet(
    samples: Real[AnyArray, "n H W C"], real: Real[AnyArray, "m H W C"], *, centered: bool = True
) -> float:
    """The Frechet distance of two sets of images in pixel space, pixels scaled to [0, 1].

    A cheap check that small grey images have the right mean and covariance; it says nothing about FID.

    Args:
        samples: `(n, H, W, C)` uint8, or floats.
        real: `(m, H, W, C)` of the same type.
        centered: whether floats are in [-1, 1], else in [0, 1].

    Raises:
        ValueError: for other dtypes, or images of different shapes.

    Examples:
        >>> black, white = np.full((2, 2, 2, 1), -1.0), np.full((2, 2, 2, 1), 1.0)
        >>> round(metrics.pixel_frechet(black, white), 3)  # 1 for each of four pixels
        4.0
    """
    check_unmasked([samples, real], "images")
    samples, real = np.asarray(samples), np.asarray(real)
    for images in (samples, real):
        if images.dtype not in (np.uint8, np.float32, np.float64) or images.ndim != 4:
            raise InputError(f"expected uint8 images (n, H, W, C), or floats, got {images.dtype} {images.shape}")
    if samples.dtype != real.dtype:
        raise InputError(f"the two sets hold {samples.dtype} and {real.dtype}")
    if samples.shape[1:] != real.shape[1:]:
        raise InputError(f"the two sets hold images of {samples.shape[1:]} and {real.shape[1:]}")
    shift, scale = (0.0, 255.0) if real.dtype == np.uint8 else (1.0, 2.0) if centered else (0.0, 1.0)
    a, b = ((images.reshape(len(images), -1) + shift) / scale for images in (samples, real))
    return frechet_distance(a, b)
