"""Joins pieces of a fast event stream into fewer writes.

Each write costs every process on the way to the client, through two proxies and the router, about
the same whatever its size. A stream that yields faster than anyone reads is therefore sent in
writes that are at least `interval_s` apart; events stay as they are, and none waits longer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from truthgpt_serve.http.asgi import Message, Receive, Scope, Send
from truthgpt_serve.http.sse import is_event_stream

NUM_AT_ONCE = 3
"""So many first pieces are never held: among them are the role and the first token of a chat."""
MAX_HELD_BYTES = 65536


class JoinedStreams:
    """An ASGI application whose event streams are sent in fewer writes.

    Args:
        app: The application.
        interval_s: Shortest time between two writes of a stream, in seconds, above 0.
    """

    def __init__(self, app: Any, interval_s: float) -> None:
        self._app = app
        self._interval_s = interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        joiner = _Joiner(send, self._interval_s)
        try:
            await self._app(scope, receive, joiner.send)
        finally:
            joiner.close()


class _Joiner:
    """The state of one answer."""

    def __init__(self, send: Send, interval_s: float) -> None:
        self._send = send
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._joins = False
        self._num_at_once = NUM_AT_ONCE
        self._next_s = 0.0
        self._held: list[bytes] = []
        self._num_held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._error: BaseException | None = None

    async def send(self, message: Message) -> None:
        """Sends a message now, or holds its bytes until the next write."""
        if not self._joins:
            if message["type"] == "http.response.start":
                self._joins = is_event_stream(message.get("headers", ()))
            await self._send(message)
        elif not message.get("more_body", False):
            await self._finish(message)
        elif self._timer is None and self._writing is None and self._may_write():
            await self._send(message)
        else:
            await self._hold(message.get("body", b""))

    def _may_write(self) -> bool:
        if self._num_at_once:
            self._num_at_once -= 1
            return True
        now_s = self._loop.time()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._interval_s
        return True

    async def _hold(self, piece: bytes) -> None:
        if self._error is not None:
            raise self._error
        self._held.append(piece)
        self._num_held_bytes += len(piece)
        if self._writing is None and self._timer is None:
            self._timer = self._loop.call_at(self._next_s, self._start_writing)
        if self._num_held_bytes > MAX_HELD_BYTES:  # the client is slower than the model
            await self._drain()

    def _start_writing(self) -> None:
        self._timer = None
        self._writing = self._loop.create_task(self._write())
        self._writing.add_done_callback(self._written)

    async def _write(self) -> None:
        self._next_s = self._loop.time() + self._interval_s
        await self._send(
            {"type": "http.response.body", "body": self._take_held(), "more_body": True}
        )

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing = None
        if not task.cancelled():
            self._error = task.exception()
            if self._held and self._error is None and self._timer is None:
                self._timer = self._loop.call_at(self._next_s, self._start_writing)

    def _take_held(self) -> bytes:
        body = b"".join(self._held)
        self._held.clear()
        self._num_held_bytes = 0
        return body

    async def _drain(self) -> None:
        """Waits for the write under way, then writes what is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is None and self._held:
            self._start_writing()
        if self._writing is not None:
            await self._writing

    async def _finish(self, message: Message) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None:
            await self._writing
        if self._error is not None:
            raise self._error
        body = self._take_held() + message.get("body", b"")
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def close(self) -> None:
        """Forgets what is held; nothing is written after this."""
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            self._writing.cancel()
