"""Which compression a client accepts."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import numpy
import pytest

from truthgpt_serve.server.tensors.compression import (
    accepted_coding,
    compress,
)


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (b"", ""),
        (b"identity", ""),
        (b"gzip, deflate, br", "gzip"),
        (b"deflate, gzip;q=0.5", "deflate"),
        (b"gzip;q=0, deflate;q=0.0", ""),
        (b"x-gzip", "gzip"),
        (b"GZIP ; q=1.0", "gzip"),
        (b"gzip;q=high", ""),
        (b"br;q=1, *", ""),
    ],
)
def test_what_a_client_accepts(header: bytes, coding: str) -> None:
    assert accepted_coding(header) == coding


@pytest.mark.parametrize(
    ("coding", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_compressed_and_back(coding: str, unpack: Any) -> None:
    body = b"[1.0, 2.0]" * 10_000
    packed = compress(body, coding)
    assert packed is not None
    assert unpack(packed) == body
    assert len(packed) < len(body) / 10
    assert compress(numpy.random.default_rng(1).bytes(100_000), coding) is None
