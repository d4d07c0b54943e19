"""Decompresses a body piece by piece.

Content codings: https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1. Data may have several parts,
one behind the other: members of gzip (RFC 1952) or frames of zstd (RFC 8878).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol

from backports import zstd

from truthgpt_serve.errors import CodingError

CODINGS = ("gzip", "deflate", "zstd")
_ALIASES = {"x-gzip": "gzip", "identity": ""}
ZLIB_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What zlib calls the two forms: RFC 9110's deflate is a zlib stream."""
_ZSTD_WINDOW_LOG = 23
"""8 MiB, the most that RFC 9659 lets a client ask for: a window is memory, whatever comes of it."""
PIECE_BYTES = 256 * 1024
"""What is decompressed at a time. A body that is no larger takes less time than a thread would."""
MAX_PARTS = 256
"""Most members or frames of one body: each takes 20 µs to begin, however short it is."""
_PARTS_PIECE_BYTES = 16 * 1024
"""What of later parts is decompressed at a time: what follows a part is copied at its end."""
_MAGIC = {
    "gzip": (b"\x1f\x8b",),
    "deflate": (),
    "zstd": (b"\x28\xb5\x2f\xfd", *(b"%c\x2a\x4d\x18" % byte for byte in range(0x50, 0x60))),
}
"""How the parts of each coding begin; zstd has frames to be skipped, too."""


class CorruptError(ValueError):
    """Compressed data is damaged, has too many parts or goes on behind its end, as is said."""


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _create_inflater(coding: str) -> _Inflater:
    if coding == "zstd":
        limit = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG}
        return zstd.ZstdDecompressor(options=limit)
    return zlib.decompressobj(ZLIB_WINDOW_BITS[coding])


class Decoder:
    """Decompresses one body.

    Args:
        coding: One of `CODINGS`.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflater = _create_inflater(coding)
        self._num_parts = 1
        self._held = b""

    @property
    def ended(self) -> bool:
        """Whether the compressed data is at its end, or at that of one of its parts."""
        return self._inflater.eof and not self._held

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yields what more data becomes, in pieces of at most `PIECE_BYTES`.

        Raises:
            CorruptError: The data is damaged, there is some behind its end, or it has more parts
                than `MAX_PARTS`.
        """
        view = memoryview(self._held + data)
        self._held = b""
        start = 0
        while start < len(view):
            if self._inflater.eof and not self._begin_part(view[start:]):
                return
            step = PIECE_BYTES if self._num_parts == 1 else _PARTS_PIECE_BYTES
            rest = bytes(view[start : start + step])
            yield from self._pieces(rest)
            start += len(rest) - len(self._inflater.unused_data)

    def _begin_part(self, rest: memoryview) -> bool:
        """Begins the next part; returns whether there is enough of it to know that it is one."""
        magic = _MAGIC[self._coding]
        head = bytes(rest[: len(magic[0])]) if magic else b""
        if not any(each.startswith(head) for each in magic):
            raise self._behind(len(rest))
        if len(head) < len(magic[0]):
            self._held = head
            return False
        if self._num_parts == MAX_PARTS:
            raise CorruptError(f"has more than {MAX_PARTS} parts of {self._coding}")
        self._num_parts += 1
        self._inflater = _create_inflater(self._coding)
        return True

    def _pieces(self, rest: bytes) -> Iterator[bytes]:
        more = True
        while more:
            try:
                piece = self._inflater.decompress(rest, PIECE_BYTES)
            except (zlib.error, zstd.ZstdError) as error:
                raise CorruptError(
                    f"is not valid {self._coding}, its content-encoding: {error}"
                ) from None
            if piece:
                yield piece
            # zlib gives back what it has not read yet; zstd keeps it.
            rest = getattr(self._inflater, "unconsumed_tail", b"")
            more = not self._inflater.eof and (bool(rest) or len(piece) == PIECE_BYTES)

    def _behind(self, num_bytes: int) -> CorruptError:
        return CorruptError(f"has {num_bytes} bytes behind the end of its {self._coding}")

    def finish(self) -> None:
        """Raises CorruptError when the data is cut off, or goes on by too little for a part."""
        if self._held:
            raise self._behind(len(self._held))
        if not self.ended:
            raise CorruptError(f"is not valid {self._coding}, its content-encoding: it is cut off")


def content_coding(header: bytes | None) -> str:
    """Returns the coding that `Content-Encoding` names, or "" for none.

    Raises:
        CodingError: It names another, or several.
    """
    name = (header or b"").decode("latin-1").strip().lower()
    coding = _ALIASES.get(name, name)
    if coding and coding not in CODINGS:
        raise CodingError(
            f"the body has content-encoding {name[:40]!r}: send it with one of "
            f"{', '.join(CODINGS)}, or without compression",
            accepted=CODINGS,
        )
    return coding
