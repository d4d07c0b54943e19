"""Decompresses bodies piece by piece, with bounds on what one, and all together, may become.

Content codings: https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1, and RFC 8878 for zstd.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Protocol

from backports import zstd

from truthgpt_serve.asgi import Message, Receive, Scope
from truthgpt_serve.errors import (
    CodingError,
    OverloadedError,
    RequestError,
    TooLargeError,
)

CODINGS = ("gzip", "deflate", "zstd")
_ALIASES = {"x-gzip": "gzip", "identity": ""}
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What zlib calls the two forms: RFC 9110's deflate is a zlib stream."""
_ZSTD_WINDOW_LOG = 23
"""8 MiB, the most that RFC 9659 lets a client ask for: a window is memory, whatever comes of it."""
PIECE_BYTES = 256 * 1024
"""What is decompressed at a time. A body that is no larger takes less time than a thread would."""
FREE_BYTES = 64 * 2**20
"""Up to this, a body may become what it will: a client can as well send so much."""
MAX_GROWTH = 4
"""How many times larger a body beyond that may become."""
MAX_GROWN_BYTES = 256 * 2**20
"""How much longer all bodies of one process together may be than they came. Else many small
requests, which cost their clients nothing, would fill the memory."""
NUM_THREADS = 2


class CorruptError(ValueError):
    """Compressed data is damaged or goes on behind its end; the message says what is wrong."""


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class Decoder:
    """Decompresses one body.

    Args:
        coding: One of `CODINGS`.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflater: _Inflater
        if coding == "zstd":
            limit = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG}
            self._inflater = zstd.ZstdDecompressor(options=limit)
        else:
            self._inflater = zlib.decompressobj(_WINDOW_BITS[coding])

    @property
    def ended(self) -> bool:
        """Whether the compressed data is at its end."""
        return self._inflater.eof

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yields what more data becomes, in pieces of at most `PIECE_BYTES`.

        Raises:
            CorruptError: The data is damaged, or there is some behind its end.
        """
        view = memoryview(data)
        for start in range(0, len(view), PIECE_BYTES):
            rest = bytes(view[start : start + PIECE_BYTES])
            if self.ended:
                raise self._behind(len(data) - start)
            yield from self._pieces(rest)
            if self._inflater.unused_data:
                num_later = max(0, len(data) - start - PIECE_BYTES)
                raise self._behind(len(self._inflater.unused_data) + num_later)

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
            more = not self.ended and (bool(rest) or len(piece) == PIECE_BYTES)

    def _behind(self, num_bytes: int) -> CorruptError:
        return CorruptError(f"has {num_bytes} bytes behind the end of its {self._coding}")

    def finish(self) -> None:
        """Raises CorruptError when the data is cut off."""
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


class Grown:
    """How much longer the bodies of one process are than they came.

    Args:
        max_bytes: Most of it.
    """

    def __init__(self, max_bytes: int = MAX_GROWN_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lock = threading.Lock()

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Counts one body while the block runs; yields what adds bytes to it.

        That raises OverloadedError where all are too much.
        """
        taken, left = 0, False

        def add(num_bytes: int) -> None:
            nonlocal taken
            with self._lock:
                # A thread goes on after its request was cancelled: this ends it.
                if left or self._num_bytes + num_bytes > self._max_bytes:
                    raise OverloadedError(
                        "too many compressed bodies are being worked on; try again, or send this "
                        "one without compression"
                    )
                self._num_bytes += num_bytes
                taken += num_bytes

        try:
            yield add
        finally:
            with self._lock:
                self._num_bytes -= taken
                left = True


async def decompress(
    data: bytes, coding: str, max_body_bytes: int, add: Callable[[int], None]
) -> bytes:
    """Returns the whole body, whose compressed form is `data`.

    What is longer than `PIECE_BYTES` is decompressed in a thread.

    Args:
        data: All of it.
        coding: One of `CODINGS`.
        max_body_bytes: The longest body.
        add: Counts what the body grows by; see `Grown.body`.

    Raises:
        TooLargeError: It would be longer than that, or far longer than `data`.
        RequestError: It is damaged, cut off, or followed by other bytes.
        OverloadedError: All such bodies together are too long.
    """
    max_bytes = min(max_body_bytes, max(FREE_BYTES, MAX_GROWTH * len(data)))
    decoder = Decoder(coding)
    pieces = decoder.pieces(data)
    body = bytearray()

    def read() -> bool:
        """Reads a piece; returns whether there may be more."""
        piece = next(pieces, None)
        if piece is None:
            decoder.finish()
            return False
        body.extend(piece)
        if len(body) > max_bytes:
            raise _too_large(max_bytes, len(data))
        if len(body) > PIECE_BYTES:
            add(len(piece))
        return True

    def read_all() -> bytes:
        while read():
            pass
        return bytes(body)

    try:
        if len(data) > PIECE_BYTES or (read() and len(body) == PIECE_BYTES):
            return await asyncio.get_running_loop().run_in_executor(_threads(), read_all)
        return read_all()
    except CorruptError as error:
        raise RequestError(f"the body {error}") from None


def _too_large(max_bytes: int, num_packed: int) -> TooLargeError:
    return TooLargeError(
        f"the body is larger than {max_bytes} bytes without its compression, the most that "
        f"one of {num_packed} bytes may become: send it without compression"
    )


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads of its own: many large bodies must not keep others from the loop's."""
    return ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="decompress")


def plain_request(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """Returns a request with its body decompressed, as if it had come so.

    Args:
        scope: The request.
        receive: Its `receive`, of which the body has been read.
        body: The body without compression.
    """
    replaced = (b"content-encoding", b"content-length", b"transfer-encoding")
    headers = [line for line in scope["headers"] if line[0] not in replaced]
    headers.append((b"content-length", b"%d" % len(body)))
    return {**scope, "headers": headers}, replay(body, receive)


def replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives a body which was read, and then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again
