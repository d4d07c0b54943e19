"""Decompresses bodies piece by piece, with bounds on what one, and all together, may become.

Content codings: https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1. Data may have several parts,
one behind the other: members of gzip (RFC 1952) or frames of zstd (RFC 8878).
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

from truthgpt_serve.errors import CodingError, OverloadedError, RequestError, TooLargeError
from truthgpt_serve.http.asgi import LEAVING_KEY, Receive, Replay, Scope

CODINGS = ("gzip", "deflate", "zstd")
_ALIASES = {"x-gzip": "gzip", "identity": ""}
ZLIB_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What zlib calls the two forms: RFC 9110's deflate is a zlib stream."""
_ZSTD_WINDOW_LOG = 23
"""8 MiB, the most that RFC 9659 lets a client ask for: a window is memory, whatever comes of it."""
PIECE_BYTES = 256 * 1024
"""What is decompressed at a time. A body that is no larger takes less time than a thread would."""
FREE_BYTES = 2**20
"""Up to this, a body may become what it will."""
MAX_GROWTH = 16
"""How many times larger a body beyond that may become: more than text does, and little enough that
filling a service takes its clients about as long as it would without compression."""
MAX_GROWN_BYTES = 256 * 2**20
"""How much longer all bodies of one process together may be than they came. Else many small
requests, which cost their clients nothing, would fill the memory."""
NUM_THREADS = 2
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
    def body(self) -> Iterator[Growth]:
        """Counts one body while the block runs, or until it is released."""
        growth = Growth(self)
        try:
            yield growth
        finally:
            growth.release()

    def _take(self, num_bytes: int, of_body: int) -> None:
        if of_body > self._max_bytes:
            raise TooLargeError(
                f"the body becomes over {self._max_bytes} bytes longer without its compression: "
                "send it without compression"
            )
        if self._num_bytes + num_bytes > self._max_bytes:
            raise OverloadedError(
                "too many compressed bodies are being worked on; try again, or send this one "
                "without compression"
            )
        self._num_bytes += num_bytes


class Growth:
    """How much longer one body is than it came; threads may call it.

    Args:
        all_bodies: Those of the process.
    """

    def __init__(self, all_bodies: Grown) -> None:
        self._all = all_bodies
        self._taken = 0
        self._released = False

    def reach(self, num_bytes: int) -> None:
        """Counts so many bytes in all for this body.

        Raises:
            TooLargeError: They are more than all bodies together may have.
            OverloadedError: They are with those of other bodies, or this one was released.
        """
        with self._all._lock:
            if self._released:  # a thread goes on after its request was cancelled: this ends it
                raise OverloadedError("the request has ended")
            if num_bytes > self._taken:
                self._all._take(num_bytes - self._taken, num_bytes)
                self._taken = num_bytes

    def release(self) -> None:
        """Counts nothing any more: the body was sent on or parsed, or its request has ended."""
        with self._all._lock:
            self._all._num_bytes -= self._taken
            self._taken = 0
            self._released = True


async def decompress(
    data: bytes, coding: str, max_body_bytes: int, reach: Callable[[int], None]
) -> list[bytes]:
    """Returns the pieces of the whole body, whose compressed form is `data`.

    What is longer than `PIECE_BYTES` is decompressed in a thread.

    Args:
        data: All of it.
        coding: One of `CODINGS`.
        max_body_bytes: The longest body.
        reach: Counts what the body has grown by; see `Growth.reach`.

    Raises:
        TooLargeError: It would be longer than that, or far longer than `data`.
        RequestError: It is damaged, cut off, or followed by other bytes.
        OverloadedError: All such bodies together are too long.
    """
    max_bytes = min(max_body_bytes, max(FREE_BYTES, MAX_GROWTH * len(data)))
    decoder = Decoder(coding)
    pieces = decoder.pieces(data)
    body: list[bytes] = []
    num_bytes = 0

    def read() -> bool:
        """Reads a piece; returns whether there may be more."""
        nonlocal num_bytes
        piece = next(pieces, None)
        if piece is None:
            decoder.finish()
            return False
        body.append(piece)
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes, len(data))
        if num_bytes > PIECE_BYTES:
            reach(num_bytes - len(data))
        return True

    def read_all() -> list[bytes]:
        while read():
            pass
        return body

    try:
        while len(data) <= PIECE_BYTES and num_bytes < PIECE_BYTES:
            if not read():
                return body
        return await asyncio.get_running_loop().run_in_executor(_threads(), read_all)
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


def plain_request(
    scope: Scope, receive: Receive, body: list[bytes], release: Callable[[], None]
) -> tuple[Scope, Receive]:
    """Returns a request with its body decompressed, as if it had come so.

    Args:
        scope: The request.
        receive: Its `receive`, of which the body has been read.
        body: The pieces of the body without compression; taken out as they are read.
        release: See `Replay`.
    """
    replaced = (b"content-encoding", b"content-length", b"transfer-encoding")
    headers = [line for line in scope["headers"] if line[0] not in replaced]
    headers.append((b"content-length", b"%d" % sum(map(len, body))))
    plain = {**scope, "headers": headers}
    plain.pop(LEAVING_KEY, None)  # whoever waits for the client then asks behind the body
    return plain, Replay(body, receive, release)
