"""Finds what makes an image file take far longer to read than an honest one of its size.

Pillow reads what stands around the pixels in Python, piece by piece: a million empty pieces, or a
directory whose entries all name the same bytes, hold a thread for seconds to hours.
"""

from __future__ import annotations

from collections.abc import Callable

from truthgpt_serve.image_files.bmp import find_bmp_fault
from truthgpt_serve.image_files.gif import find_gif_fault
from truthgpt_serve.image_files.jpeg import find_jpeg_fault
from truthgpt_serve.image_files.png import find_png_fault
from truthgpt_serve.image_files.tiff import find_tiff_fault
from truthgpt_serve.image_files.webp import find_webp_fault

KNOWN = "PNG, JPEG, WebP, GIF, BMP or TIFF"
_FORMATS: tuple[tuple[bytes, Callable[[bytes], str | None]], ...] = (
    (b"\x89PNG\r\n\x1a\n", find_png_fault),
    (b"\xff\xd8\xff", find_jpeg_fault),
    (b"RIFF", find_webp_fault),
    (b"GIF87a", find_gif_fault),
    (b"GIF89a", find_gif_fault),
    (b"BM", find_bmp_fault),
    (b"II", find_tiff_fault),
    (b"MM", find_tiff_fault),
)


def find_fault(data: bytes, *, only_known: bool = False) -> str | None:
    """Returns why a file must not be given to a decoder, or None.

    Args:
        data: The file.
        only_known: Whether a file of a format that is not looked at is at fault too.

    Returns:
        Words that follow its name: `is a PNG of more than 2000 chunks: save it anew`.
    """
    for start, find in _FORMATS:
        if data.startswith(start):
            return find(data)
    return f"is not a {KNOWN} image" if only_known else None
