"""Inception-v3 as FID knows it: the network of 2015-12-05 in the port of pytorch-fid, in Flax.

It is not torchvision's network: average pools do not count the padding, the last block pools by the maximum, and there
are 1,008 classes. Images are bytes; they are scaled to [0, 1], resized to 299 x 299 without antialiasing whatever their
shape, and scaled to [-1, 1], all in float32 and without rounding between. Batch normalisation is folded into the
convolutions when the weights are converted.

    network = InceptionV3()
    out = network.apply({"params": inception_params(state_dict)}, preprocess(images))
    out.pool3, out.logits_unbiased

Reference: Szegedy et al. 2016, "Rethinking the Inception architecture"; the port's conventions: pytorch-fid
(https://github.com/mseitzer/pytorch-fid); those of TensorFlow 1 ("tf1"): torch-fidelity, after Heusel et al. 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from sgmjax._inputs import InputError, check_numbers, shown

SIDE, CLASSES, DIM = 299, 1008, 2048
Resize = Literal["pytorch_fid", "tf1"]
_EPS = 0.001  # of the batch normalisation


class InceptionOutput(NamedTuple):
    """Features of a batch, float32.

    Attributes:
        block0, block1, block2: means over space of the 64, 192 and 768 channels after the two max pools and Mixed_6e.
        pool3: the 2,048 features of FID, (batch, 2048).
        logits: (batch, 1008).
        logits_unbiased: without the bias of the last layer, as the published Inception scores.
    """

    block0: jax.Array
    block1: jax.Array
    block2: jax.Array
    pool3: jax.Array
    logits: jax.Array
    logits_unbiased: jax.Array


def resize_weights(size: int, out: int = SIDE, *, convention: Resize = "pytorch_fid") -> np.ndarray:
    """Bilinear interpolation along one axis as a matrix, (out, size) float32; nothing is averaged when shrinking.

    "pytorch_fid" puts pixels at their centres (`F.interpolate(..., align_corners=False)`), "tf1" at their corners.
    """
    places = np.arange(out, dtype=np.float64)
    at = (places + 0.5) * size / out - 0.5 if convention == "pytorch_fid" else places * size / out
    at = np.clip(at, 0.0, size - 1)
    low = np.floor(at).astype(int)
    matrix = np.zeros((out, size))
    np.add.at(matrix, (np.arange(out), low), 1.0 - (at - low))
    np.add.at(matrix, (np.arange(out), np.minimum(low + 1, size - 1)), at - low)
    return matrix.astype(np.float32)


def preprocess(images: Any, *, convention: Resize = "pytorch_fid") -> jax.Array:
    """The network's input of images.

    Args:
        images: uint8 (batch, H, W, C), C = 3 or 1 (which is repeated).
        convention: "tf1" resizes on 0..255 with pixels at their corners and maps by (x - 128) / 128.

    Returns:
        (batch, 299, 299, 3) float32.

    Raises:
        ValueError: for other shapes and types, or an unknown convention.

    Examples:
        >>> white = np.full((1, 32, 32, 3), 255, np.uint8)
        >>> x = metrics.preprocess(white)
        >>> x.shape, bool(jnp.allclose(x, 1.0))
        ((1, 299, 299, 3), True)
    """
    if convention not in get_args(Resize):
        raise InputError(f"convention: {convention!r} is none; there are {', '.join(get_args(Resize))}")
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
        raise InputError(f"expected images (n, H, W, 3 or 1) of uint8, got {images.dtype} {images.shape}")
    x = jnp.asarray(images).astype(jnp.float32)
    x = x / 255.0 if convention == "pytorch_fid" else x
    rows, columns = (resize_weights(size, convention=convention) for size in images.shape[1:3])
    x = jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)
    x = 2.0 * x - 1.0 if convention == "pytorch_fid" else (x - 128.0) / 128.0
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


class _Conv(nn.Module):
    """Convolution with the normalisation folded in, and ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    same: bool = True
    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x):
        pad = [(k // 2, k // 2) if self.same else (0, 0) for k in self.kernel]
        x = nn.Conv(self.features, self.kernel, self.stride, pad, precision=self.precision, name="conv")(x)
        return nn.relu(x)


def _max_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2))


def _mean_pool(x):
    padding: Any = ((1, 1), (1, 1))
    return nn.avg_pool(x, (3, 3), (1, 1), padding=padding, count_include_pad=False)


class _Mixed(nn.Module):
    """What the mixed blocks have in common: branches of convolutions side by side, then a pool."""

    precision: Any = jax.lax.Precision.HIGHEST

    def conv(self, name: str, features: int, kernel: tuple[int, int] = (1, 1), stride: int = 1, same: bool = True):
        """A convolution under the name it has in the file of weights."""
        return _Conv(features, kernel, stride, same, self.precision, name=name)


class _A(_Mixed):
    pool: int = 32

    @nn.compact
    def __call__(self, x):
        a = self.conv("branch1x1", 64)(x)
        b = self.conv("branch5x5_2", 64, (5, 5))(self.conv("branch5x5_1", 48)(x))
        c = self.conv("branch3x3dbl_2", 96, (3, 3))(self.conv("branch3x3dbl_1", 64)(x))
        c = self.conv("branch3x3dbl_3", 96, (3, 3))(c)
        return jnp.concatenate([a, b, c, self.conv("branch_pool", self.pool)(_mean_pool(x))], axis=-1)


class _B(_Mixed):
    @nn.compact
    def __call__(self, x):
        a = self.conv("branch3x3", 384, (3, 3), 2, same=False)(x)
        b = self.conv("branch3x3dbl_2", 96, (3, 3))(self.conv("branch3x3dbl_1", 64)(x))
        b = self.conv("branch3x3dbl_3", 96, (3, 3), 2, same=False)(b)
        return jnp.concatenate([a, b, _max_pool(x)], axis=-1)


class _C(_Mixed):
    width: int = 128

    @nn.compact
    def __call__(self, x):
        n = self.width
        a = self.conv("branch1x1", 192)(x)
        b = self.conv("branch7x7_2", n, (1, 7))(self.conv("branch7x7_1", n)(x))
        b = self.conv("branch7x7_3", 192, (7, 1))(b)
        c = self.conv("branch7x7dbl_2", n, (7, 1))(self.conv("branch7x7dbl_1", n)(x))
        c = self.conv("branch7x7dbl_4", n, (7, 1))(self.conv("branch7x7dbl_3", n, (1, 7))(c))
        c = self.conv("branch7x7dbl_5", 192, (1, 7))(c)
        return jnp.concatenate([a, b, c, self.conv("branch_pool", 192)(_mean_pool(x))], axis=-1)


class _D(_Mixed):
    @nn.compact
    def __call__(self, x):
        a = self.conv("branch3x3_2", 320, (3, 3), 2, same=False)(self.conv("branch3x3_1", 192)(x))
        b = self.conv("branch7x7x3_2", 192, (1, 7))(self.conv("branch7x7x3_1", 192)(x))
        b = self.conv("branch7x7x3_3", 192, (7, 1))(b)
        b = self.conv("branch7x7x3_4", 192, (3, 3), 2, same=False)(b)
        return jnp.concatenate([a, b, _max_pool(x)], axis=-1)


class _E(_Mixed):
    largest: bool = False  # pool by the maximum

    @nn.compact
    def __call__(self, x):
        a = self.conv("branch1x1", 320)(x)
        b = self.conv("branch3x3_1", 384)(x)
        b = [self.conv("branch3x3_2a", 384, (1, 3))(b), self.conv("branch3x3_2b", 384, (3, 1))(b)]
        c = self.conv("branch3x3dbl_2", 384, (3, 3))(self.conv("branch3x3dbl_1", 448)(x))
        c = [self.conv("branch3x3dbl_3a", 384, (1, 3))(c), self.conv("branch3x3dbl_3b", 384, (3, 1))(c)]
        padding: Any = ((1, 1), (1, 1))
        pooled = nn.max_pool(x, (3, 3), (1, 1), padding=padding) if self.largest else _mean_pool(x)
        return jnp.concatenate([a, *b, *c, self.conv("branch_pool", 192)(pooled)], axis=-1)


class InceptionV3(nn.Module):
    """The network; its layers have the names of the file of weights.

    Attributes:
        precision: of products; the highest by default, since TF32 or bfloat16 change the features by 4e-4 and 4e-3.
    """

    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: jax.Array) -> InceptionOutput:
        """Features of images (batch, 299, 299, 3) in [-1, 1], as `preprocess` gives them."""

        def conv(name, *settings, **more):
            return _Conv(*settings, precision=self.precision, name=name, **more)

        def mixed(name, kind, **settings):
            return kind(precision=self.precision, name=f"Mixed_{name}", **settings)

        x = conv("Conv2d_1a_3x3", 32, (3, 3), 2, same=False)(x)
        x = conv("Conv2d_2b_3x3", 64, (3, 3))(conv("Conv2d_2a_3x3", 32, (3, 3), same=False)(x))
        x = block0 = _max_pool(x)
        x = conv("Conv2d_4a_3x3", 192, (3, 3), same=False)(conv("Conv2d_3b_1x1", 80)(x))
        x = block1 = _max_pool(x)
        for name, pool in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = mixed(name, _A, pool=pool)(x)
        x = mixed("6a", _B)(x)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = mixed(name, _C, width=width)(x)
        block2 = x
        x = mixed("7c", _E, largest=True)(mixed("7b", _E)(mixed("7a", _D)(x)))
        m0, m1, m2, pool3 = (jnp.mean(block, axis=(1, 2)) for block in (block0, block1, block2, x))
        fc = nn.Dense(CLASSES, use_bias=False, precision=self.precision, name="fc")(pool3)
        bias = self.param("fc_bias", nn.initializers.zeros, (CLASSES,))
        return InceptionOutput(m0, m1, m2, pool3, fc + bias[None], fc)


def inception_params(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of `InceptionV3` from the state dict of pytorch-fid's (or torch-fidelity's) file of weights.

    Args:
        state_dict: names to NumPy arrays: convolutions in OIHW with their normalisation, `fc.weight` (1008, 2048) and
            `fc.bias`; counters of batches may be there.

    Returns:
        Nested float32 arrays.

    Raises:
        ValueError: naming the first array that is missing, left over, of another shape, or not finite.
    """
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    shapes: Any = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    shapes = traverse_util.flatten_dict(shapes)
    left = {key: value for key, value in state_dict.items() if not str(key).endswith("num_batches_tracked")}

    def take(key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key not in left:
            raise InputError(f"the weights lack '{key}': this is not the Inception network of FID")
        value = np.asarray(left.pop(key))
        if value.shape != shape:
            raise InputError(f"the weights' '{key}' has shape {value.shape}, where FID's network has {shape}")
        check_numbers(value, f"the weights' '{key}'")
        return value.astype(np.float64)

    params: dict[tuple[str, ...], np.ndarray] = {}
    for path, leaf in shapes.items():
        if path[-1] != "kernel" or path[0] == "fc":
            continue
        name = ".".join(path[:-2])
        height, width, inputs, outputs = leaf.shape
        kernel = take(f"{name}.conv.weight", (outputs, inputs, height, width)).transpose(2, 3, 1, 0)
        scale, bias, mean, variance = (
            take(f"{name}.bn.{part}", (outputs,)) for part in ("weight", "bias", "running_mean", "running_var")
        )
        if (variance <= 0).any():
            raise InputError(f"the weights' '{name}.bn.running_var' has variances that are not positive")
        scale = scale / np.sqrt(variance + _EPS)
        params[path] = kernel * scale
        params[(*path[:-1], "bias")] = bias - mean * scale
    params[("fc", "kernel")] = take("fc.weight", (CLASSES, DIM)).T
    params[("fc_bias",)] = take("fc.bias", (CLASSES,))
    if left:
        raise InputError(f"the weights hold '{shown(next(iter(left)))}', which FID's Inception network has not")
    return traverse_util.unflatten_dict({path: value.astype(np.float32) for path, value in params.items()})
