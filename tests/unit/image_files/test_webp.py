"""WebP files of very many chunks."""

from __future__ import annotations

import struct

from PIL import Image

from tests.support.image_files import animated, create_image, directory_bomb, encode
from truthgpt_serve.image_files.webp import MAX_CHUNKS, MAX_EXIF, find_webp_fault


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def test_usual_files() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    usual = encode(create_image(), "WEBP", exif=exif, icc_profile=bytes(9000), xmp=b"x" * 999)
    for data in (usual, animated("WEBP")):
        assert find_webp_fault(data) is None
        for cut in range(12, len(data), 7):
            assert find_webp_fault(data[:cut]) is None


def test_many_chunks() -> None:
    data = encode(create_image(), "WEBP")
    assert find_webp_fault(data + chunk(b"abcd", b"x") * 1000) is None
    fault = f"is a WebP of more than {MAX_CHUNKS} chunks: save it anew"
    assert find_webp_fault(data + chunk(b"abcd", b"x") * MAX_CHUNKS) == fault
    assert find_webp_fault(data + chunk(b"ANMF", bytes(8192)) * 5000) is None


def test_exif() -> None:
    data = encode(create_image(), "WEBP")
    fault = "is a WebP whose EXIF has too many entries or numbers: save it anew"
    assert find_webp_fault(data + chunk(b"EXIF", directory_bomb(60_000, 3000))) == fault
    fault = f"is a WebP of more than {MAX_EXIF} chunks of EXIF: save it anew"
    assert find_webp_fault(data + chunk(b"EXIF") * (MAX_EXIF + 1)) == fault
