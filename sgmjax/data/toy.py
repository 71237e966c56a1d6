"""Two-dimensional data sets, generated.

All are written so that each coordinate has a standard deviation near 1 (0.6 to 1.1) and mean near 0 by construction,
not by normalising the draws: the law is the same for every number of samples. Where a set is a mixture, the label is
the component.

| name | law | labels |
| --- | --- | --- |
| `ring` | eight Gaussians of std 0.17 on a circle of radius 1.5 | 8 |
| `gaussian_grid` | 3 x 3 Gaussians of std 0.1, means 1.2 apart | 9 |
| `diamond` | 3 x 3 Gaussians of std 0.04, means 0.5 apart, turned by 45 degrees (Dockhorn et al. 2022) | 9 |
| `multimodal_swiss_roll` | five small rolls, one in the middle, four at (+-0.8, +-0.8) (Dockhorn et al. 2022) | 5 |
| `swiss_roll` | one roll, noise 0.05 | - |
| `spiral` | two interleaved arms, noise 0.05 | 2 |
| `moons` | two interleaved half circles, noise 0.1 | 2 |
| `circles` | two circles of radius 0.8 and 1.6, noise 0.08 | 2 |
| `pinwheel` | five bent arms | 5 |
| `checkerboard` | uniform on the eight dark squares of a 4 x 4 board, [-2, 2]^2 | - |

`diamond` and `multimodal_swiss_roll` keep their published scale (std 0.41 and 0.72).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from sgmjax._ranges import check_memory
from sgmjax.data.base import DataError
from sgmjax.data.memory import ArrayDataset

_Draw = tuple[np.ndarray, np.ndarray | None]  # (n, 2) float64 and (n,) component


def _gaussians(rng: np.random.Generator, num: int, means: np.ndarray, std: float) -> _Draw:
    label = rng.integers(0, len(means), num)
    return means[label] + std * rng.standard_normal((num, 2)), label


def _grid(spacing: float) -> np.ndarray:
    ticks = spacing * np.array([-1.0, 0.0, 1.0])
    return np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(9, 2)


def _circle(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _roll(rng: np.random.Generator, num: int) -> np.ndarray:
    """The curve (a cos a, a sin a), a uniform in [1.5 pi, 4.5 pi]: radius 4.7 to 14.1."""
    angle = rng.uniform(1.5 * np.pi, 4.5 * np.pi, (num, 1))
    return angle * _circle(angle[:, 0])


def _ring(rng: np.random.Generator, num: int) -> _Draw:
    return _gaussians(rng, num, 1.5 * _circle(np.arange(8) * np.pi / 4), 0.17)


def _gaussian_grid(rng: np.random.Generator, num: int) -> _Draw:
    return _gaussians(rng, num, _grid(1.2), 0.1)


def _diamond(rng: np.random.Generator, num: int) -> _Draw:
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2.0)
    return _gaussians(rng, num, _grid(0.5) @ turn, 0.04)


def _multimodal_swiss_roll(rng: np.random.Generator, num: int) -> _Draw:
    centres = 0.8 * np.array([[0.0, 0.0], [1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
    label = rng.integers(0, 5, num)
    roll = _roll(rng, num) + 0.2 * rng.standard_normal((num, 2))
    return centres[label] + 0.01 * roll, label


def _swiss_roll(rng: np.random.Generator, num: int) -> _Draw:
    return _roll(rng, num) / 7.0 + 0.05 * rng.standard_normal((num, 2)), None


def _spiral(rng: np.random.Generator, num: int) -> _Draw:
    label = rng.integers(0, 2, num)
    turns = np.sqrt(rng.uniform(0.0, 1.0, num))  # uniform along the arm, nearly
    arm = 2.0 * turns[:, None] * _circle(3.0 * np.pi * turns + np.pi * label)
    return arm + 0.05 * rng.standard_normal((num, 2)), label


def _moons(rng: np.random.Generator, num: int) -> _Draw:
    label = rng.integers(0, 2, num)
    angle = rng.uniform(0.0, np.pi, num)
    upper = _circle(angle) - np.array([0.5, 0.25])
    moon = np.where(label[:, None] == 0, upper, -upper)
    return 1.3 * moon + 0.1 * rng.standard_normal((num, 2)), label


def _circles(rng: np.random.Generator, num: int) -> _Draw:
    label = rng.integers(0, 2, num)
    points = 0.8 * (1 + label[:, None]) * _circle(rng.uniform(0.0, 2.0 * np.pi, num))
    return points + 0.08 * rng.standard_normal((num, 2)), label


def _pinwheel(rng: np.random.Generator, num: int) -> _Draw:
    label = rng.integers(0, 5, num)
    radius = 1.0 + 0.3 * rng.standard_normal(num)
    across = 0.1 * rng.standard_normal(num)
    angle = 0.4 * np.pi * label + 0.25 * np.exp(radius)
    cos, sin = np.cos(angle), np.sin(angle)
    return 1.3 * np.stack([radius * cos - across * sin, radius * sin + across * cos], axis=-1), label


def _checkerboard(rng: np.random.Generator, num: int) -> _Draw:
    column = rng.integers(0, 4, num)
    row = 2 * rng.integers(0, 2, num) + column % 2
    return np.stack([column, row], axis=-1) + rng.uniform(0.0, 1.0, (num, 2)) - 2.0, None


_SETS: dict[str, tuple[Callable[[np.random.Generator, int], _Draw], int | None]] = {
    "ring": (_ring, 8),
    "gaussian_grid": (_gaussian_grid, 9),
    "diamond": (_diamond, 9),
    "multimodal_swiss_roll": (_multimodal_swiss_roll, 5),
    "swiss_roll": (_swiss_roll, None),
    "spiral": (_spiral, 2),
    "moons": (_moons, 2),
    "circles": (_circles, 2),
    "pinwheel": (_pinwheel, 5),
    "checkerboard": (_checkerboard, None),
}

NAMES = tuple(_SETS)


def sample(name: str, num: int, *, seed: int = 0, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Independent draws of a set.

    Args:
        name: one of `NAMES`.
        num: how many.
        seed: non-negative.
        split: `train` and `eval` are separate random streams: no point is in both.

    Returns:
        `(num, 2)` float32 points and `(num,)` int32 components (0 where the set has none).

    Raises:
        DataError: for an unknown name or split, or num < 1.

    Examples:
        >>> x, label = data.toy.sample("pinwheel", 100, seed=1)
        >>> x.shape, label.shape
        ((100, 2), (100,))
    """
    if name not in _SETS:
        raise DataError(f"there is no 2-D data set {name!r}; there are {', '.join(NAMES)}")
    if split not in ("train", "eval"):
        raise DataError(f"2-D data sets have the splits 'train' and 'eval', not {split!r}")
    if num < 1:
        raise DataError(f"data.num_samples must be at least 1, got {num}")
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), int(split == "eval")))
    x, label = _SETS[name][0](rng, num)
    label = np.zeros(num) if label is None else label
    return x.astype(np.float32), label.astype(np.int32)


def load(name: str, split: str, *, num_samples: int = 50_000, seed: int = 0) -> ArrayDataset:
    """A generated set of `num_samples` points to train on, or a fifth as many (at least one) to evaluate on.

    Examples:
        >>> held_out = data.toy.load("ring", "eval", num_samples=100)
        >>> held_out.num_examples, held_out.shape, held_out.num_classes
        (20, (2,), 8)
    """
    num = num_samples if split == "train" else max(1, num_samples // 5)
    check_memory("data.num_samples", num, (2,), itemsize=64, fix="give fewer")  # double precision, and copies
    x, label = sample(name, num if num_samples >= 1 else num_samples, seed=seed, split=split)
    classes = _SETS[name][1]
    return ArrayDataset(f"{name} ({split})", x, None if classes is None else label, num_classes=classes)
