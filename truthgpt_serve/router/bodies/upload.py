"""Sends a request body on while it still arrives; the limits of bodies are in `body_limits.py`."""

from __future__ import annotations

import logging

from truthgpt_serve.errors import SlowRequestError, TruthGPTError, UpstreamError
from truthgpt_serve.http.asgi import Message
from truthgpt_serve.router.bodies.request_body import (
    ClientLeftError,
    RequestBody,
    check_size,
    receive_piece,
)
from truthgpt_serve.router.upstream import UpstreamConnection

logger = logging.getLogger(__name__)


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
