"""TFDS image sets, read without TensorFlow.

Only sets that are already on disk, in a random-access format, are read: nothing here downloads. To prepare one, run
`python -m sgmjax.data.prepare NAME --data_dir=DIR`.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgmjax._files import is_remote, local_folder, user_path
from sgmjax._inputs import InputError
from sgmjax.data.base import DataError
from sgmjax.data.images import Range, read_image


class NotPreparedError(DataError):
    """The data set is not on disk (in a format that can be read)."""


def data_dir_or_default(data_dir: str | None) -> str:
    """The directory of TFDS sets: as given, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return str(user_path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "data.data_dir"))


def prepare_command(name: str, data_dir: str) -> str:
    return f"python -m sgmjax.data.prepare {shlex.quote(name)} --data_dir={shlex.quote(data_dir)}"


def import_tfds() -> Any:
    """`tensorflow_datasets`, with two messages silenced that concern nobody here.

    array_record calls it an error that a file was written with several records a group (reading is not slower), and
    TFDS warns that it decodes by Pillow.

    Raises:
        DataError: if it is not installed.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError("TFDS sets need tensorflow_datasets: pip install 'sgmjax[tfds]'") from error
    logging.getLogger("absl").addFilter(_not_noise)
    return tensorflow_datasets


def _not_noise(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "group size" not in message and "OpenCV is not installed" not in message


def find_builder(name: str, data_dir: str) -> Any:
    """The read-only builder of a set that is on disk, or None.

    Args:
        name: as in TFDS: `cifar10`, `name/config`, `name:1.0.0`; also sets that TFDS has no code for.

    Raises:
        DataError: if the name cannot be one of a data set.
    """
    import_tfds()
    from tensorflow_datasets.core import naming, read_only_builder, registered

    try:
        naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise DataError(f"{name!r} is no name of a TFDS data set, which is like cifar10 or name/config") from error
    if is_remote(data_dir):  # its records are read from a disk
        base = name.partition(":")[0]
        try:
            copy = local_folder(user_path(data_dir, "data.data_dir") / base, "data.data_dir")
        except InputError:
            return None
        data_dir = str(copy.parents[base.count("/")])
    if not Path(data_dir).is_dir():
        return None
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except registered.DatasetNotFoundError:
        return None


def check_random_access(builder: Any, name: str, data_dir: str) -> None:
    """Raises NotPreparedError unless the files of a builder can be read in any order."""
    from tensorflow_datasets.core import file_adapters

    formats = builder.info.available_file_formats()
    if not formats & set(file_adapters.FileFormat.with_random_access()):
        found = ", ".join(sorted(f.value for f in formats))
        raise NotPreparedError(
            f"{name} is in {builder.data_path} only as {found}, which needs TensorFlow to read: delete it, or choose "
            f"another directory, then run {prepare_command(name, data_dir)}"
        )


class TfdsSource:
    """One split of a TFDS image set.

    The images are the feature `image`, else the first image feature; the labels are the class label `label`, where
    there is one.

    Args:
        name: name of the set; `name/config` and `name:version` as in TFDS.
        split: any TFDS split, also `train[:90%]` or `train+test`.
        data_dir: directory that holds it.
        value_range: values of 16-bit images that become black and white; None: the images have 8 bits.

    Raises:
        NotPreparedError: if it is not there.
        DataError: for an unknown split, a set without images, images of other types than uint8 and uint16, and a range
            without 16 bits or 16 bits without one.
    """

    def __init__(self, name: str, split: str, data_dir: str | None = None, *, value_range: Range | None = None):
        data_dir = data_dir_or_default(data_dir)
        builder = find_builder(name, data_dir)
        if builder is None:
            raise NotPreparedError(
                f"the data set {name!r} is not prepared in {data_dir}: run {prepare_command(name, data_dir)}"
            )
        check_random_access(builder, name, data_dir)
        self.name = f"{name} ({split})"
        self._image, self._label = _features(builder, name)
        self.num_classes, self.class_names = None, None
        if self._label:
            feature = builder.info.features[self._label]
            self.num_classes, self.class_names = int(feature.num_classes), tuple(feature.names)
        image = builder.info.features[self._image]
        self.channels: int | None = {1: 1, 3: 3, 4: 3}.get(image.shape[-1])
        _check_depth(name, image.np_dtype, value_range)
        self._value_range = value_range
        self._source = _open(builder, name, split, self._label)

    def __len__(self) -> int:
        return len(self._source)

    def where(self, index: int) -> str:
        return f"example {index} of {self.name}"

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        examples = self._source.__getitems__(list(indices))
        return [
            (self._decode(i, example[self._image]), int(example[self._label]) if self._label else 0)
            for i, example in zip(indices, examples, strict=True)
        ]

    def _decode(self, index: int, content: bytes) -> np.ndarray:
        """Not by TFDS, which opens whatever format Pillow knows; without turning photographs, as TFDS does."""
        image = read_image(content, self.where(index), value_range=self._value_range, upright=False)
        if image.shape[-1] > (self.channels or 3):
            raise DataError(f"{self.where(index)} is in colour, and the set calls its images grey: prepare it anew")
        return image


def _features(builder: Any, name: str) -> tuple[str, str | None]:
    """The names of the image feature and of the class label."""
    from tensorflow_datasets.core import features

    known = builder.info.features
    images = [key for key in known if isinstance(known[key], features.Image)]
    if not images:
        raise DataError(f"{name} holds no images, only {', '.join(known)}; choose an image data set")
    label = "label" if "label" in known and isinstance(known["label"], features.ClassLabel) else None
    return ("image" if "image" in images else images[0]), label


def _check_depth(name: str, dtype: Any, value_range: Range | None) -> None:
    if np.dtype(dtype) not in (np.uint8, np.uint16):
        raise DataError(f"{name} has images of {np.dtype(dtype)}; those of uint8 and uint16 can be read")
    deep = np.dtype(dtype) == np.uint16
    if deep and value_range is None:
        raise DataError(
            f"data.range: {name} has 16-bit images; say which values shall be black and white, as "
            "--config.data.range='(0, 65535)'"
        )
    if value_range is not None and not deep:
        raise DataError(f"data.range: the images of {name} have 8 bits, which need none; leave it out")


def _open(builder: Any, name: str, split: str, label: str | None) -> Any:
    from tensorflow_datasets.core import decode

    skip = {key: decode.SkipDecoding() for key in builder.info.features if key != label}
    try:
        return builder.as_data_source(split=split, decoders=skip)
    except ValueError as error:
        splits = ", ".join(builder.info.splits)
        raise DataError(f"{name} has no split {split!r}; it has {splits} (set data.split, data.eval_split)") from error
