"""Reads compressed answers of the remote server without their compression."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from truthgpt_serve.errors import CodingError, UpstreamError
from truthgpt_serve.http.asgi import Headers
from truthgpt_serve.http.codings.decoder import CorruptError, Decoder, content_coding

Read = Callable[[], Awaitable[tuple[bytes, bool]]]
"""Returns the next bytes, and whether more follow."""

_ENCODING, _LENGTH = b"content-encoding", b"content-length"


def find_coding(headers: Headers, label: str) -> str:
    """Returns the coding of an answer, or "" for none.

    Args:
        headers: The answer's, names in lower case.
        label: The server, for messages.

    Raises:
        UpstreamError: It is one that was not asked for and that cannot be read.
    """
    values = [value for name, value in headers if name == _ENCODING]
    try:
        return content_coding(b", ".join(values))
    except CodingError:
        shown = b", ".join(values)[:40].decode("latin-1")
        raise UpstreamError(
            f"{label} answers with content-encoding {shown!r}, which was not requested"
        ) from None


def without_coding(headers: Headers) -> Headers:
    """Returns the headers of the same answer without its compression."""
    return [line for line in headers if line[0] not in (_ENCODING, _LENGTH)]


class DecodedBody:
    """A body without its compression, in pieces of a bounded size, as they come.

    Args:
        coding: Its coding.
        read: Reads it.
        label: The server, for messages.
    """

    def __init__(self, coding: str, read: Read, label: str) -> None:
        self._decoder = Decoder(coding)
        self._read = read
        self._label = label
        self._pieces: Iterator[bytes] = iter(())
        self._held = b""
        self._is_empty = True
        self._all_read = False

    async def read(self) -> tuple[bytes, bool]:
        """Returns the next bytes, at least one, and whether more follow; at the end none.

        Raises:
            TruthGPTError: The answer broke off, or is damaged.
        """
        try:
            piece = await self._next()
            if not piece:
                return b"", False
            self._held = next(self._pieces, b"")
        except CorruptError as error:
            raise UpstreamError(f"{self._label} answered a body that {error}") from None
        if self._held:
            await asyncio.sleep(0)  # a small body may become a long one: others have their turn
        return piece, bool(self._held) or not (self._all_read and self._decoder.ended)

    async def _next(self) -> bytes:
        piece, self._held = self._held or next(self._pieces, b""), b""
        while not piece:
            if self._all_read:
                if not self._is_empty:  # an answer to HEAD has no body
                    self._decoder.finish()
                return b""
            data, more = await self._read()
            self._all_read = not more
            self._is_empty = self._is_empty and not data
            self._pieces = self._decoder.pieces(data)
            piece = next(self._pieces, b"")
        return piece
