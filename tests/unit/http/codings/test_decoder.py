"""Compressed bodies: what they become, and which are refused."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import zlib

import pytest
from backports import zstd

from tests.unit.http.codings.packing import MIB, PACK, whole
from truthgpt_serve.errors import CodingError, RequestError, TooLargeError
from truthgpt_serve.http.codings.body import FREE_BYTES
from truthgpt_serve.http.codings.decoder import (
    CODINGS,
    MAX_PARTS,
    PIECE_BYTES,
    CorruptError,
    Decoder,
    content_coding,
)

A_MEMBER = gzip.compress(b"a", mtime=0)
"""Without the time: names of tests are the same in all workers."""
SIZES = (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 3 * MIB + 7)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["sparse", "noise"])
async def test_a_body_is_what_was_compressed(coding: str, size: int, kind: str) -> None:
    rng = random.Random(size)
    body = rng.randbytes(size)
    if kind == "sparse":  # every tenth byte is noise
        body = b"".join(b"%c---------" % byte for byte in body[: size // 10 + 1])[:size]
    packed = PACK[coding](body)
    assert await whole(packed, coding) == body
    assert await whole(packed, coding, max(1, size)) == body
    if size:
        with pytest.raises(TooLargeError):
            await whole(packed, coding, size - 1)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_data_may_come_in_any_pieces(coding: str, step: int) -> None:
    body = json.dumps(list(range(5000))).encode() + bytes(PIECE_BYTES)
    packed = PACK[coding](body)
    decoder = Decoder(coding)
    found = b""
    for start in range(0, len(packed), step):
        assert not decoder.ended
        pieces = list(decoder.pieces(packed[start : start + step]))
        assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
        found += b"".join(pieces)
    decoder.finish()
    assert found == body


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [20, 600_000])
async def test_damaged_bodies_are_refused(coding: str, size: int) -> None:
    packed = PACK[coding](random.Random(1).randbytes(size))
    for data, words in (
        (b"", "it is cut off"),
        (packed[:-1], "it is cut off"),
        (packed + b"abc", f"has 3 bytes behind the end of its {coding}"),
        (packed + bytes(PIECE_BYTES), f"has {PIECE_BYTES} bytes behind the end of its {coding}"),
        (b"{" + packed, f"is not valid {coding}"),
        (b"\x28\xb5\x2f\xfd" + b'{"model": "m"}', f"is not valid {coding}"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            await whole(data, coding)
        assert caught.value.status == 400


SKIPPED = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"
"""A frame of zstd's whose three bytes mean nothing (RFC 8878, 3.1.2)."""


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("step", [1, 7, 2**30])
async def test_a_body_may_have_several_parts(coding: str, step: int) -> None:
    noise = random.Random(2).randbytes(3 * PIECE_BYTES)
    bodies = [b"", noise, b"abc", bytes(PIECE_BYTES), noise[:100_000], b""]
    packed = [PACK[coding](body) for body in bodies]
    if coding == "zstd":
        packed = [SKIPPED, *packed, SKIPPED]
    data = b"".join(packed)
    assert await whole(data, coding) == b"".join(bodies)
    decoder = Decoder(coding)
    starts = range(0, len(data), step)
    pieces = [piece for at in starts for piece in decoder.pieces(data[at : at + step])]
    decoder.finish()
    assert decoder.ended
    assert b"".join(pieces) == b"".join(bodies)


def byte_by_byte(decoder: Decoder, data: bytes) -> None:
    for at in range(len(data)):
        list(decoder.pieces(data[at : at + 1]))
    decoder.finish()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (A_MEMBER + b"\x1f", "has 1 bytes behind the end of its gzip"),
        (A_MEMBER + b"\x1f\x8a", "has 2 bytes behind the end of its gzip"),
        (A_MEMBER + zstd.compress(b"a"), "bytes behind the end of its gzip"),
        (A_MEMBER + gzip.compress(b"b", mtime=0)[:-1], "it is cut off"),
        (A_MEMBER + b"\x1f\x8b" + bytes(20), "is not valid gzip"),
        (zstd.compress(b"a") + SKIPPED[:3], "has 3 bytes behind the end of its zstd"),
        (zstd.compress(b"a") + SKIPPED[:-1], "it is cut off"),
        (zstd.compress(b"a") + b"\x60" + SKIPPED[1:], "has 11 bytes behind the end of its zstd"),
        (zlib.compress(b"a") * 2, "has 9 bytes behind the end of its deflate"),
    ],
)
async def test_what_is_no_further_part_is_refused(data: bytes, words: str) -> None:
    coding = {b"\x1f": "gzip", b"\x78": "deflate"}.get(data[:1], "zstd")
    with pytest.raises(RequestError, match=words):
        await whole(data, coding)
    words = words.partition("has ")[0] or "behind the end"
    with pytest.raises(CorruptError, match=words):
        byte_by_byte(Decoder(coding), data)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_the_parts_of_a_body_are_bounded(coding: str) -> None:
    part, last = PACK[coding](b"a"), PACK[coding](random.Random(1).randbytes(PIECE_BYTES))
    assert len(await whole(part * (MAX_PARTS - 1) + last, coding)) == MAX_PARTS - 1 + PIECE_BYTES
    with pytest.raises(RequestError, match=f"more than {MAX_PARTS} parts of {coding}"):
        await whole(part * (MAX_PARTS + 1), coding)
    large = PACK[coding](bytes(FREE_BYTES // 2 + 1))
    with pytest.raises(TooLargeError, match="without its compression"):
        await whole(large * 2, coding)


def test_flipped_bits_never_do_more_than_raise() -> None:
    body = json.dumps({"model": "m", "x": "a b c " * 500}).encode()
    rng = random.Random(5)
    for coding, pack in PACK.items():
        packed = pack(body)
        for _ in range(300):
            data = bytearray(packed)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            with contextlib.suppress(RequestError):
                asyncio.run(whole(bytes(data), coding, MIB))


async def test_a_large_window_of_zstd_is_refused() -> None:
    """A few bytes could ask for a window of 2 GB, which is memory before anything comes of it."""
    options = {zstd.CompressionParameter.window_log: 27}
    packer = zstd.ZstdCompressor(options=options)  # type: ignore[arg-type]  # as documented
    packed = packer.compress(b"a" * 100) + packer.flush()
    with pytest.raises(RequestError, match="too much memory"):
        await whole(packed, "zstd")


@pytest.mark.parametrize("value", [None, b"", b" ", b"identity", b"Identity"])
def test_no_coding(value: bytes | None) -> None:
    assert content_coding(value) == ""


@pytest.mark.parametrize(
    ("value", "coding"), [(b" GZip ", "gzip"), (b"x-gzip", "gzip"), (b"ZSTD", "zstd")]
)
def test_codings(value: bytes, coding: str) -> None:
    assert content_coding(value) == coding


@pytest.mark.parametrize("value", [b"br", b"gzip, gzip", b"gzip,", b"x" * 1000, b"\xff"])
def test_other_codings_are_refused_with_those_that_are_not(value: bytes) -> None:
    with pytest.raises(CodingError, match="one of gzip, deflate, zstd, or without") as caught:
        content_coding(value)
    assert len(str(caught.value)) < 200
