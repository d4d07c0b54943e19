"""Keep-alive HTTP/1.1 connections to Serve's own proxy on this node, for the relay alone.

An `asyncio.Protocol` around the C parser that uvicorn uses too: a general client costs a task switch
and several objects more per chunk. Knows nothing of models, of JSON or of ASGI.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from truthgpt_serve.errors import DeadlineError, TruthGPTError, UnavailableError, UpstreamError

Headers = list[tuple[bytes, bytes]]

MAX_BUFFERED_BYTES = 256 * 1024
"""Response bytes held for a slow client before the upstream socket is no longer read."""

MAX_IDLE_CONNECTIONS = 256
IDLE_TIMEOUT_S = 30.0
FETCH_TIMEOUT_S = 10.0


class StaleConnectionError(UpstreamError):
    """A kept connection was closed before the first byte of the answer: safe to try once more."""


class UpstreamConnection(asyncio.Protocol):
    """One connection; carries one exchange at a time.

    Use: `begin()`, `write()` the request, `await headers()`, `await read()` until the end, then
    `ConnectionPool.release`. `abort()` at any time.
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
        self.closed = False
        self.num_exchanges = 0
        self.idle_since_s = 0.0
        self._reset()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails the exchange that was under way."""
        self.closed = True
        self._write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if self._active and not self.complete:
            self.fail(self._lost())

    def _lost(self) -> UpstreamError:
        if self.num_exchanges > 1 and not self._received:
            return StaleConnectionError("the proxy closed a kept connection")
        return UpstreamError(
            "the model's replica closed the connection before its answer was whole"
        )

    def data_received(self, data: bytes) -> None:
        """Parses what arrived and wakes the relay once for all of it."""
        if not self._active or self.complete:
            self.abort()  # bytes that nobody asked for: the connection is out of step
            return
        self._received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
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
        """Collects one response header."""
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
        self.num_exchanges += 1

    def _reset(self) -> None:
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self._num_buffered = 0
        self._status = 0
        self._error: TruthGPTError | None = None
        self._keep_alive = False
        self._received = False
        self.complete = False

    def write(self, *pieces: bytes) -> None:
        """Sends without waiting; see `drain`."""
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)

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
        """Calls `on_deadline` after `delay_s`; it returns the error, or further seconds to wait."""

        def expire() -> None:
            outcome = on_deadline()
            if isinstance(outcome, TruthGPTError):
                self.fail(outcome)
            else:
                self._deadline = self._loop.call_later(outcome, expire)

        self.clear_deadline()
        self._deadline = self._loop.call_later(delay_s, expire)

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
        reusable = self.complete and self._keep_alive and not self.closed and not self._write_paused
        if not reusable:
            self.abort()
        return reusable

    def abort(self) -> None:
        """Closes at once, dropping what is buffered, so that the model learns that nobody waits."""
        self.clear_deadline()
        if not self.closed:
            self._transport.abort()


class ConnectionPool:
    """Connections to one address; as many open ones as there are exchanges, few idle ones."""

    def __init__(self, host: str, port: int, *, connect_timeout_s: float) -> None:
        self.host = host
        self.port = port
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[UpstreamConnection] = deque()
        self.num_open = 0

    async def acquire(self, *, fresh: bool = False) -> UpstreamConnection:
        """Returns a connection with a begun exchange.

        Raises:
            UnavailableError: Serve's proxy does not accept connections.
        """
        connection = None if fresh else self._pop_idle()
        if connection is None:
            connection = await self._connect()
        connection.begin()
        self.num_open += 1
        return connection

    def _pop_idle(self) -> UpstreamConnection | None:
        now_s = asyncio.get_running_loop().time()
        while self._idle and now_s - self._idle[0].idle_since_s > IDLE_TIMEOUT_S:
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _connect(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(loop), self.host, self.port
                )
        except (OSError, TimeoutError) as error:
            raise UnavailableError(
                f"Serve's proxy at {self.host}:{self.port} does not accept connections "
                f"({type(error).__name__})",
                retry_after_s=2,
            ) from error
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        """Takes a connection back; one whose exchange is not complete is closed."""
        self.num_open -= 1
        if connection.end():
            if len(self._idle) >= MAX_IDLE_CONNECTIONS:
                self._idle.popleft().abort()
            connection.idle_since_s = asyncio.get_running_loop().time()
            self._idle.append(connection)

    async def fetch(self, path: bytes) -> bytes:
        """Returns the body of `GET path`, whatever its status. Raises TruthGPTError after 10 s."""
        connection = await self.acquire()
        try:
            connection.set_deadline(
                FETCH_TIMEOUT_S, lambda: DeadlineError(f"{self.host}:{self.port} did not answer")
            )
            connection.write(
                b"GET %b HTTP/1.1\r\nhost: %b:%d\r\n\r\n" % (path, self.host.encode(), self.port)
            )
            await connection.headers()
            body, more = bytearray(), True
            while more:
                data, more = await connection.read()
                body += data
            return bytes(body)
        finally:
            self.release(connection)

    def close(self) -> None:
        """Closes the idle connections."""
        while self._idle:
            self._idle.pop().abort()
