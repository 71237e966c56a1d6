"""Grey images as binary ones: each pixel is on with the probability of its grey value.

"Static" binarisation is drawn once, so that every epoch and every evaluation sees the same binary data set, and its
likelihood is that of binary data; "dynamic" is drawn anew whenever an image is used.

Reference: Salakhutdinov & Murray 2008, sec. 4 (static MNIST); Vahdat et al. 2021, app. G.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from sgmjax._types import AnyArray, Key
from sgmjax.data.base import DataError, Dataset
from sgmjax.data.memory import ArrayDataset

SEED = 1729  # of the one static draw of a data set


def static(dataset: Dataset, split: str) -> ArrayDataset:
    """The data set with pixels 0 and 255, drawn once for all: the same in every run and process.

    Args:
        dataset: grey images held in memory.
        split: `train` or `eval`; each has its own draw.

    Raises:
        DataError: no images, or not in memory.
    """
    if not dataset.is_image:
        raise DataError(f"data.binarize: {dataset.name} has no images; it is for images")
    if not dataset.discrete:
        raise DataError(f"data.binarize: 'static' needs grey values 0 to 255, uint8; {dataset.name} has floats")
    if not dataset.in_memory:
        raise DataError("data.binarize: 'static' needs the data in memory; set data.in_memory=True")
    arrays = dataset.arrays()
    rng = np.random.default_rng((SEED, split == "eval"))
    x = np.empty_like(arrays["x"])
    for start in range(0, len(x), 4096):  # in parts: the uniform numbers take eight times the room of the images
        part = arrays["x"][start : start + 4096]
        x[start : start + 4096] = np.where(rng.random(part.shape) * 255.0 < part, 255, 0)
    label = None if dataset.num_classes is None else arrays["label"]
    classes = {"num_classes": dataset.num_classes, "class_names": dataset.class_names}
    return ArrayDataset(dataset.name, x, label, **classes, flip=dataset.flip)


def dynamic(key: Key, x: Shaped[AnyArray, " *shape"]) -> Float[jax.Array, " *shape"]:
    """A fresh draw: uint8 images, or floats in [-1, 1], to floats of -1 and 1 with the same mean.

    Args:
        key: typed PRNG key.
        x: (batch, H, W, C).
    """
    probability = x.astype(jnp.float32) / 255.0 if x.dtype == jnp.uint8 else 0.5 * (x + 1.0)
    return jnp.where(jax.random.uniform(key, x.shape) < probability, 1.0, -1.0)
