"""Sends a request body on while it still arrives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from truthgpt_serve.body_limits import STALL_S, body_too_large, stalled_body
from truthgpt_serve.errors import SlowRequestError, TruthGPTError, UpstreamError
from truthgpt_serve.http.asgi import Message, Receive, Replay
from truthgpt_serve.router.upstream import UpstreamConnection

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RequestBody:
    """What of the body has been read, and how to read the rest.

    Attributes:
        pieces: Read already.
        num_bytes: Their size.
        more: Whether there is a rest.
        receive: ASGI `receive`.
        watch: Sees each further piece before it is sent; raises RequestError to end the upload.
    """

    pieces: list[bytes]
    num_bytes: int
    more: bool
    receive: Receive
    watch: Callable[[bytes], object] = lambda piece: None

    def sent(self) -> None:
        """Lets go of what was read: it has been sent on, and need not be again."""
        self.pieces = []
        if isinstance(self.receive, Replay):
            self.receive.release()


class ClientLeftError(Exception):
    """The client closed its connection; no answer can be sent."""


def check_size(num_bytes: int, max_body_bytes: int) -> None:
    """Raises TooLargeError for a body above the limit."""
    if num_bytes > max_body_bytes:
        raise body_too_large(max_body_bytes, "the router's `max_body_bytes`")


async def receive_piece(receive: Receive) -> Message:
    """Returns the next ASGI message.

    Raises:
        SlowRequestError: Nothing more of the body came for 25 s.
    """
    try:
        async with asyncio.timeout(STALL_S):
            return await receive()
    except TimeoutError:
        raise stalled_body(STALL_S) from None


def take(message: Message, body: RequestBody) -> bytes:
    """Adds the next piece to what has been read, and returns it. Raises ClientLeftError."""
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    piece: bytes = message.get("body", b"")
    body.pieces.append(piece)
    body.num_bytes += len(piece)
    body.more = message.get("more_body", False)
    return piece


async def read_whole(receive: Receive, max_body_bytes: int) -> bytes:
    """Returns a whole body. Raises TooLargeError, SlowRequestError and ClientLeftError."""
    body = RequestBody([], 0, True, receive)
    while body.more:
        take(await receive_piece(receive), body)
        check_size(body.num_bytes, max_body_bytes)
    return b"".join(body.pieces)


async def upload(
    connection: UpstreamConnection, head: bytes, body: RequestBody, max_body_bytes: int
) -> None:
    """Sends a request whose body is not whole yet.

    Whatever goes wrong ends the exchange, so that nothing waits for an answer to half a request.

    Raises:
        TooLargeError: The body grew above the limit.
        SlowRequestError: The body stopped.
        RequestError: Another rule of the body's `watch`.
        ClientLeftError: The client left, or its connection broke.
    """
    connection.uploading = True
    try:
        await _send(connection, head, body, max_body_bytes)
    except TruthGPTError as error:
        connection.fail(error)
        raise
    except ClientLeftError:
        connection.fail(UpstreamError("the client left"))
        raise
    connection.uploading = False
    body.sent()


async def _send(
    connection: UpstreamConnection, head: bytes, body: RequestBody, max_body_bytes: int
) -> None:
    chunked = head.endswith(b"transfer-encoding: chunked\r\n\r\n")
    connection.write(head)
    pieces, more = body.pieces, True
    while True:
        for piece in pieces:
            if piece:
                connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if not more:
            break
        if not chunked:
            # Without a length only reading on keeps to the limit: Serve takes in all that a client
            # sends, whether it is asked for or not.
            await connection.drain()
        message = await _receive(body)
        pieces, more = [message.get("body", b"")], message.get("more_body", False)
        body.num_bytes += len(pieces[0])
        check_size(body.num_bytes, max_body_bytes)
        body.watch(pieces[0])
    if chunked:
        connection.write(b"0\r\n\r\n")


async def _receive(body: RequestBody) -> Message:
    try:
        message = await receive_piece(body.receive)
    except SlowRequestError:
        raise
    except Exception as error:
        logger.warning("a request body cannot be read on: %r", error)
        raise ClientLeftError from error
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    return message
