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

from sgmjax.data.base import DataError
from sgmjax.data.images import as_uint8


class NotPreparedError(DataError):
    """The data set is not on disk (in a format that can be read)."""


def data_dir_or_default(data_dir: str | None) -> str:
    """The directory of TFDS sets: as given, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


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
        raise DataError("TFDS sets need tensorflow_datasets: pip install tensorflow-datasets array_record") from error
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

    Raises:
        NotPreparedError: if it is not there.
        DataError: for an unknown split, or a set without images.
    """

    def __init__(self, name: str, split: str, data_dir: str | None = None):
        data_dir = data_dir_or_default(data_dir)
        builder = find_builder(name, data_dir)
        if builder is None:
            raise NotPreparedError(
                f"the data set {name!r} is not prepared in {data_dir}: run {prepare_command(name, data_dir)}"
            )
        check_random_access(builder, name, data_dir)
        self.name = f"{name} ({split})"
        self._image, self._label = _features(builder, name)
        self.num_classes = int(builder.info.features[self._label].num_classes) if self._label else None
        self._source = _open(builder, name, split, {self._image, self._label})

    def __len__(self) -> int:
        return len(self._source)

    def where(self, index: int) -> str:
        return f"example {index} of {self.name}"

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        examples = self._source.__getitems__(list(indices))
        return [
            (as_uint8(np.asarray(example[self._image]), self.where(i)), int(example[self._label]) if self._label else 0)
            for i, example in zip(indices, examples, strict=True)
        ]


def _features(builder: Any, name: str) -> tuple[str, str | None]:
    """The names of the image feature and of the class label."""
    from tensorflow_datasets.core import features

    known = builder.info.features
    images = [key for key in known if isinstance(known[key], features.Image)]
    if not images:
        raise DataError(f"{name} holds no images, only {', '.join(known)}; choose an image data set")
    label = "label" if "label" in known and isinstance(known["label"], features.ClassLabel) else None
    return ("image" if "image" in images else images[0]), label


def _open(builder: Any, name: str, split: str, wanted: set[str | None]) -> Any:
    from tensorflow_datasets.core import decode

    skip = {key: decode.SkipDecoding() for key in builder.info.features if key not in wanted}
    try:
        return builder.as_data_source(split=split, decoders=skip or None)
    except ValueError as error:
        splits = ", ".join(builder.info.splits)
        raise DataError(f"{name} has no split {split!r}; it has {splits} (set data.split, data.eval_split)") from error
