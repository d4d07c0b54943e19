"""Answers the Responses and Messages APIs over the chat route of a remote server without them."""

from __future__ import annotations

import time

from deployments.remote.relay import Relay
from truthgpt_serve.http.asgi import Message, Send
from truthgpt_serve.http.compression import replay
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.server.infer.routes import Bounds
from truthgpt_serve.server.over_chat.routes import Application, OverChat
from truthgpt_serve.server.text_limits import check_shape

LACKING = frozenset((404, 405, 501))
"""Answers of a server to a route that it does not have; a model that it lacks is 404, too, and its
chat route then says so."""
ASK_AGAIN_S = 300.0
"""How long a route that was not there is not asked for."""


class Translating:
    """Relays a request, and translates it if the remote server has no such route.

    Args:
        relay: Relays requests.
        app: The application that relays the chat route.
        name: The model name.
        bounds: What one request may take.
    """

    def __init__(self, relay: Relay, app: Application, name: str, bounds: Bounds) -> None:
        self._relay = relay
        self._bounds = bounds
        self._lacking_until_s: dict[str, float] = {}
        self._over_chat = OverChat(
            app, self._read, lambda _, raw, body: check_shape(raw, body), name
        )

    async def _read(self, connection: Connection) -> bytes:
        return await connection.read(self._bounds.max_body_bytes, self._bounds.max_request_s)

    async def __call__(self, connection: Connection, *, path: str) -> None:
        """Answers one request; `path` and errors are those of `Relay`."""
        raw = await self._read(connection)
        if time.monotonic() >= self._lacking_until_s.get(connection.path, 0.0):
            attempt = _Attempt(connection.send)
            receive = replay(raw, connection.receive)
            await self._relay(Connection(connection.scope, receive, attempt.send), path=path)
            if not attempt.is_lacking:
                return
            self._lacking_until_s[connection.path] = time.monotonic() + ASK_AGAIN_S
        await self._over_chat.translate(connection, raw)


class _Attempt:
    """The way back of a relayed request; an answer that there is no such route is dropped.

    Attributes:
        is_lacking: Whether it was that.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_lacking = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] in LACKING:
            self.is_lacking = True
        if not self.is_lacking:
            await self._send(message)
