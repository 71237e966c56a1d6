"""Samples on disk: grids of images, scatter plots of 2-D sets, lines of signals, and the arrays themselves."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from sgmjax._files import replacing
from sgmjax._inputs import InputError


def to_arrays(x: np.ndarray, discrete: bool, centered: bool) -> np.ndarray:
    """What is saved for samples (num, *event) in the network's range: uint8 levels if `discrete`, else float32."""
    x = np.asarray(x, np.float32)
    return to_levels(x, -1.0 if centered else 0.0, 1.0) if discrete else x


def to_levels(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Floats as uint8, `low` as 0 and `high` as 255; values outside are clipped."""
    unit = (x - low) / max(high - low, 1e-12)
    return np.round(np.clip(np.nan_to_num(unit), 0, 1) * 255).astype(np.uint8)


def astray(x: np.ndarray, discrete: bool, centered: bool) -> tuple[int, int]:
    """How many samples are not finite; of images also, how many are further off than a range beyond that of images.

    Samplers that have not converged leave them: the picture, which is cut off, does not show by how much.
    """
    flat = x.reshape(len(x), -1)
    finite = np.isfinite(flat).all(axis=1)
    if not discrete:
        return int(np.sum(~finite)), 0
    middle, half = (0.0, 1.0) if centered else (0.5, 0.5)
    far = np.max(np.abs(flat[finite] - middle), axis=1, initial=0.0) > 3 * half
    return int(np.sum(~finite)), int(np.sum(far))


def picture(samples: np.ndarray, limit: int = 100, columns: int | None = None, *, centered: bool = True) -> np.ndarray:
    """One picture of many samples, uint8 (H, W, 3).

    Args:
        samples: from `to_arrays`. Images are laid out in a grid, small ones enlarged by a whole factor, of volumes the
            middle slice; of vectors the first two coordinates are plotted, signals as lines.
        limit: images shown; vectors are shown all, of signals at most 25.
        columns: of the grid; None: about as many as rows.
        centered: whether images of floats are in [-1, 1], else in [0, 1]. Volumes of floats go from their least value
            to their largest.
    """
    if samples.ndim == 2:
        return _scatter(samples)
    if samples.ndim == 3:
        return _lines(samples[: min(limit, 25)])
    shown = samples[:limit]
    low, high = -1.0 if centered else 0.0, 1.0
    if samples.ndim == 5:
        shown = shown[:, shown.shape[1] // 2]
        low, high = float(np.min(shown)), float(np.max(shown))
    return _grid(shown if shown.dtype == np.uint8 else to_levels(shown, low, high), columns)


def check(event_shape: tuple[int, ...]) -> None:
    """Checks that examples of this shape can be shown.

    Raises:
        InputError: what is missing is not installed.
    """
    if len(event_shape) < 3:
        _figure(1, 1)


def _grid(images: np.ndarray, columns: int | None) -> np.ndarray:
    num, height, width, channels = images.shape
    zoom = max(1, 64 // max(height, width))
    columns = math.ceil(math.sqrt(num)) if columns is None else columns
    rows = math.ceil(num / columns)
    gap = 2
    canvas = np.full((rows * (height * zoom + gap) + gap, columns * (width * zoom + gap) + gap, 3), 127, np.uint8)
    for i, image in enumerate(images):
        rgb = image if channels == 3 else np.repeat(image[..., :1], 3, axis=-1)
        top = gap + (i // columns) * (height * zoom + gap)
        left = gap + (i % columns) * (width * zoom + gap)
        canvas[top : top + height * zoom, left : left + width * zoom] = rgb.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return canvas


def _scatter(points: np.ndarray) -> np.ndarray:
    figure = _figure(5, 5)
    axes = figure.add_subplot()
    second = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    axes.scatter(points[:, 0], second, s=4, alpha=0.4, linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    return _drawn(figure)


def _lines(signals: np.ndarray) -> np.ndarray:
    """A panel for each signal (T, C), a line for each of its channels, all with one scale."""
    columns = math.ceil(math.sqrt(len(signals)))
    rows = math.ceil(len(signals) / columns)
    figure = _figure(1 + 2 * columns, 0.5 + 1.2 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, signal in zip(panels, signals, strict=False):
        panel.plot(signal, linewidth=0.8)
    for panel in panels[len(signals) :]:
        panel.axis("off")
    return _drawn(figure)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # no pyplot: no global state, no display
    except ImportError:
        raise InputError("pictures of vectors and signals need matplotlib: pip install 'sgmjax[plot]'") from None

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save_picture(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) as PNG, in one move so that no half-written file is ever seen."""
    from PIL import Image

    with replacing(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def save_arrays(path: str | os.PathLike, **arrays: Any) -> None:
    """Writes an .npz in one move."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
