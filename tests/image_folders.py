"""Folders of images for tests, and the settings that read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sgmjax.data import DataSettings


def config(folder, **settings):
    defaults = {
        "name": "folder",
        "data_dir": str(folder),
        "split": "train",
        "eval_split": None,
        "image_size": None,
        "flip": False,
        "range": None,
        "in_memory": None,
        "memory_limit_gb": 2.0,
        "num_samples": 1,
        "binarize": "none",
    }
    return DataSettings(**{**defaults, **settings})


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def colour(value: int, height: int = 6, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)
