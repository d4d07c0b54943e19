"""Image files to PIL images and back.

PIL is the extra `images`: it is imported when the first image comes, and nothing else needs it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from truthgpt_serve.errors import ServerError, TooLargeError
from truthgpt_serve.image_files.bounds import find_fault
from truthgpt_serve.request_schema import bad_field

if TYPE_CHECKING:
    from PIL.Image import Image

INPUT_FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats that may come in: PIL hands some others, such as EPS, to outside programs."""
MAX_EDGE = {"jpeg": 65_500, "webp": 16_383}
"""Most pixels on a side that a format's encoder writes; png has no limit that matters."""
PNG_LEVEL = 1
"""Of zlib's 1 to 9: photograph-like pixels hardly shrink further, and 6 takes several times as
long."""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How results are written.

    Attributes:
        name: `png`, `jpeg` or `webp`.
        compression: The encoder's quality, 0 to 100, for jpeg and webp.
        opaque: Whether transparency is laid over white, also where the format could keep it.
    """

    name: str = "png"
    compression: int = 100
    opaque: bool = False

    @property
    def content_type(self) -> str:
        """The media type."""
        return f"image/{self.name}"


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A result as a file: its bytes, its width and height in pixels, whether it has alpha."""

    data: bytes
    width: int
    height: int
    transparent: bool


def load_pil() -> Any:
    """Returns the module PIL.Image.

    Raises:
        ServerError: It is not installed.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise ServerError(
            "image requests need Pillow, which is not installed here: "
            "pip install 'truthgpt-serve[images]'"
        ) from error
    return PIL.Image


def is_image(value: Any) -> bool:
    """Whether `value` is a PIL image."""
    return isinstance(value, load_pil().Image)


def decode_image(data: bytes, place: str, max_pixels: int) -> Image:
    """Returns an uploaded image as RGB, upright, transparency laid over white.

    Args:
        data: A PNG, JPEG or WebP file.
        place: Its field, for messages.
        max_pixels: The limit, checked before anything is decoded.

    Raises:
        RequestError: It is not such a file, is damaged, or has several frames.
        TooLargeError: It has too many pixels.
    """
    image = _decode(data, place, max_pixels)
    with _reading(place):
        if image.has_transparency_data:
            return _flatten(image)
        return image if image.mode == "RGB" else image.convert("RGB")


def decode_mask(data: bytes, place: str, max_pixels: int, size: tuple[int, int]) -> Image:
    """Returns an uploaded mask as 8-bit gray, white where the image is to be painted anew.

    OpenAI's masks say that with transparency: what is transparent is painted anew.

    Args:
        data: A PNG or WebP file with an alpha channel.
        place: Its field, for messages.
        max_pixels: The limit, checked before anything is decoded.
        size: Width and height that it must have.

    Raises:
        RequestError: As for an image; or it has another size, no alpha, or nothing transparent.
        TooLargeError: It has too many pixels.
    """
    import PIL.ImageChops

    image = _decode(data, place, max_pixels)
    if image.size != size:
        raise bad_field(
            place,
            f"is {image.width}x{image.height} pixels, but the image is {size[0]}x{size[1]}: "
            "they must have the same size",
        )
    if not image.has_transparency_data:
        raise bad_field(
            place,
            "has no transparency: what is transparent in the mask is painted anew, so send a PNG "
            "or WebP with an alpha channel",
        )
    with _reading(place):
        mask = PIL.ImageChops.invert(image.convert("RGBA").getchannel("A"))
    if mask.getextrema() == (0, 0):
        raise bad_field(place, "has no transparent pixel, so nothing would be painted anew")
    return mask


def _decode(data: bytes, place: str, max_pixels: int) -> Image:
    pil = load_pil()
    if not data:
        raise bad_field(place, "is an empty file")
    if (fault := find_fault(data)) is not None:
        raise bad_field(place, fault)
    try:
        image = pil.open(io.BytesIO(data), formats=INPUT_FORMATS)
    except (pil.DecompressionBombError, pil.DecompressionBombWarning):
        raise _too_many_pixels(place, "far more pixels than", max_pixels) from None
    except Exception as error:  # PIL raises many kinds for damaged data
        raise bad_field(place, "is not a PNG, JPEG or WebP image that can be read") from error
    width, height = image.size
    if width * height > max_pixels:
        found = f"{width}x{height} pixels, {width * height} in all, more than"
        raise _too_many_pixels(place, found, max_pixels)
    frames = getattr(image, "n_frames", 1)
    # A JPEG of several images is a photograph with its preview or depth: the first one is meant.
    if frames > 1 and image.format != "MPO":
        raise bad_field(place, f"is animated ({frames} frames): send a still image")
    with _reading(place):
        image.load()
        return _upright(image)


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Names the field whose pixels PIL cannot read or convert: it raises many kinds for that."""
    try:
        yield
    except Exception as error:
        raise bad_field(place, f"is damaged or cut off: {error}") from error


def _too_many_pixels(place: str, found: str, max_pixels: int) -> TooLargeError:
    return TooLargeError(
        f"`{place}` has {found} the {max_pixels} that this model takes",
        param=place,
        code="image_too_large",
    )


def _upright(image: Image) -> Image:
    import PIL.ImageOps

    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        # 16 bits a pixel: PIL cuts at 255 where the upper byte is meant.
        image = image.point(lambda value: value / 256).convert("L")
    return PIL.ImageOps.exif_transpose(image)


def _flatten(image: Image) -> Image:
    pil = load_pil()
    layers = image.convert("RGBA")
    ground = pil.new("RGBA", layers.size, "white")
    flat: Image = pil.alpha_composite(ground, layers).convert("RGB")
    return flat


def check_edges(output_format: str, size: tuple[int, int]) -> None:
    """Checks that a format can hold an image of a width and height.

    Raises:
        RequestError: One of the two is too large for it.
    """
    most = MAX_EDGE.get(output_format)
    if most is not None and max(size) > most:
        raise bad_field(
            "output_format",
            f"is {output_format}, which has at most {most} pixels on a side, but the image has "
            f"{size[0]}x{size[1]}: ask for png, or for another `size`",
        )


def encode_image(image: Image, output: OutputFormat, label: str) -> EncodedImage:
    """Returns a result as a file.

    Args:
        image: What the model made, of any mode.
        output: The format.
        label: Class and method that made it, for messages.

    Raises:
        RequestError: It is too large for the format.
        ServerError: PIL cannot write it.
    """
    check_edges(output.name, image.size)
    try:
        transparent = image.has_transparency_data
        if transparent and (output.opaque or output.name == "jpeg"):
            image, transparent = _flatten(image), False
        mode = "RGBA" if transparent else "RGB"
        if image.mode != mode and not (image.mode == "L" and output.name != "webp"):
            image = image.convert(mode)
        buffer = io.BytesIO()
        if output.name == "png":
            image.save(buffer, "PNG", compress_level=PNG_LEVEL)
        else:
            image.save(buffer, output.name.upper(), quality=output.compression)
    except Exception as error:  # of many kinds, for a size of 0 or an exotic mode
        raise ServerError(
            f"{label} made an image that cannot be written as {output.name}: {error}"
        ) from error
    return EncodedImage(buffer.getvalue(), image.width, image.height, transparent)
