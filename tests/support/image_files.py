"""Image files for tests, good and bad ones; knows no test."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def create_image(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """An image whose pixels all differ from their neighbors, so that turning it shows."""
    image = Image.new("RGB", (width, height))
    image.putdata([(x * 6 % 256, y * 8 % 256, 9) for y in range(height) for x in range(width)])
    return image.convert(mode)


def png(width: int = 40, height: int = 30, mode: str = "RGB") -> bytes:
    return encode(create_image(width, height, mode))


def mask_png(width: int = 40, height: int = 30, *, transparent: bool = True) -> bytes:
    """A mask whose left half is transparent."""
    mask = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    if transparent:
        mask.paste((0, 0, 0, 0), (0, 0, width // 2, height))
    return encode(mask)


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises very many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def directory_bomb(size: int, entries: int, kind: int = 7) -> bytes:
    """A TIFF directory, as EXIF is, whose entries all name nearly all of its bytes.

    Args:
        size: Its bytes.
        entries: Entries beside the one that turns the image.
        kind: 7 for bytes, 3 for numbers of two bytes.
    """
    start = 26 + 12 * entries
    number = (size - start) // (2 if kind == 3 else 1)
    lines = [(0x112, 3, 1, 6), *((0x1000 + at, kind, number, start) for at in range(entries))]
    packed = b"".join(struct.pack("<HHLL", *line) for line in lines)
    head = b"II*\0" + struct.pack("<LH", 8, len(lines)) + packed + bytes(4)
    return head + bytes(size - len(head))


def jpeg_of_scans(number: int, width: int = 16, height: int = 16) -> bytes:
    """A progressive JPEG that repeats its last scan until it has a number of them."""
    data = encode(Image.new("RGB", (width, height)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * (number - data.count(b"\xff\xda") + 1) + data[-2:]


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in (0, 100, 200)]
    return encode(frames[0], form, save_all=True, append_images=frames[1:], duration=50)
