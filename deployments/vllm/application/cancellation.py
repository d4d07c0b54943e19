"""Stops an ASGI application's work on a request when its client leaves or its time is over.

Ray Serve cancels the task of a request whose client left. A handler that vLLM runs in a task of its
own outlives that cancellation, so the application is told `http.disconnect` instead.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from truthgpt_serve.errors import DeadlineError
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.sse import is_event_stream

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
"""How long an application that was told of the disconnect may take before its task is cancelled."""

_NUM_TURNS = 20
"""Turns of the event loop in which an application starts to listen; vLLM needs two."""

_DISCONNECT = "http.disconnect"


class CancellableApp:
    """An application whose requests stop with their clients and after a time.

    A request counts until its work has ended, so that a server's limit of concurrent requests
    bounds the work too.

    Args:
        app: The application.
        max_request_s: Longest time for one request, in seconds.
    """

    def __init__(self, app: Any, *, max_request_s: float) -> None:
        self._app = app
        self._max_request_s = max_request_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Request(scope, receive, send).run(self._app, self._max_request_s)


class _Request:
    """One request and what the application may still learn and send of it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._given_receive = receive
        self._given_send = send
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._told = False
        self._started = False
        self._streams_events = False

    async def run(self, app: Any, limit_s: float) -> None:
        work = asyncio.ensure_future(app(self._scope, self._receive, self._send))
        try:
            await asyncio.wait((work,), timeout=limit_s)
        except asyncio.CancelledError:
            await self._stop(work, limit_s)
            raise
        if work.done():
            work.result()
            return
        await self._stop(work, limit_s)
        await self._fail(
            DeadlineError(f"the model did not finish within {limit_s:g} s, its time limit")
        )

    async def _stop(self, work: asyncio.Future[None], limit_s: float) -> None:
        self._left.set_result(None)
        try:
            await self._end(work, limit_s)
        finally:
            work.cancel()
        if not work.done():
            logger.warning("a request still runs %g s after it was cancelled", limit_s)
        elif not work.cancelled() and (error := work.exception()):
            logger.debug("a request failed after its client left: %r", error)

    async def _end(self, work: asyncio.Future[None], limit_s: float) -> None:
        # Cancelled while its handler runs in another task, an application loses that task: it has
        # the time to hear of the disconnect first.
        for _ in range(_NUM_TURNS):
            if self._told or work.done():
                break
            await asyncio.sleep(0)
        if self._told:
            await asyncio.wait((work,), timeout=STOP_TIMEOUT_S)
        if not work.done():
            work.cancel()
            await asyncio.wait((work,), timeout=limit_s)

    async def _receive(self) -> Message:
        if not self._left.done():
            message = asyncio.ensure_future(self._given_receive())
            try:
                await asyncio.wait((message, self._left), return_when=asyncio.FIRST_COMPLETED)
                if message.done() and not self._left.done():
                    result = message.result()
                    self._told = self._told or result["type"] == _DISCONNECT
                    return result
            finally:
                message.cancel()
        self._told = True
        return {"type": _DISCONNECT}

    async def _send(self, message: Message) -> None:
        if self._left.done():
            return
        if message["type"] == "http.response.start":
            self._started = True
            self._streams_events = is_event_stream(message.get("headers", ()))
        await self._given_send(message)

    async def _fail(self, error: DeadlineError) -> None:
        connection = Connection(self._scope, self._given_receive, self._given_send)
        connection.started = self._started
        if not self._started or self._streams_events:
            await connection.fail(error)
