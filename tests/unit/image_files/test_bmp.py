"""Bitmaps of run lengths are refused."""

from __future__ import annotations

import pytest

from tests.support.image_files import create_image, encode
from truthgpt_serve.image_files.bmp import find_bmp_fault


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_usual_files(mode: str) -> None:
    data = encode(create_image(mode=mode), "BMP")
    assert find_bmp_fault(data) is None
    for cut in range(len(data)):
        assert find_bmp_fault(data[:cut]) is None


@pytest.mark.parametrize("compression", [1, 2])
def test_run_lengths(compression: int) -> None:
    data = bytearray(encode(create_image(mode="L"), "BMP"))
    data[30] = compression
    fault = "is a BMP of run lengths, which is not supported: save it as a PNG"
    assert find_bmp_fault(bytes(data)) == fault
