"""Answers of an engine that died: 503 in the envelope with `Retry-After`, and an event in streams.

vLLM gives 500, since it is about to end its own server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from truthgpt_serve.errors import UnavailableError
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, relative_path, send_error
from truthgpt_serve.http.envelope import error_event
from truthgpt_serve.http.sse import is_event_stream


class DeadEngineAnswers:
    """vLLM's application, whose failures are those of a dead engine once it is dead.

    Args:
        app: vLLM's application.
        is_dead: Whether the engine is dead; asked for each message, so it must be quick.
        name: The model name, for messages.
    """

    def __init__(self, app: Any, is_dead: Callable[[], bool], name: str) -> None:
        self._app = app
        self._is_dead = is_dead
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "POST" and self._is_dead():
            await send_error(send, self._error(), path=relative_path(scope))
            return
        answer = _Answer(send, self._is_dead, self._error, relative_path(scope))
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            if not self._is_dead() or answer.started:
                raise
            await send_error(send, self._error(), path=relative_path(scope))

    def _error(self) -> UnavailableError:
        return UnavailableError(
            f"The engine of the model {self._name!r} died and is being replaced; "
            "try again in a few seconds"
        )


class _Answer:
    """The way back of one request."""

    def __init__(
        self,
        send: Send,
        is_dead: Callable[[], bool],
        error: Callable[[], UnavailableError],
        path: str,
    ) -> None:
        self._send = send
        self._is_dead = is_dead
        self._error = error
        self._path = path
        self._is_stream = False
        self._ended = False
        self.started = False

    async def send(self, message: Message) -> None:
        """Passes a message, or puts the error in its place."""
        if self._ended:
            return
        if message["type"] == "http.response.start":
            if message["status"] >= 500 and self._is_dead():
                self.started = self._ended = True
                await send_error(self._send, self._error(), path=self._path)
                return
            self.started = True
            self._is_stream = is_event_stream(message.get("headers", ()))
        elif self._is_stream and self._is_dead() and b'"error"' in message.get("body", b""):
            self._ended = True
            await self._send(
                {"type": message["type"], "body": error_event(self._error(), self._path)}
            )
            return
        await self._send(message)
