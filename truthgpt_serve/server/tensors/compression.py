"""Compressed answers. Bodies of requests come decompressed."""

from __future__ import annotations

import zlib

from truthgpt_serve.http.codings.decoder import ZLIB_WINDOW_BITS

_ALIASES = {"x-gzip": "gzip", "identity": "", "": ""}
_LEVEL = 1
_SAMPLE_BYTES = 64 * 1024
_WORTH = 0.9
"""A body whose beginning does not become smaller than this share of it is sent as it is."""


def accepted_coding(header: bytes) -> str:
    """Returns the coding of an answer that `Accept-Encoding` prefers: gzip, deflate, or ""."""
    best, best_weight = "", 0.0
    for item in header.decode("latin-1").lower().split(","):
        name, _, rest = item.partition(";")
        coding = _ALIASES.get(name.strip(), name.strip())
        weight = _weight(rest)
        if coding in ZLIB_WINDOW_BITS and weight > best_weight:
            best, best_weight = coding, weight
    return best


def _weight(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def compress(body: bytes, coding: str) -> bytes | None:
    """Returns the body in a coding, or None where that saves too little to be worth the time."""
    sample = body[:_SAMPLE_BYTES]
    if len(_deflate(sample, coding)) > _WORTH * len(sample):
        return None
    return _deflate(body, coding)


def _deflate(data: bytes, coding: str) -> bytes:
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, ZLIB_WINDOW_BITS[coding])
    return deflater.compress(data) + deflater.flush()
