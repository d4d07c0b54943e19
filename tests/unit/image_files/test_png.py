"""PNG files of very many chunks, or of texts that hold far more than they weigh."""

from __future__ import annotations

import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from tests.support.image_files import create_image, directory_bomb, encode, png, png_chunk
from truthgpt_serve.image_files.png import (
    MAX_CHUNKS,
    MAX_COMPRESSED,
    MAX_EXIF,
    find_png_fault,
)


def with_chunks(*chunks: bytes, behind: bool = False) -> bytes:
    data = png()
    at = data.index(b"IEND") - 4 if behind else 33
    return data[:at] + b"".join(chunks) + data[at:]


def test_usual_files() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "steps: 20", zip=True)
    info.add_itxt("workflow", "{}" * 9000)
    exif = Image.Exif()
    exif[0x112] = 6
    data = encode(create_image(), pnginfo=info, exif=exif, icc_profile=bytes(9000))
    assert find_png_fault(data) is None
    for cut in range(0, len(data), 7):
        assert find_png_fault(data[:cut]) is None
    assert find_png_fault(data + bytes(99)) is None


@pytest.mark.parametrize("kind", [b"tEXt", b"abCd", b"IDAT", b"tRNS", b"fdAT"])
@pytest.mark.parametrize("behind", [False, True])
def test_many_chunks(kind: bytes, behind: bool) -> None:
    data = with_chunks(*[png_chunk(kind)] * MAX_CHUNKS, behind=behind)
    assert find_png_fault(data) == f"is a PNG of more than {MAX_CHUNKS} chunks: save it anew"
    assert find_png_fault(with_chunks(*[png_chunk(kind)] * 1000, behind=behind)) is None


def test_large_files_have_more_chunks() -> None:
    assert find_png_fault(with_chunks(*[png_chunk(b"IDAT", bytes(8192))] * 5000)) is None


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_many_compressed_texts(kind: bytes) -> None:
    chunk = png_chunk(kind, b"k\0\0" + zlib.compress(bytes(2**20)))
    assert find_png_fault(with_chunks(*[chunk] * MAX_COMPRESSED)) is None
    fault = find_png_fault(with_chunks(*[chunk] * (MAX_COMPRESSED + 1)))
    assert fault == f"is a PNG of more than {MAX_COMPRESSED} compressed texts: save it anew"


BOMB = directory_bomb(100_000, 5000)
RAW = b"\nexif\n  100000\n" + BOMB.hex().encode() + b"\n"
PACKED = zlib.compress(RAW)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"eXIf", BOMB),
        png_chunk(b"eXIf", b"Exif\0\0" * 3 + BOMB),
        png_chunk(b"tEXt", b"Raw profile type exif\0" + RAW),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + PACKED),
        png_chunk(b"iTXt", b"Raw profile type exif\0\0\0en\0k\0" + RAW),
        png_chunk(b"iTXt", b"Raw profile type exif\0\1\0en\0k\0" + PACKED),
    ],
)
def test_exif_that_holds_more_than_it_weighs(chunk: bytes, behind: bool) -> None:
    fault = find_png_fault(with_chunks(chunk, behind=behind))
    assert fault == "is a PNG whose EXIF has too many entries or numbers: save it anew"


def test_exif_of_one_file_is_looked_at_a_few_times_only() -> None:
    chunk = png_chunk(b"eXIf", b"II*\0" + struct.pack("<LHL", 8, 0, 0))
    assert find_png_fault(with_chunks(*[chunk] * MAX_EXIF)) is None
    fault = find_png_fault(with_chunks(*[chunk] * (MAX_EXIF + 1)))
    assert fault == f"is a PNG of more than {MAX_EXIF} chunks of EXIF: save it anew"


@pytest.mark.parametrize(("number", "is_read"), [(1, True), (256, True), (257, False)])
def test_more_transparent_colors_than_a_palette_has(number: int, is_read: bool) -> None:
    fault = find_png_fault(with_chunks(png_chunk(b"tRNS", bytes(number))))
    words = "is a PNG with transparency for more than 256 colors: save it anew"
    assert fault == (None if is_read else words)
