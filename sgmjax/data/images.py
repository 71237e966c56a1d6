"""Images to what the networks are fed: one size, 8 bits, channels last."""

from __future__ import annotations

import numpy as np

from sgmjax.data.base import DataError


def pil():
    """Pillow's `Image` module.

    Raises:
        DataError: if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading images needs Pillow: pip install pillow") from error
    return Image


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """An image as a `size` x `size` one: its largest centred square, then Pillow's bicubic filter.

    Pillow widens the filter when it shrinks an image, so the result is antialiased. The arithmetic of grey images is
    in float32 and rounded once; images that already have the size are returned unchanged.

    Args:
        image: `(H, W, C)` uint8, C is 1, 3 or any other number of independent channels.
        size: side of the result.

    Returns:
        `(size, size, C)` uint8.
    """
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    if side == size:
        return image
    module = pil()
    if channels == 3:
        return np.asarray(module.fromarray(image).resize((size, size), module.Resampling.BICUBIC))
    planes = [resize_float(image[:, :, c].astype(np.float32), size) for c in range(channels)]
    return np.floor(np.clip(np.stack(planes, axis=-1), 0, 255) + 0.5).astype(np.uint8)


def resize_float(plane: np.ndarray, size: int) -> np.ndarray:
    """One float32 plane `(H, W)` resized to `(size, size)` by the same filter, neither rounded nor clipped."""
    module = pil()
    return np.asarray(module.fromarray(plane).resize((size, size), module.Resampling.BICUBIC))


def as_uint8(image: np.ndarray, where: str) -> np.ndarray:
    """Any decoded image array as uint8 `(H, W, C)` with 1 or 3 channels.

    A missing channel axis is added. 16-bit images keep their high bits, rounded (`x / 257`). Images with an alpha
    channel are laid on white.

    Args:
        image: `(H, W)`, `(H, W, 1)`, `(H, W, 3)`, or with alpha `(H, W, 2)`, `(H, W, 4)`; uint8 or uint16.
        where: names the image in errors.

    Raises:
        DataError: for other shapes and dtypes.
    """
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 2, 3, 4):
        raise DataError(f"{where}: an image of {image.dtype} {image.shape} is neither grey nor RGB of 8 or 16 bits")
    if image.shape[-1] in (2, 4):
        colour, alpha = image[:, :, :-1].astype(np.uint32), image[:, :, -1:].astype(np.uint32)
        image = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return image
