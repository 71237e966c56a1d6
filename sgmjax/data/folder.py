"""A folder of images as a data set.

All PNG, JPEG, WebP and BMP files below the folder, in the sorted order of their relative paths; hidden files are
skipped. If every image lies in a subfolder of the first level and there are at least two of them, the subfolders, in
sorted order, are the classes.

Colour: if all images are grey the data is grey (one channel), else everything is RGB. Palettes are resolved; what is
transparent is laid on white; 16-bit grey keeps its high bits, rounded; CMYK and the like are converted to RGB; the
camera's orientation tag is applied; of an animation the first frame is taken.

Held-out data: subfolders named like the splits (`train/`, `test/`) are used if the one named `data.split` exists.
Otherwise one image in twenty (at least one), those whose relative paths have the smallest CRC-32, is held out, unless
`data.eval_split` is None. The choice of an image does not depend on what else is in the folder, apart from the number.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sgmjax.data.base import DataError
from sgmjax.data.images import as_uint8, pil
from sgmjax.data.source import threads

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HELD_OUT = 20  # one image in twenty

_GREY = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_ORIENTATION = 0x0112  # Exif tag; 5 to 8 swap height and width


def read_image(path: Path) -> np.ndarray:
    """One image file as uint8 `(H, W, 1)` or `(H, W, 3)`.

    Raises:
        DataError: if the file cannot be decoded.
    """
    module = pil()
    from PIL import ImageOps

    try:
        with module.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            grey = image.mode in _GREY
            if image.mode.startswith("I"):
                pixels = np.clip(np.asarray(image.convert("I")), 0, 65535).astype(np.uint16)
            elif image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
                pixels = np.asarray(image.convert("LA" if grey else "RGBA"))
            else:
                pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    return as_uint8(pixels, str(path))


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"cannot read the image {path} ({reason}): replace or remove the file")


def _header(path: Path) -> tuple[bool, tuple[int, int]]:
    """Whether an image is grey, and its height and width, without decoding it."""
    module = pil()
    try:
        with module.open(path) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
                width, height = height, width
            return image.mode in _GREY, (height, width)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error


def find_images(root: Path) -> list[Path]:
    """The image files below `root`, relative to it, sorted."""
    found = []
    for folder, names, files in os.walk(root, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        found += [
            Path(folder, file).relative_to(root)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
    return sorted(found, key=lambda path: path.as_posix())


class FolderSource:
    """The images of a folder, or its training or held-out part.

    Args:
        data_dir: the folder.
        split: which part is wanted, `train` or `eval`.
        train_split: name of the subfolder of training images, if there is one.
        eval_split: name of the subfolder of held-out images; None: all images are for training.
        one_size: demand that all images have the same size.

    Raises:
        DataError: for a folder that is missing or has no images (of this part), unreadable images, and different
            sizes where one is demanded. Headers are read now, pixels later.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        split: str = "train",
        *,
        train_split: str = "train",
        eval_split: str | None = "test",
        one_size: bool = False,
    ):
        root = Path(data_dir).expanduser()
        if not root.is_dir():
            fix = "it is a file; name the folder that holds it" if root.exists() else "no such folder"
            raise DataError(f"data.data_dir={root}: {fix}; name an existing folder of images")
        train_name = Path(train_split).name
        if train_name and (root / train_name).is_dir():
            self.root = root / (train_name if split == "train" else str(eval_split))
            if not self.root.is_dir():
                raise DataError(f"no folder {self.root} of held-out images: create it, or set data.eval_split=None")
            files = self._files()
        else:
            self.root = root
            files = _part(self._files(), root, split, hold_out=eval_split is not None)
        self.name = f"{self.root} ({split})"
        self._paths = [self.root / file for file in files]
        self._labels, self.num_classes = self._classes(files)
        with ThreadPoolExecutor(threads()) as pool:
            headers = list(pool.map(_header, self._paths, chunksize=64))
        self._channels = 1 if all(grey for grey, _ in headers) else 3
        if one_size:
            for path, (_, size) in zip(self._paths, headers, strict=True):
                if size != headers[0][1]:
                    raise DataError(
                        f"{path} is {size[0]}x{size[1]} (height x width) but {self._paths[0]} is "
                        f"{headers[0][1][0]}x{headers[0][1][1]}: set data.image_size to bring all images to one size"
                    )

    def _files(self) -> list[Path]:
        files = find_images(self.root)
        if not files:
            raise DataError(f"no images in {self.root}: expected {', '.join(SUFFIXES)} files, at any depth")
        return files

    def _classes(self, files: list[Path]) -> tuple[np.ndarray, int | None]:
        """Labels by first-level subfolder, of all the folder's images so that both parts agree."""
        everything = find_images(self.root)
        names = sorted({file.parts[0] for file in everything})
        if len(names) < 2 or any(len(file.parts) < 2 for file in everything):
            return np.zeros(len(files), np.int32), None
        index = {name: label for label, name in enumerate(names)}
        return np.array([index[file.parts[0]] for file in files], np.int32), len(names)

    def __len__(self) -> int:
        return len(self._paths)

    def where(self, index: int) -> str:
        return str(self._paths[index])

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        images = []
        for i in indices:
            image = read_image(self._paths[i])
            if image.shape[-1] < self._channels:
                image = np.repeat(image, self._channels, axis=-1)
            images.append((image, int(self._labels[i])))
        return images


def _part(files: list[Path], root: Path, split: str, *, hold_out: bool) -> list[Path]:
    """The training or held-out files of a folder without split subfolders."""
    if split == "train" and not hold_out:
        return files
    if len(files) < 2:
        raise DataError(f"{root} has a single image, none can be held out: add images, or set data.eval_split=None")
    by_hash = sorted(files, key=lambda file: (zlib.crc32(file.as_posix().encode()), file))
    held_out = set(by_hash[: max(1, len(files) // HELD_OUT)])
    return [file for file in files if (file in held_out) == (split == "eval")]
