"""GIF files of very many blocks before their image."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.support.image_files import animated, encode
from truthgpt_serve.image_files.gif import MAX_BLOCKS, MAX_COMMENT_BYTES, find_gif_fault

BLOCKS = f"is a GIF of more than {MAX_BLOCKS} blocks before its image: save it anew"
COMMENTS = f"is a GIF with more than {MAX_COMMENT_BYTES} bytes of comments: save it anew"


def with_blocks(blocks: bytes) -> bytes:
    data = encode(Image.new("P", (8, 8)), "GIF")
    at = 13 + (3 << (data[10] % 8 + 1))
    return data[:at] + blocks + data[at:]


def test_usual_files() -> None:
    data = encode(Image.new("P", (8, 8)), "GIF", comment=b"c" * 9000)
    for each in (
        data,
        animated("GIF"),
        with_blocks(b"!\xff\x0bXMP DataXMP" + b"\x40" * 650 + b"\0"),
    ):
        assert find_gif_fault(each) is None
        for cut in range(0, len(each), 5):
            assert find_gif_fault(each[:cut]) is None


@pytest.mark.parametrize(
    ("blocks", "fault"),
    [
        (b"!\xfe" + b"\1c" * 17_000 + b"\0", BLOCKS),
        (b"!\xf9" + b"\1c" * 17_000 + b"\0", BLOCKS),
        (b"!\xf9\4\0\0\0\0\0" * 17_000, BLOCKS),
        (b"!\xf9\0" * 400_000, BLOCKS),
        (b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0" * 17_000, BLOCKS),
        (b"\0" * 17_000, BLOCKS),
        (b"!\xfe\1c\0" * 17_000, BLOCKS),
        (b"!\xfe" + (b"\xff" + b"c" * 255) * 300 + b"\0", COMMENTS),
        ((b"!\xfe\xff" + b"c" * 255 + b"\0") * 300, COMMENTS),
    ],
)
def test_many_blocks(blocks: bytes, fault: str) -> None:
    assert find_gif_fault(with_blocks(blocks)) == fault
    assert find_gif_fault(with_blocks(blocks)[:-20]) == fault
