"""Tells bitmaps of run lengths, which Pillow decodes in Python, and whose steps it fills at once.

A file of 1 kB can have it make gigabytes.
"""

from __future__ import annotations

_RUN_LENGTHS = (1, 2)
_HEADER_BYTES, _COMPRESSION = slice(14, 18), slice(30, 34)


def find_bmp_fault(data: bytes) -> str | None:
    """Returns what is at fault with a BMP file, or None."""
    if int.from_bytes(data[_HEADER_BYTES], "little") < 40:  # the oldest form has no compression
        return None
    if int.from_bytes(data[_COMPRESSION], "little") in _RUN_LENGTHS:
        return "is a BMP of run lengths, which is not supported: save it as a PNG"
    return None
