"""Counts the chunks of a PNG file, and looks at those that hold more than they weigh.

The format: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import zlib

from truthgpt_serve.image_files.tiff import find_exif_fault

MAX_CHUNKS = 2000
"""Most chunks of a small file."""
_CHUNK_BYTES = 1024
"""A larger file may have one for so many bytes; usual encoders write 8 kB and more into one."""
MAX_COMPRESSED = 32
"""Most chunks of compressed text or profiles, of which each may become 1 MB."""
_COMPRESSED = (b"iCCP", b"zTXt", b"iTXt")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_EXIF_KEY = b"Raw profile type exif"
"""The text in which ImageMagick writes EXIF, as lines of hexadecimal digits."""
_MAX_EXIF_TEXT = 1 << 20
MAX_EXIF = 4
"""Most chunks with EXIF; there should be one."""
MAX_ALPHAS = 256
"""Most bytes of `tRNS`, one for each color of the longest palette: Pillow fails with more, but only
when the image is converted."""


def find_png_fault(data: bytes) -> str | None:
    """Returns what is at fault with a PNG file, or None."""
    most = max(MAX_CHUNKS, len(data) // _CHUNK_BYTES)
    at, num_chunks, num_compressed, num_exif = 8, 0, 0, 0
    while at + 8 <= len(data):
        num_chunks += 1
        kind, start = data[at + 4 : at + 8], at + 8
        at = start + int.from_bytes(data[at : at + 4]) + 4
        num_compressed += kind in _COMPRESSED
        if kind == b"tRNS" and at - 4 - start > MAX_ALPHAS:
            return f"is a PNG with transparency for more than {MAX_ALPHAS} colors: save it anew"
        has_exif = kind == b"eXIf" or (kind in _TEXTS and data.startswith(_EXIF_KEY, start))
        num_exif += has_exif
        for number, maximum, what in (
            (num_chunks, most, "chunks"),
            (num_compressed, MAX_COMPRESSED, "compressed texts"),
            (num_exif, MAX_EXIF, "chunks of EXIF"),
        ):
            if number > maximum:
                return f"is a PNG of more than {maximum} {what}: save it anew"
        if has_exif and (fault := _find_exif_fault(kind, data[start : at - 4])) is not None:
            return fault
    return None


def _find_exif_fault(kind: bytes, body: bytes) -> str | None:
    if kind == b"eXIf":
        return find_exif_fault(body, "PNG")
    body = body[len(_EXIF_KEY) + 1 :]
    compressed = kind == b"zTXt"
    text = body[1:] if compressed else body
    if kind == b"iTXt":
        compressed = body[:1] != b"\0"
        text = body[2:].split(b"\0", 2)[-1]
    if compressed:
        try:
            text = zlib.decompressobj().decompress(text, _MAX_EXIF_TEXT)
        except zlib.error:  # Pillow leaves it out
            return None
    try:
        exif = bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("latin-1"))
    except ValueError:  # Pillow says so
        return None
    return find_exif_fault(exif, "PNG")
