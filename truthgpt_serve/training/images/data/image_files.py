"""Decodes image files into squares of pixels.

Nothing is augmented: the same file gives the same pixels every time.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.training.data.image_folder import is_file

MAX_PIXELS = 2**26
"""Pixels of a file at most, 8192x8192 for instance: a small file can stand for a huge image."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Formats that are read: PIL hands some others, such as EPS, to outside programs."""

Pixels = NDArray[np.uint8]


class ImageFileError(TruthGPTError):
    """An image that cannot be used; the message says why, and whoever knows the row says where."""


def load_image(image: Any, resolution: int) -> Pixels:
    """Returns an image as a square: its shorter edge resized, then the center cut out.

    Args:
        image: A path, a file's bytes, a PIL image, or a mapping with `bytes` or `path`.
        resolution: Edge of the square in pixels.

    Returns:
        Of shape (3, resolution, resolution), RGB, transparency laid over white, upright.

    Raises:
        ImageFileError: It is not such an image, is damaged, or has too many pixels.
    """
    with warnings.catch_warnings():
        # PIL's own limit comes in two steps; ours is the lower one and gives an error of ours.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with _open(image) as opened:
                check_size(opened)
                _check_still(opened)
                square = _cut(_flatten(ImageOps.exif_transpose(opened)), resolution)
        except ImageFileError:
            raise
        except Exception as error:  # PIL's decoders raise whatever their arithmetic meets
            raise ImageFileError(f"{_name(image)} cannot be decoded: {_reason(error)}") from error
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))


def check_size(image: Image.Image) -> None:
    """Raises `ImageFileError` for an image of too many pixels; nothing is decoded for it."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        raise ImageFileError(f"the image has {size} pixels; at most {MAX_PIXELS} are read")


def _check_still(image: Image.Image) -> None:
    """Refuses an image of several frames, all but one of which would be lost."""
    # A telephone's JPEG (MPO) carries maps of depth and light as further frames.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageFileError(f"the image has {frames} frames (keep one of them)")


@contextmanager
def _open(image: Any) -> Iterator[Image.Image]:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, Image.Image):
        yield image
    elif isinstance(image, (bytes, bytearray, memoryview)):
        yield Image.open(io.BytesIO(image), formats=FORMATS)
    elif isinstance(image, (str, Path)):
        if not is_file(Path(image)):
            raise ImageFileError(f"{_name(image)} does not exist, or is no file")
        # Opened here: PIL leaves the file open when it is damaged.
        with open(image, "rb") as stream:
            yield Image.open(stream, formats=FORMATS)
    else:
        raise ImageFileError(f"expected an image, a path or a file's bytes, found {_name(image)}")


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # PIL would cut 16 bits off at 255, which makes nearly all of it white.
        levels = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(np.rint(np.clip(levels, 0, 65535) / 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _cut(image: Image.Image, resolution: int) -> Image.Image:
    if image.size == (resolution, resolution):
        return image
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def _name(image: Any) -> str:
    if isinstance(image, (str, Path)):
        return f"the file {str(image)!r}"
    if isinstance(image, Mapping) and image.get("path"):
        return f"the file {str(image['path'])!r}"
    if isinstance(image, (bytes, bytearray, memoryview, Mapping)):
        return "the image"
    return "nothing" if image is None else f"a value of type {type(image).__name__}"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return str(error) or type(error).__name__
