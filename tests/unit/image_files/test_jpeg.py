"""JPEG files whose reading takes far longer than their pixels do are told from others."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from PIL import Image

from tests.support.image_files import directory_bomb, jpeg_of_scans
from truthgpt_serve.image_files.jpeg import (
    MAX_EXIF_BYTES,
    MAX_RESOURCES,
    MAX_SCANS,
    MAX_SEGMENTS,
    MAX_SKIPPED_BYTES,
    MAX_TABLE_BYTES,
    USUAL_SCANS,
    find_jpeg_fault,
)


def photograph(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((200, 120), 90).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def segment(marker: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_head(*pieces: bytes) -> bytes:
    data = photograph()
    return data[:2] + b"".join(pieces) + data[2:]


def exif(description: str = "x") -> Image.Exif:
    found = Image.Exif()
    found[0x112], found[0x10E] = 6, description
    found.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    return found


@pytest.mark.parametrize("progressive", [True, False])
@pytest.mark.parametrize("quality", [5, 100])
@pytest.mark.parametrize("restart", [0, 1])
def test_usual_files(progressive: bool, quality: int, restart: int) -> None:
    comment = b"\xff\xda" * 5000  # in a segment it is no marker
    data = photograph(
        progressive=progressive,
        quality=quality,
        restart_marker_blocks=restart,
        comment=comment,
        exif=exif(),
        icc_profile=bytes(300_000),
    )
    assert find_jpeg_fault(data) is None
    assert find_jpeg_fault(data[:-2]) is None


def test_the_limit_of_scans_is_of_the_first_image() -> None:
    last = jpeg_of_scans(MAX_SCANS)
    assert find_jpeg_fault(last) is None
    assert find_jpeg_fault(last + jpeg_of_scans(MAX_SCANS)) is None
    for data in (jpeg_of_scans(MAX_SCANS + 1), jpeg_of_scans(MAX_SCANS + 1)[:-2]):
        assert find_jpeg_fault(data) == f"is a JPEG of more than {MAX_SCANS} scans: save it anew"


def test_large_images_have_fewer_scans() -> None:
    assert find_jpeg_fault(jpeg_of_scans(USUAL_SCANS, 4000, 3000)) is None
    fault = find_jpeg_fault(jpeg_of_scans(USUAL_SCANS + 1, 4000, 3000))
    assert fault == f"is a JPEG of more than {USUAL_SCANS} scans: save it anew"
    assert find_jpeg_fault(jpeg_of_scans(40, 1000, 1000)) is None


APP, COMMENT, TABLES, EXIF, IMAGES, PHOTOSHOP = 0xE5, 0xFE, 0xDB, 0xE1, 0xE2, 0xED
BOMB = directory_bomb(60_000, 3000)


@pytest.mark.parametrize(
    ("pieces", "limit"),
    [
        ([segment(COMMENT)] * (MAX_SEGMENTS + 1), f"{MAX_SEGMENTS} segments"),
        ([segment(APP)] * (MAX_SEGMENTS + 1), f"{MAX_SEGMENTS} segments"),
        ([b"\xff\xd9"] * (MAX_SEGMENTS + 1), f"{MAX_SEGMENTS} segments"),
        ([b"\xff" * (MAX_SKIPPED_BYTES + 2)], f"{MAX_SKIPPED_BYTES} bytes between segments"),
        ([segment(APP), bytes(MAX_SKIPPED_BYTES + 1)], f"{MAX_SKIPPED_BYTES} bytes between"),
        ([segment(APP), b"\xff\xd0" * MAX_SKIPPED_BYTES], f"{MAX_SKIPPED_BYTES} bytes between"),
        ([segment(TABLES, b"\0" * 60_000)] * 2, f"{MAX_TABLE_BYTES} bytes of tables"),
        ([segment(EXIF, b"Exif\0\0" + bytes(60_000))] * 18, f"{MAX_EXIF_BYTES} bytes of EXIF"),
        ([segment(PHOTOSHOP, b"8BIM" * 2000)] * 3, f"{MAX_RESOURCES} resources"),
        ([segment(EXIF, b"Exif\0\0" + BOMB)], "JPEG whose EXIF has too many entries"),
        ([segment(EXIF, b"Exif\0\0" + part) for part in (BOMB[:99], BOMB[99:])], "JPEG whose EXIF"),
        ([segment(IMAGES, b"MPF\0" + BOMB)], "JPEG whose EXIF has too many entries"),
    ],
)  # fmt: skip
def test_what_pillow_reads_piece_by_piece(pieces: list[bytes], limit: str) -> None:
    fault = find_jpeg_fault(with_head(*pieces))
    assert fault is not None
    assert limit in fault
    assert find_jpeg_fault(b"\xff\xd8" + b"".join(pieces)) is not None  # without an image too


def test_segments_between_scans_count_too() -> None:
    data = photograph(progressive=True)
    assert find_jpeg_fault(data[:-2] + segment(COMMENT) * 1000 + data[-2:]) is None
    fault = find_jpeg_fault(data[:-2] + segment(COMMENT) * MAX_SEGMENTS + data[-2:])
    assert fault == f"is a JPEG of more than {MAX_SEGMENTS} segments: save it anew"


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"x" * 9])
def test_what_is_no_jpeg(data: bytes) -> None:
    assert find_jpeg_fault(data) is None
    assert find_jpeg_fault(data + bytes(100)) is None
    assert find_jpeg_fault(data + b"\xff" * 100) is None
