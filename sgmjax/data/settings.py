"""What a data set may be told: the section `data` of a configuration, and the keyword arguments of `data.load`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from sgmjax._ranges import COUNT, NON_NEGATIVE, SIDE
from sgmjax.spec import UserPath


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is trained on.

    `name`: `digits` (scikit-learn, embedded), a 2-D set of `sgmjax.data.toy`, `folder`, `idx` (MNIST's own files),
    `npz` (arrays), or any TFDS image set.
    """

    name: str = "digits"
    data_dir: UserPath | None = None  # TFDS directory (default ~/tensorflow_datasets); for `folder`, `idx` theirs
    path: UserPath | None = None  # for `npz`: the file, with arrays x, labels, and perhaps x_test, labels_test
    split: str = "train"
    eval_split: str | None = "test"  # held-out data; None: no evaluation loss. `digits` holds out its own split.
    image_size: Annotated[int, SIDE] | None = (
        None  # square; None keeps the size of the data (which must then be one size)
    )
    # Images of more than 8 bits: the values (low, high) that become 0 and 255. None: all images have 8 bits.
    range: tuple[int, ...] | None = None
    flip: bool = False  # random horizontal flips, training only
    centered: bool = True  # True: network sees [-1, 1]; False: [0, 1]
    uniform_dequantization: bool = False  # train on (x + u) / 256, u uniform: the density that bits/dim are about
    # Grey images as binary ones, each pixel on with the probability of its value: drawn once, or anew at every use.
    binarize: Literal["none", "static", "dynamic"] = "none"
    in_memory: bool | None = None  # None: held in memory when it fits memory_limit_gb
    memory_limit_gb: Annotated[float, NON_NEGATIVE] = 2.0
    num_samples: Annotated[int, COUNT] = 50_000  # size of generated 2-D sets
