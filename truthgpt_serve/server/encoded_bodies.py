"""Decompresses the bodies of requests before an application sees them."""

from __future__ import annotations

from typing import Any

from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.http.asgi import Receive, Scope, Send, header
from truthgpt_serve.http.codings.body import decompress, plain_request
from truthgpt_serve.http.codings.decoder import content_coding
from truthgpt_serve.http.codings.growth import Grown, Growth
from truthgpt_serve.http.connection import ClientGoneError, Connection

_ENCODING = b"content-encoding"


class EncodedBodies:
    """An application that gets every body without compression.

    Args:
        app: The application.
        max_body_bytes: Largest body, compressed or not; a larger one is answered 413.
        max_request_s: How long a compressed body may take to arrive.
    """

    def __init__(self, app: Any, *, max_body_bytes: int, max_request_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_request_s = max_request_s
        self._grown = Grown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http" or header(scope["headers"], _ENCODING) is None:
            await self._app(scope, receive, send)
            return
        connection = Connection(scope, receive, send)
        try:
            coding = content_coding(connection.header(_ENCODING))
        except TruthGPTError as error:
            await connection.fail(error)
            return
        if coding:
            await self._decode(connection, coding, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _decode(
        self, connection: Connection, coding: str, receive: Receive, send: Send
    ) -> None:
        with self._grown.body() as growth:
            try:
                body = await self._read(connection, coding, growth)
            except ClientGoneError:
                return
            except TruthGPTError as error:
                await connection.fail(error)
                return
            await self._app(*plain_request(connection.scope, receive, body, growth.release), send)

    async def _read(self, connection: Connection, coding: str, growth: Growth) -> list[bytes]:
        packed = await connection.read(self._max_body_bytes, self._max_request_s)
        return await decompress(packed, coding, self._max_body_bytes, growth.reach)
