"""Compressed bodies, both ways, with a bound on what one may become; knows no requests."""

from __future__ import annotations

import zlib

from truthgpt_serve.errors import RequestError, TooLargeError, UnsupportedError

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What zlib calls the two forms: RFC 9110's deflate is a zlib stream."""
_ALIASES = {"x-gzip": "gzip", "identity": "", "": ""}
FREE_BYTES = 64 * 2**20
"""Up to this, a body may become what it will: a client can as well send so much."""
MAX_GROWTH = 4
"""How many times larger a body beyond that may become."""
_LEVEL = 1
_SAMPLE_BYTES = 64 * 1024
_WORTH = 0.9
"""A body whose beginning does not become smaller than this share of it is sent as it is."""


def content_coding(header: bytes) -> str:
    """Returns the coding that `Content-Encoding` names: gzip, deflate, or "" for none.

    Raises:
        UnsupportedError: It names another, or several.
    """
    name = header.decode("latin-1").strip().lower()
    coding = _ALIASES.get(name, name)
    if coding and coding not in _WINDOW_BITS:
        raise UnsupportedError(f"Content-Encoding is gzip or deflate, not {name[:40]!r}")
    return coding


def decompress(data: bytes, coding: str, max_body_bytes: int) -> bytes:
    """Returns the whole body, whose compressed form is `data`.

    Raises:
        TooLargeError: It would be longer than `max_body_bytes`, or far longer than `data`.
        RequestError: It is damaged, cut off, or followed by other bytes.
    """
    max_bytes = min(max_body_bytes, max(FREE_BYTES, MAX_GROWTH * len(data)))
    inflater = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        body = inflater.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(f"the body is not valid {coding}: {error}") from None
    if len(body) > max_bytes:
        raise TooLargeError(
            f"the body is larger than {max_bytes} bytes without its compression, the most that "
            f"one of {len(data)} bytes may become: send it without compression"
        )
    if not inflater.eof:
        raise RequestError(f"the body is not valid {coding}: it is cut off")
    if inflater.unused_data:
        raise RequestError(
            f"the body has {len(inflater.unused_data)} bytes behind the end of its {coding}"
        )
    return body


def accepted_coding(header: bytes) -> str:
    """Returns the coding of an answer that `Accept-Encoding` prefers: gzip, deflate, or ""."""
    best, best_weight = "", 0.0
    for item in header.decode("latin-1").lower().split(","):
        name, _, rest = item.partition(";")
        coding = _ALIASES.get(name.strip(), name.strip())
        weight = _weight(rest)
        if coding in _WINDOW_BITS and weight > best_weight:
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
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return deflater.compress(data) + deflater.flush()
