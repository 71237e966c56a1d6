"""Data: arrays, embedded digits, 2-D sets, TFDS image sets, folders of images; one contract, exact resume."""

from sgmjax.data.base import Batch, BatchIterator, DataError, Dataset
from sgmjax.data.memory import ArrayDataset, arrays
from sgmjax.data.pipeline import load, to_float, to_uint8
from sgmjax.data.settings import DataSettings

__all__ = [
    "ArrayDataset", "Batch", "BatchIterator", "DataError", "DataSettings", "Dataset", "arrays", "load", "to_float",
    "to_uint8",
]  # fmt: skip
