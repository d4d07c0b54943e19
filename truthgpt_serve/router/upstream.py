"""One keep-alive HTTP/1.1 connection to Serve's own proxy on this node, for the relay alone.

An `asyncio.Protocol` around the C parser that uvicorn uses too: a general client costs a task
switch and several objects more per chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable
from typing import cast

import httptools

from truthgpt_serve.errors import TruthGPTError, UpstreamError
from truthgpt_serve.http.asgi import Headers

MAX_BUFFERED_BYTES = 256 * 1024
"""Response bytes held for a slow client before the upstream socket is no longer read."""

_ANY_EVENT = select.POLLIN | select.POLLPRI | select.POLLRDHUP  # an error is always one


class UpstreamConnection(asyncio.Protocol):
    """One connection; carries one exchange at a time.

    Use: `begin()`, `write()` the request, `await headers()`, `await read()` until the end, then
    `ConnectionPool.release`. `abort()` at any time.

    Attributes:
        uploading: Whether a part of the request is still to be written.
        closed: Whether it can carry nothing any more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._write_paused = False
        self._read_paused = False
        self._active = False
        self._deadline: asyncio.TimerHandle | None = None
        self._poll = select.poll()
        self.closed = False
        self.uploading = False
        self.idle_since_s = 0.0
        self._reset()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), _ANY_EVENT)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails the exchange that was under way."""
        self.closed = True
        with contextlib.suppress(AttributeError):  # no exchange has begun
            del self._parser  # it holds this object: else only the garbage collector frees both
        self._write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if self._active and not self.complete:
            message = "the model's replica closed the connection before its answer was whole"
            self.fail(UpstreamError(message))

    def data_received(self, data: bytes) -> None:
        """Parses what arrived and wakes the relay once for all of it."""
        if not self._active or self.complete:
            self.abort()  # bytes that no request asked for: the connection is out of step
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(
                UpstreamError(f"the model's replica answered something that is not HTTP: {error}")
            )
            self.abort()
            return
        if self._num_buffered > MAX_BUFFERED_BYTES and not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()
        self._wake()

    def pause_writing(self) -> None:
        """The socket's send buffer is full."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The socket's send buffer has room again."""
        self._write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # -- httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collects one response header; a trailer, which comes after the head, is none."""
        if not self._status:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Notes the status."""
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Collects a piece of the body."""
        self._pieces.append(body)
        self._num_buffered += len(body)

    def on_message_complete(self) -> None:
        """Marks the end, or drops an interim (1xx) answer."""
        if 100 <= self._status < 200:
            self._status = 0
            self._headers.clear()
            return
        self.complete = True
        self._keep_alive = self._parser.should_keep_alive()

    # -- the relay's side

    def begin(self) -> None:
        """Starts an exchange."""
        self._reset()
        self._parser = httptools.HttpResponseParser(self)
        self._active = True
        self.uploading = False

    def is_idle(self) -> bool:
        """Whether the other side has neither closed the connection nor sent anything.

        Asks the kernel: what has arrived may not have come through the event loop yet, and a
        request that is written after an end is lost.
        """
        return not self.closed and not self._poll.poll(0)

    def _reset(self) -> None:
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self._num_buffered = 0
        self._status = 0
        self._error: TruthGPTError | None = None
        self._keep_alive = False
        self.complete = False

    def write(self, data: bytes) -> None:
        """Sends without waiting; see `drain`. A connection that is closing drops it."""
        if not self._transport.is_closing():  # else uvloop raises, asyncio's own loop does not
            self._transport.write(data)

    async def drain(self) -> None:
        """Waits until the socket takes more, the connection is lost, or the exchange failed."""
        if self._write_paused and not self.closed:
            self._writable = self._loop.create_future()
            try:
                await self._writable
            finally:
                self._writable = None

    def set_deadline(
        self, delay_s: float, on_deadline: Callable[[], TruthGPTError | float]
    ) -> None:
        """Calls `on_deadline` after `delay_s`; it returns the error, or further seconds to wait.

        An error closes the connection too: a client that does not read would keep the relay from
        seeing it, and the model at work.
        """
        self.clear_deadline()
        self._deadline = self._loop.call_later(delay_s, self._expire, on_deadline)

    def _expire(self, on_deadline: Callable[[], TruthGPTError | float]) -> None:
        outcome = on_deadline()
        if isinstance(outcome, TruthGPTError):
            self.fail(outcome)
            self.abort()
        else:
            self._deadline = self._loop.call_later(outcome, self._expire, on_deadline)

    def clear_deadline(self) -> None:
        """Forgets the deadline."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def fail(self, error: TruthGPTError) -> None:
        """Ends the exchange: the next `headers` or `read` raises, once what arrived is read."""
        if self._error is None:
            self._error = error
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    @property
    def has_headers(self) -> bool:
        """Whether the answer has begun."""
        return self._status != 0

    async def headers(self) -> tuple[int, Headers]:
        """Returns status and headers (names in lower case). Raises TruthGPTError."""
        while not self._status:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._status, self._headers

    async def read(self) -> tuple[bytes, bool]:
        """Returns all body bytes that have arrived, at least one, and whether more follow.

        `(b"", False)` is an end without bytes.

        Raises:
            TruthGPTError: The connection broke or the deadline passed; what had arrived before was
                returned by earlier calls.
        """
        while not self._pieces and not self.complete:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._num_buffered = 0
        if self._read_paused:
            self._read_paused = False
            self._transport.resume_reading()
        return data, not self.complete

    def end(self) -> bool:
        """Ends the exchange; returns whether the connection can carry another."""
        self.clear_deadline()
        self._active = False
        reusable = (
            self.complete
            and self._keep_alive
            and not (self.closed or self._write_paused)
            and not self.uploading  # else the next request would be read as the rest of this one
        )
        if not reusable:
            self.abort()
        return reusable

    def abort(self) -> None:
        """Closes at once, dropping what is buffered, so that the model stops its work."""
        self.clear_deadline()
        if not self.closed:
            self.closed = True
            self._transport.abort()
