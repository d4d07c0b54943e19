"""Sends the head of an answer and the first piece of its body in one write.

uvicorn writes them one after the other, and uvloop sends each at once: every answer then costs two
system calls here, and two events in the proxy in front.
"""

from __future__ import annotations

import asyncio
from typing import Any

COPIED_BYTES = 65536
"""A longer piece is not copied to be joined; the system call takes both as they are."""


class JoinedHead:
    """The transport of one answer, in place of the connection's own.

    A head is held until the first piece of the body comes, or until the event loop has run what was
    ready: the head of an answer that takes its time goes before.

    Args:
        transport: The connection's.
        loop: Its event loop.
    """

    __slots__ = ("_head", "_is_new", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._is_new = True
        self._head = b""

    def write(self, data: bytes) -> None:
        """Holds the first of what is written; sends what is held, and this."""
        if self._is_new:
            self._is_new = False
            self._head = data
            self._loop.call_soon(self._flush)
        elif not (head := self._head):
            self._transport.write(data)
        else:
            self._head = b""
            if len(data) <= COPIED_BYTES:
                self._transport.write(head + data)
            else:
                self._transport.writelines((head, data))

    def close(self) -> None:
        """Sends what is held, and closes the connection."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
