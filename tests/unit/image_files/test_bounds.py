"""One look at a file finds its format and what is at fault."""

from __future__ import annotations

import io
import time

import PIL.ImageOps
import pytest
from PIL import Image

from tests.support.image_files import create_image, directory_bomb, encode, png, png_chunk
from truthgpt_serve.image_files.bounds import KNOWN, find_fault

SIZE = 16 * 2**20
MOST_S = 0.5
"""For files that Pillow takes 2 to 60 s for on a machine that takes 0.05 s here."""


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_usual_files(form: str) -> None:
    data = encode(create_image(), form)
    assert find_fault(data) is None
    assert find_fault(data, only_known=True) is None


@pytest.mark.parametrize("data", [b"", b"x", b"8BPS", encode(create_image(), "PPM")])
def test_other_formats(data: bytes) -> None:
    assert find_fault(data) is None
    assert find_fault(data, only_known=True) == f"is not a {KNOWN} image"


def with_pieces(form: str, pieces: bytes) -> bytes:
    data = encode(create_image(mode="L"), form)
    palette = 13 + (3 << (data[10] % 8 + 1))
    at = {"PNG": 33, "JPEG": 2, "WEBP": len(data), "GIF": palette}[form]
    return data[:at] + pieces + data[at:]


def attack(form: str, piece: bytes) -> bytes:
    return with_pieces(form, piece * (SIZE // len(piece)))


@pytest.mark.parametrize(
    "data",
    [
        attack("PNG", png_chunk(b"abCd")),
        attack("PNG", png_chunk(b"tEXt", b"a\0")),
        attack("JPEG", b"\xff\xfe\0\2"),
        attack("JPEG", b"\xff"),
        attack("WEBP", b"EXIF\0\0\0\0"),
        attack("GIF", b"\0"),
        directory_bomb(SIZE, 2001),
        png()[:33] + png_chunk(b"eXIf", directory_bomb(SIZE, 20, 3)),
    ],
    ids=range(8),
)
def test_a_large_file_is_refused_at_once(data: bytes) -> None:
    began_s = time.process_time()
    assert find_fault(data) is not None
    assert time.process_time() - began_s < MOST_S


@pytest.mark.parametrize(
    ("form", "piece", "number"),
    [
        ("PNG", png_chunk(b"abCd"), 1900),
        ("PNG", png_chunk(b"tEXt", b"a\0"), 1900),
        ("JPEG", b"\xff\xfe\0\2", 4000),
        ("JPEG", b"\xff", 65000),
        ("GIF", b"!\xfe\1c\0", 5000),
        ("GIF", b"\0", 16000),
        ("WEBP", b"abcd\0\0\0\0", 1900),
    ],
)
def test_what_passes_is_read_at_once(form: str, piece: bytes, number: int) -> None:
    data = with_pieces(form, piece * number)
    assert find_fault(data) is None
    began_s = time.process_time()
    with Image.open(io.BytesIO(data)) as image:
        PIL.ImageOps.exif_transpose(image)
    assert time.process_time() - began_s < MOST_S
