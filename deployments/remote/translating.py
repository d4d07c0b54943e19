"""Answers the Responses and Messages APIs over the chat route of a remote server without them."""

from __future__ import annotations

import time

from deployments.remote.relay import Relay
from truthgpt_serve.errors import UpstreamError
from truthgpt_serve.http.asgi import Message, Send, WholeBody
from truthgpt_serve.http.caller import Bounds
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.foreign_errors import MAX_ERROR_BYTES, says_no_route
from truthgpt_serve.server.over_chat.routes import Application, OverChat
from truthgpt_serve.server.text_limits import check_shape

LACKING = frozenset((404, 405, 501))
"""Statuses of answers to a route that the server does not have; the body says whether it is so."""
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
            attempt = _Attempt(connection.send, path)
            receive = WholeBody(raw, connection.receive)
            await self._relay(Connection(connection.scope, receive, attempt.send), path=path)
            if attempt.is_held:
                raise UpstreamError("The remote server's answer broke off")
            if not attempt.is_lacking:
                return
            self._lacking_until_s[connection.path] = time.monotonic() + ASK_AGAIN_S
        await self._over_chat.translate(connection, raw)


class _Attempt:
    """The way back of a relayed request; an answer that there is no such route is dropped.

    Args:
        send: To the client.
        path: The path that was asked for.

    Attributes:
        is_lacking: Whether it was that.
    """

    def __init__(self, send: Send, path: str) -> None:
        self._send = send
        self._path = path
        self._held: list[Message] = []
        self._body = bytearray()
        self.is_lacking = False

    @property
    def is_held(self) -> bool:
        """Whether an answer has begun that may still become either."""
        return bool(self._held)

    async def send(self, message: Message) -> None:
        """Passes a message on, or holds it until it is known what the answer says."""
        is_start = message["type"] == "http.response.start"
        if not self._held and not (is_start and message["status"] in LACKING):
            await self._send(message)
            return
        self._held.append(message)
        self._body += message.get("body", b"")
        if len(self._body) <= MAX_ERROR_BYTES:
            if is_start or message.get("more_body", False):
                return
            self.is_lacking = says_no_route(self._held[0]["status"], bytes(self._body), self._path)
        held, self._held = self._held, []
        for message in () if self.is_lacking else held:
            await self._send(message)
