"""A folder of images as a data set.

All PNG, JPEG, WebP, BMP and TIFF files below the folder, in the sorted order of their relative paths; hidden files are
skipped, and one line says what else was (`sgmjax.data.walk`: links, other endings, what is no file).

Classes: if every image lies in a subfolder of the first level and there are at least two of them, the subfolders are
the classes, in sorted order (as numbers, where all names are numbers). With split subfolders the classes are those of
the training images; held-out images have the same numbers, and a held-out class that training lacks is an error.

Colour: if all images, held-out ones too, are grey the data is grey (one channel), else everything is RGB. Palettes are
resolved; what is transparent is laid on white; CMYK and the like are converted to RGB; the camera's orientation tag is
applied; of an animation or a file of several pages the first frame is taken.

Depth: images of more than 8 bits need `data.range`, the values that become black and white. Nothing is guessed: twelve
bits in a 16-bit file would be 16 of the 256 levels, and the brightest pixel of each image another scale for each.

Held-out data: subfolders named like the splits (`train/`, `test/`) are used if the one named `data.split` exists.
Otherwise one image in twenty (at least one), those whose relative paths have the smallest CRC-32, is held out, unless
`data.eval_split` is None. The choice of an image does not depend on what else is in the folder, apart from the number.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sgmjax._files import local_folder, user_path
from sgmjax._inputs import InputError, shown
from sgmjax.data.base import DataError
from sgmjax.data.classes import Names, in_order, listed
from sgmjax.data.images import SUFFIXES, Header, Range, pil, read_deep, read_header, read_image
from sgmjax.data.source import threads
from sgmjax.data.walk import Found, find_images

HELD_OUT = 20  # one image in twenty
DEEP_PROBES = 64  # images of more than 8 bits whose values are looked at
_BLOCK = 4096  # headers read at a time where one may settle the question


class FolderSource:
    """The images of a folder, or its training or held-out part.

    Args:
        data_dir: the folder.
        split: which part is wanted, `train` or `eval`.
        train_split: name of the subfolder of training images, if there is one.
        eval_split: name of the subfolder of held-out images; None: all images are for training.
        one_size: demand that all images have the same size.
        value_range: values of images of more than 8 bits that become black and white; None: all have 8.

    Raises:
        DataError: for a folder that is missing or has no images (of this part), unreadable images, different sizes
            where one is demanded, more than 8 bits without a range or a range without them, and held-out classes that
            training lacks. Headers are read now, pixels later.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        split: str = "train",
        *,
        train_split: str = "train",
        eval_split: str | None = "test",
        one_size: bool = False,
        value_range: Range | None = None,
    ):
        try:
            root = local_folder(user_path(data_dir, "data.data_dir"), "data.data_dir")
        except InputError as error:
            raise DataError(str(error)) from None
        if not root.is_dir():
            fix = "it is a file; name the folder that holds it" if root.exists() else "no such folder"
            raise DataError(f"data.data_dir={shown(root)}: {fix}; name an existing folder of images")
        training, held_out = _parts(root, train_split, eval_split)
        self.root = training if split == "train" else held_out
        if not self.root.is_dir():
            raise DataError(f"no folder {shown(self.root)} of held-out images: create it, or set data.eval_split=None")
        self.name = f"{shown(self.root)} ({split})"
        found = _find(self.root)
        if training == held_out:
            files, rest = _part(found.files, root, split, hold_out=eval_split is not None)
            everything, others = found.files, [root / file for file in rest]
        else:
            other = held_out if split == "train" else training
            files, rest = found.files, find_images(other).files if eval_split and other.is_dir() else []
            everything, others = files if split == "train" else rest, [other / file for file in rest]
        self.class_names = _class_names(everything)
        self._labels, self.num_classes = self._number(files)
        self._paths = [self.root / file for file in files]
        self._value_range = value_range
        headers = _headers(self._paths)
        self._check_depth(headers, required=split == "train")
        grey = all(header.grey for header in headers) and _all_grey(others)
        self.channels: int | None = 1 if grey else 3
        if one_size:
            self._check_size(headers)
        if split == "train" or training != held_out:
            _report(self.name, found, self._paths, headers)

    def _number(self, files: list[Path]) -> tuple[np.ndarray, int | None]:
        """Labels by first-level subfolder; none where the images have no classes, or none of them is in a subfolder."""
        names = self.class_names
        if names is None or all(len(file.parts) < 2 for file in files):
            self.class_names = None
            return np.zeros(len(files), np.int32), None
        index = {name: label for label, name in enumerate(names)}
        for file in files:
            if len(file.parts) < 2 or file.parts[0] not in index:
                raise DataError(
                    f"{shown(self.root / file)} is of no class of the training images ({listed(names)}): put it into "
                    "the folder of one, or add the class to training"
                )
        return np.array([index[file.parts[0]] for file in files], np.int32), len(names)

    def _check_size(self, headers: list[Header]) -> None:
        first = headers[0].size
        for path, header in zip(self._paths, headers, strict=True):
            if header.size != first:
                raise DataError(
                    f"{shown(path)} is {header.size[0]}x{header.size[1]} (height x width) but {shown(self._paths[0])} "
                    f"is {first[0]}x{first[1]}: set data.image_size to bring all images to one size"
                )

    def _check_depth(self, headers: list[Header], *, required: bool) -> None:
        """Says what values images of more than 8 bits have; an error where that and `data.range` do not fit."""
        deep = [path for path, header in zip(self._paths, headers, strict=True) if header.deep]
        given = self._value_range
        if not deep:
            if given is not None and required:
                raise DataError(f"data.range: all images of {self.name} have 8 bits, which need none; leave it out")
            return
        probes = [deep[i] for i in np.unique(np.linspace(0, len(deep) - 1, DEEP_PROBES).astype(int))]
        values = [v for v in map(read_deep, probes) if v is not None]
        what = f"{len(deep):,} of {len(headers):,} images of {self.name} have more than 8 bits"
        low, high, suggested = 0, 65535, (0, 65535)
        if values:
            low, high = min(int(v.min()) for v in values), max(int(v.max()) for v in values)
            what += f", with values {low} to {high}" + (f" in {len(values)} of them" if len(values) < len(deep) else "")
            suggested = (min(low, 0), 2 ** max(high.bit_length(), 8) - 1)
        if given is None:
            raise DataError(
                f"data.range: {what}; say which values shall be black and white, as --config.data.range='{suggested}'"
            )
        if required:
            clipped = ", what is outside is clipped" if low < given[0] or high > given[1] else ""
            _say(f"{what}: read with data.range={given}{clipped}")

    def __len__(self) -> int:
        return len(self._paths)

    def where(self, index: int) -> str:
        return shown(self._paths[index])

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        return [(read_image(self._paths[i], value_range=self._value_range), int(self._labels[i])) for i in indices]


def _parts(root: Path, train_split: str, eval_split: str | None) -> tuple[Path, Path]:
    """The folders of training and held-out images, the same one without split subfolders."""
    train_name = Path(train_split).name
    if train_name and (root / train_name).is_dir():
        return root / train_name, root / str(eval_split)
    eval_name = Path(eval_split or "").name
    if eval_name and (root / eval_name).is_dir():
        raise DataError(
            f"{shown(root)} has a folder {eval_name} (data.eval_split) and none called {train_split}: name that of the "
            f"training images by data.split, or set data.eval_split=None if {eval_name} is a class"
        )
    return root, root


def _find(folder: Path) -> Found:
    found = find_images(folder)
    if not found.files:
        more = f"; {_counted(found)}" if found.skipped else ""
        raise DataError(f"no images in {shown(folder)}: expected {', '.join(SUFFIXES)} files, at any depth{more}")
    return found


def _part(files: list[Path], root: Path, split: str, *, hold_out: bool) -> tuple[list[Path], list[Path]]:
    """The training or held-out files of a folder without split subfolders, and the others."""
    if split == "train" and not hold_out:
        return files, []
    if len(files) < 2:
        raise DataError(
            f"{shown(root)} has a single image, none can be held out: add images, or set data.eval_split=None"
        )
    by_hash = sorted(files, key=lambda file: (zlib.crc32(os.fsencode(file.as_posix())), file))
    held_out = set(by_hash[: max(1, len(files) // HELD_OUT)])
    mine = [file for file in files if (file in held_out) == (split == "eval")]
    return mine, [file for file in files if (file in held_out) != (split == "eval")]


def _class_names(files: list[Path]) -> Names | None:
    """The first-level subfolders of all images; None if some lie outside, or all in one."""
    names = in_order(file.parts[0] for file in files)
    return None if len(names) < 2 or any(len(file.parts) < 2 for file in files) else names


def _headers(paths: list[Path]) -> list[Header]:
    with ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(read_header, paths, chunksize=64))


def _all_grey(paths: list[Path]) -> bool:
    """Whether no image has colours; stops at the first block of files that has."""
    blocks = (paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK))
    return all(header.grey for block in blocks for header in _headers(block))


def _report(name: str, found: Found, paths: list[Path], headers: list[Header]) -> None:
    """One line about what was skipped, and what of an image was."""
    words = [_counted(found)] if found.skipped else []
    if frames := sum(header.frames for header in headers):
        words.append(f"{frames:,} files have several frames or pages, of which the first is taken")
    limit = pil().MAX_IMAGE_PIXELS or float("inf")
    sizes = [height * width for height, width in (header.size for header in headers)]
    if large := sum(size > limit for size in sizes):
        largest = int(np.argmax(sizes))
        words.append(f"{large:,} images are very large, {shown(paths[largest])} has {sizes[largest]:,} pixels")
    if words:
        _say(f"{name}: {'; '.join(words)}")


def _counted(found: Found) -> str:
    kinds = found.skipped.most_common()
    words = [f"{shown(kind, 60)} ({count:,})" for kind, count in kinds[:6]]
    if rest := sum(count for _, count in kinds[6:]):
        words.append(f"others ({rest:,})")
    return f"skipped {sum(found.skipped.values()):,} (read {len(found.files):,} images): {', '.join(words)}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
