"""Sends what a server writes in one turn of its event loop together, at the end of the turn.

uvloop sends each write at once, and uvicorn writes the head of an answer and its body one after the
other. Where many answers go to one proxy, each of these system calls wakes it, which costs the
server more than all else in the call; a proxy that is awake takes what follows at no further cost.

The end of a turn is the beginning of the next one: what has come on the connections is read before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

HELD_S = 0.002
"""A write that comes so long after the first of a turn has all sent, before the turn's end. A turn
in which nobody writes again is not cut short."""
HELD_BYTES = 16384
"""How much of one connection waits; with what would be more, all of it is sent at once."""


class Outbox:
    """The connections of one event loop that have something to send."""

    __slots__ = ("_began_s", "_connections")

    def __init__(self) -> None:
        self._connections: list[JoinedWrites] = []
        self._began_s = 0.0

    def add(self, connection: JoinedWrites) -> None:
        """Takes a connection that has begun to hold something; call it on the event loop."""
        self._connections.append(connection)
        if len(self._connections) == 1:
            self._began_s = time.monotonic()
            asyncio.get_running_loop().call_soon(self._send)
        else:
            self.look()

    def look(self) -> None:
        """Has all sent if the first has waited for long."""
        if time.monotonic() - self._began_s > HELD_S:
            self._send()

    def _send(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            try:
                connection.flush()
            except Exception:  # the others' answers go out all the same
                logger.exception("an answer could not be sent")
                connection.transport.abort()


_outboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()


def outbox_of(loop: asyncio.AbstractEventLoop) -> Outbox:
    """Returns the one of an event loop."""
    outbox = _outboxes.get(loop)
    if outbox is None:
        outbox = _outboxes[loop] = Outbox()
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
        self._outbox: Outbox | None = outbox
        self._held = b""

    def write(self, data: Any) -> None:
        """Holds a write; sends it, behind what is held, where that is much."""
        held, outbox = self._held, self._outbox
        if outbox is None or len(held) + len(data) > HELD_BYTES:
            self.flush()
            self.transport.write(data)
            return
        if type(data) is not bytes:  # what it shows may change before it is sent
            data = bytes(data)
        if held:
            self._held = held + data
            outbox.look()
        elif data:
            self._held = data
            outbox.add(self)

    def flush(self) -> None:
        """Sends what is held. One that is closing sends it too: its client may only have ended."""
        held, self._held = self._held, b""
        if held:
            self.transport.write(held)

    def end_holding(self, *, is_lost: bool = False) -> None:
        """Sends what is held, or drops it if the connection is lost, and from now on each write."""
        self._outbox = None
        if is_lost:
            self._held = b""
        self.flush()

    def close(self) -> None:
        """Sends what is held, and closes the connection."""
        self.flush()
        self.transport.close()

    def is_closing(self) -> bool:
        """Returns whether it is closed, or about to be."""
        return self.transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)
