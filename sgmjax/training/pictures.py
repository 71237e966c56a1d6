"""Samples on disk: grids of images, scatter plots of 2-D sets, and the arrays themselves."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from sgmjax._inputs import replacing


def to_arrays(x: np.ndarray, is_image: bool, centered: bool) -> np.ndarray:
    """What is saved for samples in the network's range: uint8 (num, H, W, C) for images, else float32 (num, D)."""
    x = np.asarray(x, np.float32)
    if not is_image:
        return x
    unit = (x + 1) / 2 if centered else x
    return np.round(np.clip(np.nan_to_num(unit), 0, 1) * 255).astype(np.uint8)


def picture(samples: np.ndarray, limit: int = 100, columns: int | None = None) -> np.ndarray:
    """One picture of many samples, uint8 (H, W, 3).

    Args:
        samples: from `to_arrays`. Images are laid out in a grid, small ones enlarged by a whole factor; of vectors the
            first two coordinates are plotted.
        limit: images shown; vectors are shown all.
        columns: of the grid; None: about as many as rows.
    """
    return _grid(samples[:limit], columns) if samples.ndim == 4 else _scatter(samples)


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    second = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    axes.scatter(points[:, 0], second, s=4, alpha=0.4, linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_picture(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) as PNG, in one move so that no half-written file is ever seen."""
    from PIL import Image

    with replacing(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def save_arrays(path: str | os.PathLike, **arrays: Any) -> None:
    """Writes an .npz in one move."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
