"""MNIST's own files as a data set: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and their kin, packed or not.

MNIST, Fashion-MNIST, KMNIST, QMNIST and EMNIST come so. A file begins with two zeros, the type (8: bytes), the number
of axes, and their lengths as big-endian 32-bit numbers; then come the bytes.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sgmjax._files import local_folder, user_path
from sgmjax._inputs import shown
from sgmjax.data.base import DataError

_ALIKE = {"test": ("test", "t10k"), "t10k": ("t10k", "test")}
_ENDINGS = ("-idx{}-ubyte", ".idx{}-ubyte", "-idx{}-ubyte.gz", ".idx{}-ubyte.gz")


class IdxSource:
    """The images of one split. See `source.ImageSource`.

    Args:
        data_dir: the folder of the files.
        split: what a file's name begins with: "train", "test" (t10k), "emnist-letters-train".

    Raises:
        DataError: no such folder or file, several that could be meant, a file that is none of these, as many labels as
            there are not images.
    """

    class_names = None
    channels = 1

    def __init__(self, data_dir: str, split: str):
        folder = Path(local_folder(user_path(data_dir, "data.data_dir"), "data.data_dir"))
        if not folder.is_dir():
            raise DataError(f"data.data_dir: {shown(folder)} is no folder; give the one that holds the files")
        path = _find(folder, split, "images", 3)
        self.name = f"{shown(path)}"
        self._images = _read(path, 3)
        labels = _find(folder, split, "labels", 1, needed=False)
        self._labels = None if labels is None else _read(labels, 1)
        if labels is not None and self._labels is not None and len(self._labels) != len(self._images):
            raise DataError(f"{shown(labels)} has {len(self._labels)} labels for {len(self._images)} images")
        self.num_classes = None if self._labels is None else int(self._labels.max(initial=0)) + 1

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        labels = self._labels
        return [(self._images[i][..., None], 0 if labels is None else int(labels[i])) for i in indices]

    def where(self, index: int) -> str:
        return f"image {index} of {self.name}"


def _find(folder: Path, split: str, what: str, axes: int, *, needed: bool = True) -> Path | None:
    """The file of a split; None if there is none and none is needed."""
    endings = [f"{what}{ending.format(axes)}" for ending in _ENDINGS]
    there = sorted(path for path in folder.iterdir() if path.name.endswith(tuple(endings)))
    found = [path for path in there for name in _ALIKE.get(split, (split,)) if path.name.startswith(f"{name}-{what}")]
    if not found and not needed:
        return None
    if not found:
        have = ", ".join(path.name for path in there) or "none"
        raise DataError(
            f"data.split: {shown(folder)} has no file of {what} that begins with {split!r}; it has {have}: name "
            "what one begins with, as data.split=emnist-letters-train"
        )
    return found[0]


def _read(path: Path | None, axes: int) -> np.ndarray:
    assert path is not None
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{shown(path)} cannot be read: {error}; get it again") from None
    if content[:4] != bytes([0, 0, 8, axes]):
        raise DataError(f"{shown(path)} is no file of bytes in {axes} axes (IDX): it begins with {content[:4].hex()}")
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    values = np.frombuffer(content[start:], np.uint8)
    if len(content) < start or len(values) != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{shown(path)} is cut short or damaged: {len(values)} bytes for {shape}; get it again")
    return values.reshape(shape)
