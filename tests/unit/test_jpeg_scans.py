"""JPEG files whose decoding takes far longer than their pixels do are told from others."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from tests.support.image_files import jpeg_of_scans
from truthgpt_serve.jpeg_scans import MAX_SCANS, has_too_many_scans


def photograph(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((200, 120), 90).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [True, False])
@pytest.mark.parametrize("quality", [5, 100])
@pytest.mark.parametrize("restart", [0, 1])
def test_usual_files(progressive: bool, quality: int, restart: int) -> None:
    comment = b"\xff\xda" * 5000  # in a segment it is no marker
    data = photograph(
        progressive=progressive, quality=quality, restart_marker_blocks=restart, comment=comment
    )
    assert not has_too_many_scans(data)


def test_the_limit_is_of_the_first_image() -> None:
    last = jpeg_of_scans(MAX_SCANS)
    assert not has_too_many_scans(last)
    assert not has_too_many_scans(last + jpeg_of_scans(MAX_SCANS))
    assert has_too_many_scans(jpeg_of_scans(MAX_SCANS + 1))
    assert has_too_many_scans(jpeg_of_scans(MAX_SCANS + 1)[:-2])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"x" * 9])
def test_what_is_no_jpeg(data: bytes) -> None:
    assert not has_too_many_scans(data)
    assert not has_too_many_scans(data + bytes(100))
    assert not has_too_many_scans(data + b"\xff" * 100)
