"""Images to what the networks are fed: one size, 8 bits, channels last.

Files are opened as one of five formats and nothing else, whatever their names say: Pillow would go by their content,
and hand PostScript, for one, to another program.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sgmjax._inputs import one_line, shown
from sgmjax.data.base import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
Range = tuple[int, int]
FULL: Range = (0, 65535)  # of 16 bits

_GREY = ("1", "L", "LA", "La", "F")  # and all whose name begins with I: integers
_ORIENTATION = 0x0112  # Exif tag; 5 to 8 swap height and width
_BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0102, 0x0106  # TIFF tags


class Header(NamedTuple):
    """What is known of an image without decoding it.

    Attributes:
        grey: whether it has one channel, but for transparency.
        size: height and width.
        deep: whether it has more than 8 bits a channel.
        frames: whether it has more than one (an animation, a TIFF of several pages).
    """

    grey: bool
    size: tuple[int, int]
    deep: bool
    frames: bool


def pil() -> Any:
    """Pillow's `Image` module.

    Raises:
        DataError: if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading images needs Pillow: pip install pillow") from error
    return Image


@contextlib.contextmanager
def _opened(file: Path | io.BytesIO, where: str) -> Iterator[Any]:
    """An image of one of the `FORMATS`; whatever goes wrong while it is used is a DataError that names it."""
    module = pil()
    try:
        with module.open(file, formats=FORMATS) as image:
            yield image
    except DataError:
        raise
    except module.UnidentifiedImageError:
        reason = "it is no PNG, JPEG, WebP, BMP or TIFF file, whatever its name says"
        raise DataError(f"cannot read the image {where} ({reason}): replace or remove the file") from None
    except (module.DecompressionBombError, module.DecompressionBombWarning):  # the latter where warnings are errors
        limit = f"it has more pixels than the {module.MAX_IMAGE_PIXELS:,} that Pillow takes for safe"
        raise DataError(f"cannot read the image {where} ({limit}): make it smaller, or cut it into several") from None
    except Exception as error:  # whatever broken files make the decoders raise
        raise DataError(f"cannot read the image {where} ({one_line(error)}): replace or remove the file") from error


def _is_grey(image: Any) -> bool:
    return image.mode in _GREY or image.mode.startswith("I")


def _is_deep(image: Any) -> bool:
    """Whether an opened, not yet decoded image has more than 8 bits a channel.

    Pillow's mode does not say so of colours, of which it reads the high 8 bits.
    """
    if image.mode.startswith("I"):
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    return image.format == "PNG" and any(";16" in str(tile[3]) for tile in image.tile)


def read_header(path: Path) -> Header:
    """What is known of an image file without decoding it.

    Raises:
        DataError: it is no image that can be read.
    """
    where = shown(path)
    with _opened(path, where) as image:
        _check_mode(image, where)
        width, height = image.size
        if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
            width, height = height, width
        return Header(_is_grey(image), (height, width), _is_deep(image), getattr(image, "is_animated", False))


def _check_mode(image: Any, where: str) -> None:
    if image.mode == "F":
        raise DataError(
            f"{where}: has floating-point values, of which nobody knows the range; save it with 8 or 16 bits"
        )
    if image.format == "TIFF" and image.mode.startswith("I") and image.tag_v2.get(_PHOTOMETRIC) == 0:
        raise DataError(f"{where}: 0 is white in it, which is understood of 8 bits only; save it with 0 for black")


def read_image(
    file: Path | bytes, where: str | None = None, *, value_range: Range | None = FULL, upright: bool = True
) -> np.ndarray:
    """One image as uint8 `(H, W, 1)` or `(H, W, 3)`.

    Args:
        file: its file, or the content of one.
        where: names it in errors; None: the file.
        value_range: values of images of more than 8 bits that become 0 and 255; what is outside is clipped. None:
            there must be no such image.
        upright: apply the camera's orientation tag.

    Raises:
        DataError: it is no image that can be read.
    """
    where = shown(file) if where is None else where
    with _opened(io.BytesIO(file) if isinstance(file, bytes) else file, where) as opened:
        from PIL import ImageOps

        _check_mode(opened, where)
        deep = _is_deep(opened)
        image = ImageOps.exif_transpose(opened) if upright else opened
        if deep and value_range is None:
            raise DataError(f"{where}: has more than 8 bits a channel; set data.range, the values for black and white")
        if image.mode.startswith("I"):
            assert value_range is not None
            return as_uint8(to_8_bits(np.asarray(image), value_range), where)
        if deep and value_range != FULL:
            raise DataError(
                f"{where}: has 16 bits a colour, of which only the high 8 are read; save it with 8 bits, or set "
                f"data.range={FULL} if its values fill that range"
            )
        grey = _is_grey(image)
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
            return as_uint8(np.asarray(image.convert("LA" if grey else "RGBA")), where)
        return as_uint8(np.asarray(image.convert("L" if grey else "RGB")), where)


def read_deep(path: Path) -> np.ndarray | None:
    """The values of a grey image of more than 8 bits, (H, W) integers; None of a colour one."""
    with _opened(path, shown(path)) as image:
        return np.asarray(image) if image.mode.startswith("I") else None


def to_8_bits(values: np.ndarray, value_range: Range) -> np.ndarray:
    """Integers as uint8: low to 0, high to 255, linear between, rounded (ties up), clipped outside.

    Args:
        values: integers of any shape.
        value_range: (low, high).
    """
    low, high = value_range
    above = np.clip(values.astype(np.int64), low, high) - low
    return ((510 * above + (high - low)) // (2 * (high - low))).astype(np.uint8)


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
    """A decoded image of 8 bits as `(H, W, C)` with 1 or 3 channels; what has an alpha channel is laid on white.

    Args:
        image: uint8 `(H, W)`, `(H, W, 1)`, `(H, W, 3)`, or with alpha `(H, W, 2)`, `(H, W, 4)`.
        where: names the image in errors.

    Raises:
        DataError: for other shapes and dtypes.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 2, 3, 4):
        raise DataError(f"{where}: an image of {image.dtype} {image.shape} is neither grey nor RGB of 8 or 16 bits")
    if image.shape[-1] in (2, 4):
        colour, alpha = image[:, :, :-1].astype(np.uint32), image[:, :, -1:].astype(np.uint32)
        image = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return image
