"""Connections to one address, kept while they are idle, and plain reads over them."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from pathlib import Path

from truthgpt_serve.errors import DeadlineError, UnavailableError
from truthgpt_serve.http.asgi import Headers
from truthgpt_serve.router.upstream import UpstreamConnection

MAX_IDLE_CONNECTIONS = 256
IDLE_TIMEOUT_S = 30.0
FETCH_TIMEOUT_S = 10.0


class ConnectionPool:
    """Connections to one address; as many open ones as there are exchanges, few idle ones.

    Args:
        host: Name or address; an IPv6 address without brackets.
        port: The port.
        connect_timeout_s: Seconds to open a connection.
        peer: Who listens there, for messages.
        socket: A UNIX socket of the same server, which is used while it takes connections.

    Attributes:
        authority: Host and port as the header `Host` has them.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connect_timeout_s: float,
        peer: str = "Serve's proxy",
        socket: Path | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._peer = peer
        self._socket = socket
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[UpstreamConnection] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self.num_open = 0

    async def acquire(self, *, fresh: bool = False) -> UpstreamConnection:
        """Returns a connection with a begun exchange.

        Raises:
            UnavailableError: Nothing accepts connections there.
        """
        connection = None if fresh else self._pop_idle()
        if connection is None:
            connection = await self._connect()
        connection.begin()
        self.num_open += 1
        return connection

    def _pop_idle(self) -> UpstreamConnection | None:
        self._close_expired()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_idle():
                return connection
            connection.abort()
        return None

    def _close_expired(self) -> None:
        now_s = asyncio.get_running_loop().time()
        while self._idle and now_s - self._idle[0].idle_since_s >= IDLE_TIMEOUT_S:
            self._idle.popleft().abort()

    def _expire(self) -> None:
        """Closes what has been idle for long, also when no request needs a connection."""
        self._expiry = None
        self._close_expired()
        if self._idle:
            self._expire_after(self._idle[0].idle_since_s)

    def _expire_after(self, idle_since_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_at(idle_since_s + IDLE_TIMEOUT_S, self._expire)

    async def _connect(self) -> UpstreamConnection:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._open()
        except (OSError, TimeoutError) as error:
            raise UnavailableError(
                f"{self._peer} at {self.authority} does not accept connections "
                f"({type(error).__name__})",
                retry_after_s=2,
            ) from error

    async def _open(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            with suppress(OSError):  # HAProxy may run as Ray configures it, without this socket
                opened = await loop.create_unix_connection(
                    lambda: UpstreamConnection(loop), str(self._socket)
                )
                return opened[1]
        _, connection = await loop.create_connection(
            lambda: UpstreamConnection(loop), self.host, self.port
        )
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        """Takes a connection back; one whose exchange is not complete is closed."""
        self.num_open -= 1
        if connection.end():
            if len(self._idle) >= MAX_IDLE_CONNECTIONS:
                self._idle.popleft().abort()
            connection.idle_since_s = asyncio.get_running_loop().time()
            self._idle.append(connection)
            if self._expiry is None:
                self._expire_after(connection.idle_since_s)

    async def fetch(self, path: bytes, headers: Headers | None = None) -> tuple[int, bytes]:
        """Returns status and body of `GET path`. Raises TruthGPTError after 10 s.

        On a connection of its own: a kept one may end at a proxy that is being replaced.
        """
        connection = await self.acquire(fresh=True)
        try:
            connection.set_deadline(
                FETCH_TIMEOUT_S,
                lambda: DeadlineError(f"{self._peer} at {self.authority} did not answer"),
            )
            lines = b"".join(b"%b: %b\r\n" % header for header in headers or [])
            connection.write(
                b"GET %b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n%b\r\n"
                % (path, self.authority.encode(), lines)
            )
            status, _ = await connection.headers()
            body, more = bytearray(), True
            while more:
                data, more = await connection.read()
                body += data
            return status, bytes(body)
        finally:
            self.release(connection)

    def close(self) -> None:
        """Closes the idle connections; new ones can still be opened."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        while self._idle:
            self._idle.pop().abort()
