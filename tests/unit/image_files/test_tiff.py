"""Directories whose entries hold far more than the file."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

from tests.support.image_files import create_image, directory_bomb, encode
from truthgpt_serve.image_files.tiff import (
    MAX_ENTRIES,
    MAX_NUMBERS,
    find_exif_fault,
    find_tiff_fault,
)

FAULT = "is a TIFF whose directory has too many entries or numbers: save it anew"


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("big_tiff", [False, True])
def test_usual_files(compression: str, big_tiff: bool) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    data = encode(
        create_image(400, 300),
        "TIFF",
        compression=compression,
        big_tiff=big_tiff,
        exif=exif,
        icc_profile=bytes(9000),
    )
    assert find_tiff_fault(data) is None
    for cut in range(0, 2000, 13):
        assert find_tiff_fault(data[:cut]) is None


@pytest.mark.parametrize(
    ("size", "entries", "kind"), [(60_000, MAX_ENTRIES, 7), (60_000, 20, 7), (60_000, 3, 3)]
)
def test_entries_that_name_the_same_bytes(size: int, entries: int, kind: int) -> None:
    assert find_tiff_fault(directory_bomb(size, entries, kind)) == FAULT


def test_many_entries_and_numbers() -> None:
    few = b"II*\0" + struct.pack("<LH", 8, MAX_ENTRIES) + bytes(12) * MAX_ENTRIES + bytes(4)
    assert find_tiff_fault(few) is None
    more = b"II*\0" + struct.pack("<LH", 8, MAX_ENTRIES + 1) + bytes(12) * (MAX_ENTRIES + 1)
    assert find_tiff_fault(more) == FAULT
    for order, start in (("<", b"II*\0"), (">", b"MM\0*")):
        entry = struct.pack(f"{order}LHHHLL", 8, 1, 273, 4, MAX_NUMBERS + 1, 30)
        assert find_tiff_fault(start + entry + bytes(4 * MAX_NUMBERS + 99)) == FAULT


@pytest.mark.parametrize("tag", [0x8769, 0x8825, 0xA005])
def test_directories_within_count_too(tag: int) -> None:
    head = b"II*\0" + struct.pack("<LHHHLLL", 8, 1, tag, 4, 1, 26, 0)
    inner = directory_bomb(60_000, 30)[8:]
    assert find_exif_fault(b"Exif\0\0" + head + inner + bytes(99), "PNG") is not None
    looped = b"II*\0" + struct.pack("<LHHHLLL", 8, 1, tag, 4, 1, 8, 0)
    assert find_exif_fault(looped, "PNG") is None
    nowhere = b"II*\0" + struct.pack("<LHHHLLL", 8, 1, tag, 4, 1, 2**31, 0)
    assert find_exif_fault(nowhere, "PNG") is None
