"""One HTTP exchange over plain ASGI: body in, answer out, client gone.

A framework between the socket and the model costs more than the rest of the work for a chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Iterable
from types import TracebackType

from truthgpt_serve.body_limits import body_too_large, slow_body
from truthgpt_serve.errors import DeadlineError, RouteNotFoundError, TruthGPTError
from truthgpt_serve.http.asgi import (
    LEAVING_KEY,
    UNREAD_TIMEOUT_S,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    body_of,
    header,
    relative_path,
    send_error,
)
from truthgpt_serve.http.envelope import error_event
from truthgpt_serve.http.sse import STREAM_HEADERS

BODY_LIMIT_S = 600.0
"""How long a body may take to arrive where nothing shorter is set."""
_SANE_ID = re.compile(rb"(?!.*(?:tgpt-|\bsk-)[\w-]{20})[\x21-\x7e]{1,128}")
"""Not a key, which would then stand in logs."""


class ClientGoneError(Exception):
    """The client closed the connection; no answer can be sent."""


async def refuse_websocket(
    scope: Scope, receive: Receive, send: Send, error: TruthGPTError | None = None
) -> None:
    """Refuses a WebSocket before it is accepted, in words where the server can send them.

    Args:
        scope: ASGI scope.
        receive: ASGI `receive`.
        send: ASGI `send`.
        error: Why; by default because there are none.
    """
    await receive()
    error = error or RouteNotFoundError("there are no WebSocket routes here")
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:100]})
        return

    async def send_refusal(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    await send_error(send_refusal, error)


def sane_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Returns the last `x-request-id` if it is short and printable, or nothing."""
    request_id = b""
    for name, value in headers:
        if name == b"x-request-id":
            request_id = value
    return request_id.decode("latin-1") if _SANE_ID.fullmatch(request_id) else ""


class Connection:
    """A request and the way back, for one call of the ASGI application.

    Attributes:
        path: The path below the mount point, which decides the form of errors.
        request_id: The client's `x-request-id` if it is sane, else a new one.
        scope: The ASGI scope.
        send: ASGI `send`, for answers that are passed on as they come.
        started: Whether the status and the headers are sent.
    """

    __slots__ = ("_receive", "length", "path", "request_id", "scope", "send", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self.send = send
        self.scope = scope
        self.path = relative_path(scope)
        self.started = False
        self.length = 0
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                self.length = int(value)
        self.request_id = sane_id(scope["headers"]) or os.urandom(16).hex()

    @property
    def receive(self) -> Receive:
        """ASGI `receive`, for what comes behind the body."""
        return self._receive

    def header(self, name: bytes) -> bytes:
        """Returns a header of the request by its name in lower case, or nothing."""
        return header(self.scope["headers"], name) or b""

    async def read(self, max_bytes: int, limit_s: float = BODY_LIMIT_S) -> bytes:
        """Returns the whole body.

        Raises:
            TooLargeError: It is longer than `max_bytes`.
            SlowRequestError: It was not whole after `limit_s` seconds.
            ClientGoneError: The client left before the body was whole.
        """
        if body_of(self._receive) is not None:  # nothing to wait for
            return await self._read(max_bytes)
        try:
            async with asyncio.timeout(limit_s):
                return await self._read(max_bytes)
        except TimeoutError:
            raise slow_body(limit_s) from None

    async def _read(self, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        more = self.length <= max_bytes
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part: bytes = message.get("body", b"")
            parts.append(part)
            size += len(part)
            more = message.get("more_body", False) and size <= max_bytes
        if max(size, self.length) > max_bytes:
            raise body_too_large(max_bytes, "`serving.max_body_bytes`")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def guard(self, limit_s: float) -> Guard:
        """Returns a context that ends when the client leaves or after `limit_s` seconds."""
        return Guard(self._receive, limit_s, self.scope.get(LEAVING_KEY))

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def reply(
        self, body: bytes, content_type: str = "application/json", *, headers: Headers | None = None
    ) -> None:
        """Sends a whole answer with status 200."""
        await self._start(
            200,
            [
                (b"content-type", content_type.encode()),
                (b"content-length", b"%d" % len(body)),
                (b"x-request-id", self.request_id.encode("latin-1")),
                *(headers or []),
            ],
        )
        await self.send({"type": "http.response.body", "body": body})

    async def emit(self, event: bytes) -> None:
        """Sends server-sent events.

        The head goes out with the first, so that an early error still has its own status.
        """
        if not self.started:
            await self._start_events()
        await self.send({"type": "http.response.body", "body": event, "more_body": True})

    async def end_events(self) -> None:
        """Ends the stream of events."""
        if not self.started:
            await self._start_events()
        await self.send({"type": "http.response.body"})

    async def _start_events(self) -> None:
        await self._start(
            200,
            [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                *STREAM_HEADERS,
                (b"x-request-id", self.request_id.encode("latin-1")),
            ],
        )

    async def fail(self, error: TruthGPTError) -> None:
        """Sends an error: a whole answer, or the last event of a stream that has begun.

        A client that does not read the stream never learns of it: the server then closes the
        connection, because the answer is not whole.
        """
        if self.started:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNREAD_TIMEOUT_S):
                    event = error_event(error, self.path)
                    await self.send({"type": "http.response.body", "body": event})
            return
        self.started = True
        headers = [(b"x-request-id", self.request_id.encode("latin-1"))]
        await send_error(self.send, error, headers=headers, path=self.path)


class Guard:
    """Cancels the task in its block when the client leaves or the time is over.

    One timer waits for the deadline, and one task for the client where nothing further out tells of
    it, whatever the number of chunks. On the way out the cancellation becomes `ClientGoneError` or
    `DeadlineError`; one that came from elsewhere passes.

    Args:
        receive: ASGI `receive`, behind the body.
        limit_s: Seconds that the block may take.
        leaving: The functions that are called when the client leaves (`LEAVING_KEY`), if any are.
    """

    __slots__ = ("_error", "_leaving", "_limit_s", "_receive", "_task", "_timer", "_watch")

    def __init__(
        self, receive: Receive, limit_s: float, leaving: set[Callable[[], None]] | None = None
    ) -> None:
        self._receive = receive
        self._leaving = leaving
        self._limit_s = limit_s
        self._error: Exception | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Guard:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request must be served in a task")
        self._task = task
        self._timer = loop.call_later(self._limit_s, self._expire)
        if self._leaving is None:
            self._watch = loop.create_task(_wait_for_disconnect(self._receive))
            self._watch.add_done_callback(self._left)
        else:
            self._leaving.add(self._leave)
        return self

    def _left(self, watch: asyncio.Task[None]) -> None:
        if not watch.cancelled():
            watch.exception()  # a broken connection is a client that left, too
            self._leave()

    def _leave(self) -> None:
        self._stop(ClientGoneError())

    def _expire(self) -> None:
        self._stop(
            DeadlineError(f"the model did not finish within {self._limit_s:g} s, its time limit")
        )

    def _stop(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
            self._task.cancel()

    def release(self) -> None:
        """Ends the watch: called before the last bytes, when leaving does no harm any more."""
        self._timer.cancel()
        if self._leaving is not None:
            self._leaving.discard(self._leave)
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.remove_done_callback(self._left)
            watch.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
        reason, self._error = self._error, None
        if reason is None:
            return
        others = self._task.uncancel()
        if kind is asyncio.CancelledError and not others:
            try:
                raise reason from None
            finally:
                del reason  # else it and this frame hold each other


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
