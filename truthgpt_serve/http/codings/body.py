"""Decompresses whole bodies, with bounds on what one may become."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from truthgpt_serve.errors import RequestError, TooLargeError
from truthgpt_serve.http.asgi import LEAVING_KEY, Receive, Replay, Scope
from truthgpt_serve.http.codings.decoder import PIECE_BYTES, CorruptError, Decoder

FREE_BYTES = 2**20
"""Up to this, a body may become what it will."""
MAX_GROWTH = 16
"""How many times larger a body beyond that may become: more than text does, and little enough that
filling a service takes its clients about as long as it would without compression."""
NUM_THREADS = 2


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
