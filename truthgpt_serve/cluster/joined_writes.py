"""Sends what a server writes in one turn of its event loop together, at the end of the turn.

uvloop sends each write at once, and uvicorn writes the head of an answer and its body one after the
other. Where many answers go to one proxy, each of these system calls wakes it, which costs the
server more than all else in the call; a proxy that is awake takes what follows for nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from weakref import WeakKeyDictionary

HELD_S = 0.002
"""A write that comes so long after the first of a turn does not wait for the turn's end."""
HELD_BYTES = 16384
"""How much of one connection waits; what is longer is sent at once, and not copied."""


class Outbox:
    """The connections of one event loop that have something to send."""

    __slots__ = ("__weakref__", "_began_s", "_connections", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._connections: list[JoinedWrites] = []
        self._began_s = 0.0

    def add(self, connection: JoinedWrites) -> None:
        """Takes a connection that has begun to hold something."""
        self._connections.append(connection)
        if len(self._connections) == 1:
            self._began_s = time.monotonic()
            self._loop.call_soon(self._send)
        elif time.monotonic() - self._began_s > HELD_S:
            self._send()

    def _send(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.flush()


_outboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()


def outbox_of(loop: asyncio.AbstractEventLoop) -> Outbox:
    """Returns the one of an event loop."""
    outbox = _outboxes.get(loop)
    if outbox is None:
        outbox = _outboxes[loop] = Outbox(loop)
    return outbox


class JoinedWrites:
    """A connection's transport, in front of its own one.

    Args:
        transport: The connection's own.
        outbox: Where connections wait that have something to send.

    Attributes:
        transport: The connection's own.
    """

    __slots__ = ("_held", "_outbox", "transport")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self.transport = transport
        self._outbox = outbox
        self._held = b""

    def write(self, data: bytes) -> None:
        """Holds a write; sends it, behind what is held, where that is much."""
        held = self._held
        if len(held) + len(data) > HELD_BYTES:
            self.flush()
            self.transport.write(data)
        elif held:
            self._held = held + data
        elif data:
            self._held = data
            self._outbox.add(self)

    def flush(self) -> None:
        """Sends what is held."""
        held, self._held = self._held, b""
        if held and not self.transport.is_closing():
            self.transport.write(held)

    def close(self) -> None:
        """Sends what is held, and closes the connection."""
        self.flush()
        self.transport.close()

    def is_closing(self) -> bool:
        """Returns whether it is closed, or about to be."""
        return self.transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)
