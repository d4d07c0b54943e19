"""Bounds each request to a model: its body, its time, and how it ends when something fails.

A request ends when its client leaves, or when its task is cancelled, as Ray Serve does where its
Python proxy sees the client leave. A handler that an application runs in a task of its own, as vLLM
does, outlives a cancellation, so the application is told `http.disconnect` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from truthgpt_serve.body_limits import LATE_S, slow_body
from truthgpt_serve.errors import (
    ServerError,
    TruthGPTError,
    UnavailableError,
    UpstreamError,
    late_answer,
)
from truthgpt_serve.http.asgi import LEAVING_KEY, Message, Receive, Scope, Send, send_nothing
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.server.arriving_body import SCOPE_KEY, Arrivals, ArrivingBody
from truthgpt_serve.server.read_ahead import DISCONNECT, ReadAhead
from truthgpt_serve.server.sent_answer import SentAnswer
from truthgpt_serve.usage.counted import note_break

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
"""How long an application that was told of the disconnect may take before its task is cancelled."""

WATCH_S = 0.5
"""From then on somebody listens for the client; the many requests that end before need nobody."""
LOOK_S = 1.0
"""How often it is seen then whether the body has stopped, and whether the application listens."""

_NUM_TURNS = 20
"""Turns of the event loop in which an application starts to listen; vLLM needs two."""
_EXPECTED = (UnavailableError, UpstreamError)
"""Errors that another place logs once, not once for each request."""


class BoundedRequests:
    """An application whose requests end with their clients, in time, and with a whole answer.

    A request counts until its work has ended, so that a server's limit of concurrent requests
    bounds the work too. An error before the answer has its own status; one in a stream of events is
    its last event; any other answer that fails is left unfinished, and the server then closes the
    connection.

    Args:
        app: The application.
        name: The model name, for messages.
        max_body_bytes: Largest body; a larger one is answered 413.
        max_request_s: Longest time for one request, its body included, in seconds.
        arrivals: When bodies must keep to a pace; None for never.
    """

    def __init__(
        self,
        app: Any,
        name: str,
        *,
        max_body_bytes: int,
        max_request_s: float,
        arrivals: Arrivals | None = None,
    ) -> None:
        self.app = app
        self.name = name
        self.max_body_bytes = max_body_bytes
        self.max_request_s = max_request_s
        self.arrivals = arrivals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] == "http":
            await _Request(self, scope, receive, send).run()
        else:
            await self.app(scope, receive, send)


class _Request:
    """One request, and what its application may still learn and send of it."""

    __slots__ = (
        "_answer",
        "_body",
        "_bounds",
        "_client",
        "_end_s",
        "_error",
        "_leaving",
        "_left",
        "_listening",
        "_loop",
        "_over",
        "_scope",
        "_timer",
        "_told",
    )

    def __init__(self, bounds: BoundedRequests, scope: Scope, receive: Receive, send: Send) -> None:
        self._bounds = bounds
        self._scope = scope
        self._client = ReadAhead(receive)
        self._answer = SentAnswer(send)
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._error: TruthGPTError | None = None
        self._listening: set[asyncio.Task[Any]] = set()
        self._leaving: set[Callable[[], None]] = set()
        scope[LEAVING_KEY] = self._leaving
        self._body = scope[SCOPE_KEY] = ArrivingBody(bounds.max_body_bytes, bounds.arrivals)
        self._told = self._left = False

    async def run(self) -> None:
        """Runs the application, and answers what it does not."""
        bounds = self._bounds
        if (error := self._body.check_length(self._scope["headers"])) is not None:
            await self._fail(error)
            return
        app: Coroutine[Any, Any, None] = bounds.app(self._scope, self._receive, self._send)
        work = self._loop.create_task(app)
        work.add_done_callback(self._wake)
        self._end_s = self._loop.time() + bounds.max_request_s
        self._timer = self._loop.call_later(min(WATCH_S, bounds.max_request_s), self._look)
        try:
            await self._over
            if self._error is not None:
                await self._fail(self._error)
        except BaseException:  # it was cancelled, or the error could not be sent
            await self._stop(work)
            raise
        finally:
            self._timer.cancel()
            self._client.close()
            self._body.close()
        if self._left or self._error is not None:
            await self._stop(work)
        elif work.cancelled() or work.exception() is not None or not self._answer.ended:
            await self._conclude(None if work.cancelled() else work.exception())

    def _wake(self, work: asyncio.Task[None]) -> None:
        if not self._over.done():
            self._over.set_result(None)

    # -- limits

    def _leave(self) -> None:
        """Ends the request of a client that has left."""
        if not self._answer.ended and not self._over.done():
            self._left = True
            self._over.set_result(None)

    def _look(self) -> None:
        """Ends the request if its time is over; sees to the body's pauses and to the client too."""
        limit_s, now_s = self._bounds.max_request_s, self._loop.time()
        waits = self._body.more and bool(self._listening)
        if now_s >= self._end_s:
            self._refuse(slow_body(limit_s) if waits else late_answer(self._bounds.name, limit_s))
        elif now_s > self._timer.when() + LATE_S:
            self._timer = self._loop.call_later(LATE_S, self._look)
        elif waits and (error := self._body.look()) is not None:
            self._refuse(error)
        else:
            if not self._client.is_begun and not self._listening:
                self._client.begin(self._leave)
            is_settled = self._client.is_begun and not self._body.more
            next_s = self._end_s if is_settled else min(now_s + LOOK_S, self._end_s)
            self._timer = self._loop.call_at(next_s, self._look)

    def _refuse(self, error: TruthGPTError) -> None:
        """Ends the request with an error, whatever its application does."""
        if not self._over.done():
            self._error = error
            self._over.set_result(None)

    # -- the application's side

    async def _receive(self) -> Message:
        task = asyncio.current_task()
        if self._over.done() or task is None:
            self._told = True
            return {"type": DISCONNECT}
        self._listening.add(task)
        if self._body.more:
            self._body.listen()
        try:
            message = await self._client()
        except asyncio.CancelledError:
            if task in self._listening or task.uncancel() > 0:
                raise
            self._told = True
            return {"type": DISCONNECT}
        finally:
            self._listening.discard(task)
            task = None  # else a cancelled task and this frame hold each other
        return self._checked(message)

    def _checked(self, message: Message) -> Message:
        if message["type"] == DISCONNECT:
            self._told = True
            self._leave()
        elif self._body.more and (error := self._body.take(message)) is not None:
            self._refuse(error)
            self._told = True
            return {"type": DISCONNECT}
        return message

    def _send(self, message: Message) -> Awaitable[None]:
        """Sends a message on; no coroutine itself, which each piece of a stream would pay for."""
        if self._answer.ended or self._left or self._error is not None:
            return send_nothing()
        return self._answer.pass_on(message)

    # -- ends

    async def _conclude(self, error: BaseException | None) -> None:
        """Answers for an application that has ended without a whole answer, or failed behind it."""
        connection = Connection(self._scope, self._client, self._answer.send)
        label, request_id = f"the model {self._bounds.name!r}", connection.request_id
        if isinstance(error, TruthGPTError):
            if isinstance(error, ServerError) and not isinstance(error, _EXPECTED):
                logger.error("request %s: %s", request_id, error, exc_info=error.__cause__)
            await self._fail(error)
        elif error is not None or not self._told:
            logger.error("request %s: %s failed", request_id, label, exc_info=error)
            message = f"{label} failed; its log has the cause under request id {request_id}"
            await self._fail(ServerError(message))

    async def _fail(self, error: TruthGPTError) -> None:
        """Sends an error if one can still be sent; nothing of the application follows."""
        if self._answer.ended:
            return
        self._answer.ended = True
        connection = Connection(self._scope, self._client, self._answer.send)
        if not self._answer.started:
            await connection.fail(error)
            return
        note_break()
        if (events := self._answer.events) is not None and events.between:
            connection.started = True
            await connection.fail(error)
        else:
            logger.warning("request %s broke off: %s", connection.request_id, error)

    async def _stop(self, work: asyncio.Task[None]) -> None:
        """Ends the work of an application, and waits for its end."""
        self._answer.ended = True
        if not self._over.done():
            self._over.cancel()
        try:
            await self._end(work)
        finally:
            work.cancel()
        if not work.done():
            limit_s = self._bounds.max_request_s
            logger.warning("a request still runs %g s after it was cancelled", limit_s)
        elif not work.cancelled() and (error := work.exception()):
            logger.debug("a request failed after its end: %r", error)

    async def _end(self, work: asyncio.Task[None]) -> None:
        # Cancelled while its handler runs in another task, an application loses that task: it has
        # the time to hear of the disconnect first.
        listening, self._listening = self._listening, set()
        for task in listening:
            task.cancel()
        for leave in tuple(self._leaving):
            self._told = True
            leave()
        for _ in range(_NUM_TURNS):
            if self._told or work.done():
                break
            await asyncio.sleep(0)
        if self._told:
            await asyncio.wait((work,), timeout=STOP_TIMEOUT_S)
        if not work.done():
            work.cancel()
            await asyncio.wait((work,), timeout=self._bounds.max_request_s)
