"""Counts the chunks of a WebP file, and looks at its EXIF."""

from __future__ import annotations

from truthgpt_serve.image_files.tiff import find_exif_fault

MAX_CHUNKS = 2000
"""Most chunks of a small file: an animation has one for each image."""
MAX_EXIF = 4
"""Most chunks with EXIF; there should be one."""
_CHUNK_BYTES = 1024
"""A larger file may have one for so many bytes."""


def find_webp_fault(data: bytes) -> str | None:
    """Returns what is at fault with a file that begins as WebP does, or None."""
    most = max(MAX_CHUNKS, len(data) // _CHUNK_BYTES)
    at, num_chunks, num_exif = 12, 0, 0
    while at + 8 <= len(data):
        num_chunks += 1
        if num_chunks > most:
            return f"is a WebP of more than {most} chunks: save it anew"
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            num_exif += 1
            if num_exif > MAX_EXIF:
                return f"is a WebP of more than {MAX_EXIF} chunks of EXIF: save it anew"
            fault = find_exif_fault(data[at + 8 : at + 8 + size], "WebP")
            if fault is not None:
                return fault
        at += 8 + size + size % 2
    return None
