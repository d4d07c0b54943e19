"""Decodes image files into pixels of a given size.

The same file and the same cut give the same pixels every time.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.training.data.image_folder import is_file

MAX_PIXELS = 2**26
"""Pixels of a file at most, 8192x8192 for instance: a small file can stand for a huge image."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Formats that are read: PIL hands some others, such as EPS, to outside programs."""

Pixels = NDArray[np.uint8]


class ImageFileError(TruthGPTError):
    """An image that cannot be used; the message says why, and whoever knows the row says where."""


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Cut:
    """What of an image is kept, where its shape is not the one that is asked for.

    Attributes:
        left: Share of what is too wide that is cut off on the left, from 0 to 1.
        top: Share of what is too high that is cut off at the top.
        flip: Whether the image is mirrored first, left to right.
    """

    left: float = 0.5
    top: float = 0.5
    flip: bool = False


CENTER = Cut()
SIZES_TURNED_BY = frozenset({5, 6, 7, 8})
"""EXIF orientations whose images lie on their side."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was resized and cut.

    Attributes:
        pixels: Of shape (3, height, width), RGB, transparency laid over white, upright.
        full: The image's own size, upright.
        time_ids: Height and width of the image itself, top and left of the cut after resizing,
            height and width of the cut: SDXL's `time_ids`, in their order.
    """

    pixels: Pixels
    full: Size
    time_ids: tuple[int, int, int, int, int, int]


def load_image(image: Any, size: Size, cut: Cut = CENTER) -> Loaded:
    """Returns an image resized until it covers a size, and what is too much cut off.

    Args:
        image: A path, a file's bytes, a PIL image, or a mapping with `bytes` or `path`.
        size: Of the result.
        cut: What is kept.

    Raises:
        ImageFileError: It is not such an image, is damaged, or has too many pixels.
    """
    with _reading(image) as opened:
        whole = _flatten(ImageOps.exif_transpose(opened))
        full = Size(*whole.size)
        kept = _cut(whole, size, cut)
    pixels = np.ascontiguousarray(np.asarray(kept, dtype=np.uint8).transpose(2, 0, 1))
    return Loaded(pixels, full, time_ids_of(full, size, cut))


def read_size(image: Any) -> Size:
    """Returns the upright size of an image; reads its header only.

    Raises:
        ImageFileError: As of `load_image`, but for damage behind the header.
    """
    with _reading(image) as opened:
        width, height = opened.size
        turned = opened.getexif().get(ExifTags.Base.Orientation) in SIZES_TURNED_BY
    return Size(height, width) if turned else Size(width, height)


def time_ids_of(full: Size, size: Size, cut: Cut) -> tuple[int, int, int, int, int, int]:
    """Returns what `Loaded.time_ids` says of an image of this full size."""
    width, height = size
    if full.width * height > full.height * width:  # too wide
        width = height * full.width // full.height
    else:
        height = width * full.height // full.width
    top, left = (height - size.height) * cut.top, (width - size.width) * cut.left
    return (full.height, full.width, round(top), round(left), size.height, size.width)


@contextmanager
def _reading(image: Any) -> Iterator[Image.Image]:
    """Opens an image and checks it; whatever fails while it is read becomes an error of ours."""
    with warnings.catch_warnings():
        # PIL's own limit comes in two steps; ours is the lower one and gives an error of ours.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with _open(image) as opened:
                check_size(opened)
                _check_still(opened)
                yield opened
        except ImageFileError:
            raise
        except Exception as error:  # PIL's decoders raise whatever their arithmetic meets
            raise ImageFileError(f"{_name(image)} cannot be decoded: {_reason(error)}") from error


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


def _cut(image: Image.Image, size: Size, cut: Cut) -> Image.Image:
    if cut.flip:
        image = ImageOps.mirror(image)
    if image.size == size:
        return image
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS, centering=(cut.left, cut.top))


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
