"""Records requests in flight, and refuses one for a while during which processes died twice.

A client that repeats a request which kills the model's process would kill every process that takes
its place. After one death its requests in flight are suspects: each starts alone, so that the next
death shows which it was; the others are served, and are suspects no longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from truthgpt_serve.errors import QuarantinedError, UnavailableError
from truthgpt_serve.http.asgi import (
    Message,
    Receive,
    Scope,
    Send,
    body_of,
    relative_path,
    send_error,
)
from truthgpt_serve.server.faults.history import STRIKE_S, History
from truthgpt_serve.server.faults.record import FINGERPRINT_BYTES, Record

logger = logging.getLogger(__name__)

HEAD_BYTES = 65536
"""So much of a body is looked at."""
HEAD_LIMIT_S = 30.0
"""How long that may take to arrive; a slower request is served unrecorded."""
MAX_DEATHS = 2
TRIAL_S = 2.0
"""How long a suspect keeps the others waiting at most."""

_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")


class Quarantine:
    """An ASGI application that knows its requests in flight.

    Args:
        app: The application.
        record: Where they are written.
        history: What is known of deaths.
        ended: Returns why the process is about to be replaced, or None; it may look at the engine
            and is called after each request, so it must be quick.
    """

    def __init__(
        self, app: Any, record: Record, history: History, ended: Callable[[], str | None]
    ) -> None:
        self._app = app
        self._record = record
        self._history = history
        self._ended = ended
        self._trial = asyncio.Lock()
        self.num_ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.num_ongoing += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.num_ongoing -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in _WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        if self._ended() is not None:
            await _refuse_for_now(send, scope)
            return
        fingerprint, receive = await _look(scope, receive)
        strikes = 0 if fingerprint is None else self._history.strikes(fingerprint)
        if strikes >= MAX_DEATHS:
            await send_error(send, _quarantined(), path=relative_path(scope))
            return
        if not strikes:
            await self._serve_recorded(fingerprint, scope, receive, send)
            return
        async with self._turn():
            ended = await self._serve_recorded(fingerprint, scope, receive, send)
        if fingerprint is not None and ended is None:
            await asyncio.to_thread(self._history.forgive, fingerprint)

    async def _serve_recorded(
        self, fingerprint: bytes | None, scope: Scope, receive: Receive, send: Send
    ) -> str | None:
        """Returns why the process is about to be replaced now, or None."""
        slot = None if fingerprint is None else self._record.begin(fingerprint)
        try:
            await self._app(scope, receive, send)
        finally:
            # Before the slot is free: what ended now may have ended by this request.
            ended = self._ended()
            self._record.end(slot)
        return ended

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Has suspects start one after the other."""
        await self._trial.acquire()
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._trial.release()

        timer = asyncio.get_running_loop().call_later(TRIAL_S, release)
        try:
            yield
        finally:
            timer.cancel()
            release()


def _quarantined() -> QuarantinedError:
    return QuarantinedError(
        f"the model's process died {MAX_DEATHS} times while it served exactly this request: it is "
        f"refused for {STRIKE_S / 60:g} minutes after the last time; change the request, and "
        "report it with the model's log"
    )


async def _refuse_for_now(send: Send, scope: Scope) -> None:
    error = UnavailableError(
        "the model's engine died and is being replaced; try again in a few seconds"
    )
    await send_error(send, error, path=relative_path(scope))


async def _look(scope: Scope, receive: Receive) -> tuple[bytes | None, Receive]:
    """Returns what the same request has again, and what then gives its body.

    The former is None for one that was too slow or left.
    """
    body = body_of(receive)
    if body is not None:
        return _fingerprint(scope, body), receive
    head = _Head(receive)
    body = await head.read()
    return None if body is None else _fingerprint(scope, body), head.receive


def _fingerprint(scope: Scope, body: bytes) -> bytes:
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    request = f"{scope['method']}\0{scope['path']}\0".encode() + length + b"\0"
    digest = hashlib.blake2b(request + body[:HEAD_BYTES], digest_size=FINGERPRINT_BYTES)
    return digest.digest()


class _Head:
    """The first part of a request's body: read in advance, then given again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._num_given = 0

    async def read(self) -> bytes | None:
        """Returns what is enough of the body, or all; None for one that was too slow or left."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(HEAD_LIMIT_S):
                while size < HEAD_BYTES:
                    message = await self._receive()
                    self._messages.append(message)
                    if message["type"] != "http.request":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            return None
        return b"".join(parts)

    async def receive(self) -> Message:
        """Gives what was read, then what comes."""
        if self._num_given < len(self._messages):
            self._num_given += 1
            return self._messages[self._num_given - 1]
        return await self._receive()
