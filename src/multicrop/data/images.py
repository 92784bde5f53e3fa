"""Reading images: one policy for unusual files, and a limit against decompression bombs.

Converted: EXIF rotation is applied, CMYK and palettes become RGB, 16-bit grey and floats in 0-1 are scaled to 8 bits, alpha is
composited on white, an animation shows its first frame. Rejected with ImageError: files that cannot be decoded or are truncated, and
images with a side under 2 pixels or more than MAX_PIXELS. Errors of the disk, the network or the system are no faults of the image: they
are tried again and then raised, as are missing files and missing permission, so that they are never recorded as unreadable images.
"""

import errno
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import pyarrow
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from multicrop.files import is_passing, retrying

MAX_PIXELS = 100_000_000
MIN_SIDE = 2
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> the transformation that undoes it
SIDEWAYS = (5, 6, 7, 8)


REDUCTIONS = (8, 4, 2)  # that libjpeg decodes at, in a fraction of the time
FULL_SIZE = "full size"  # key of Image.info: width and height before the reduction
_SUFFICIENT: ContextVar[int | None] = ContextVar("sufficient side", default=None)


class ImageError(ValueError):
    """An image cannot be used; the message says why."""


def open_image(source: str | Path | bytes) -> Image.Image:
    """Decode an image as RGB.

    EXIF rotation is applied, CMYK and palettes become RGB, 16-bit grey and floats in 0-1 are scaled to 8 bits, alpha is composited on
    white, and an animation shows its first frame.

    Args:
        source: A file, or the bytes of one.

    Returns:
        The image in mode RGB.

    Raises:
        ImageError: If it cannot be decoded, is truncated, has a side under 2 pixels or more than 100 million pixels.
        FileNotFoundError: If the file does not exist.
        PermissionError: If the file may not be read.
        PersistentError: If the disk, the network or the system fails several times.
    """
    name = "image bytes" if isinstance(source, bytes) else str(source)
    return retrying(lambda: _decoded(source, name), name)


def _decoded(source: str | Path | bytes, name: str) -> Image.Image:
    """The image, after one try."""
    try:
        stream = io.BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(stream)
            check_size(image, name)
            _reduce(image)
            image.load()
            return to_rgb(upright(image))
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error} Shrink it or remove it") from error
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), name) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, ImageError | FileNotFoundError | PermissionError) or (isinstance(error, OSError) and is_passing(error)):
            raise
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(f"{name} cannot be decoded ({reason}); remove it or replace it with an intact file") from error


@contextmanager
def reduced_decoding(sufficient: int | None) -> Iterator[None]:
    """Let this thread decode JPEG files at 1/8, 1/4 or 1/2 within the block, where the shorter side keeps `sufficient` pixels.

    None: at full size. `full_size` gives the size of the image before it was reduced.
    """
    token = _SUFFICIENT.set(sufficient)
    try:
        yield
    finally:
        _SUFFICIENT.reset(token)


def full_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image in pixels, before `reduced_decoding` reduced it."""
    return image.info.get(FULL_SIZE, image.size)


def reduction_of(image: Image.Image) -> int:
    """The factor by which `reduced_decoding` reduced an image; 1 for an image at full size."""
    return max(1, round(full_size(image)[0] / image.width))


def _reduce(image: Image.Image) -> None:
    """Ask for the largest reduction of a JPEG file that is not decoded yet, if one is allowed."""
    sufficient = _SUFFICIENT.get()
    if image.format != "JPEG" or sufficient is None:
        return
    for factor in REDUCTIONS:
        if min(image.size) >= sufficient * factor:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
            image.draft(None, (width // factor, height // factor))
            image.info[FULL_SIZE] = (height, width) if turned else (width, height)
            return


def check_size(image: Image.Image, name: str) -> None:
    """Raise ImageError for an image that is too small to crop or too large to decode safely, before any pixel is decoded."""
    if min(image.size) < MIN_SIDE:
        raise ImageError(f"{name} is {image.width} x {image.height} pixels; each side needs at least {MIN_SIDE}; remove it")
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name} has {image.width} x {image.height} pixels, over the limit of {MAX_PIXELS:,}; shrink it")


def upright(image: Image.Image) -> Image.Image:
    """The image rotated by its EXIF orientation. PIL's exif_transpose also rewrites the EXIF data, and fails if an entry is malformed."""
    method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, by the policy of this module."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        brightest = 65535 if image.mode.startswith("I;16") else values.max(initial=0)
        top = next((limit for limit in (1, 255) if brightest <= limit), 65535)
        return Image.fromarray((values * 255 / top).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy an RGB image


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """The pixels of an RGB image, 0 to 255, channels last in memory."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)  # np.array(image) takes twice the time


def shared_pixels(image: Image.Image) -> UInt8[Tensor, "channels height width"]:
    """The pixels of an RGB image in PIL's own memory, not copied: red, green, blue, and an unused byte. Read only.

    Images over 16 MiB, which PIL stores in several blocks, are copied as `to_tensor` does.
    """
    try:
        values = torch.from_dlpack(pyarrow.array(image).values)
    except ValueError:
        return to_tensor(image)
    return values.view(image.height, image.width, 4).permute(2, 0, 1)
