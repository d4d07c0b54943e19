"""Bounds what an ASGI application reads of a request."""

from __future__ import annotations

from typing import Any

from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.http.asgi import Receive, Scope, Send
from truthgpt_serve.http.compression import replay
from truthgpt_serve.http.connection import ClientGoneError, Connection


class BoundedBodies:
    """An application whose requests have bodies of at most `max_body_bytes`.

    A body that says its length passes untouched or is refused unread; one that comes in chunks of
    which nobody knows the sum is taken in first, as the routes behind would.

    Args:
        app: The application.
        max_body_bytes: Largest body; a larger one is answered 413.
        max_request_s: How long a body in chunks may take to arrive.
    """

    def __init__(self, app: Any, *, max_body_bytes: int, max_request_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_request_s = max_request_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "http" and not self._is_small(scope):
            connection = Connection(scope, receive, send)
            try:
                body = await connection.read(self._max_body_bytes, self._max_request_s)
            except ClientGoneError:
                return
            except TruthGPTError as error:
                await connection.fail(error)
                return
            receive = replay(body, receive)
        await self._app(scope, receive, send)

    def _is_small(self, scope: Scope) -> bool:
        """Whether the head alone tells that the body is not too large."""
        small = True
        for name, value in scope["headers"]:
            if name == b"content-length":
                small = small and value.isdigit() and int(value) <= self._max_body_bytes
            elif name == b"transfer-encoding":
                return False
        return small
