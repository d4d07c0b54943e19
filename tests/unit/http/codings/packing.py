"""Packs bodies for the tests of this folder, and unpacks them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

from backports import zstd

from truthgpt_serve.http.codings.body import decompress
from truthgpt_serve.http.codings.growth import Grown

MIB = 2**20
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}


async def whole(data: bytes, coding: str, max_bytes: int = 2**30) -> bytes:
    with Grown().body() as growth:
        return b"".join(await decompress(data, coding, max_bytes, growth.reach))


def bomb(num_bytes: int) -> bytes:
    """Returns what becomes this many bytes, without ever having had them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (num_bytes // MIB)
