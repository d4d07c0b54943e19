"""Reads on in a request while nobody asks, which is how its client's leaving is seen."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from truthgpt_serve.http.asgi import Message, Receive

logger = logging.getLogger(__name__)

DISCONNECT = "http.disconnect"
KEPT_BYTES = 1 << 20
"""What is read of a body ahead. Its client waits then, as its connection is full, and its leaving
is seen when the body is taken.
"""


class ReadAhead:
    """ASGI's `receive`, which can be had to read on by itself.

    Args:
        receive: The server's, of one request.
    """

    __slots__ = ("_arrived", "_ended", "_kept", "_num_kept", "_receive", "_taken", "_task")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    @property
    def is_begun(self) -> bool:
        """Whether it reads by itself."""
        return self._task is not None

    def begin(self, leave: Callable[[], None]) -> None:
        """Begins to read; nobody may wait for a message then.

        Args:
            leave: Called once, when the client leaves.
        """
        self._kept: deque[Message] = deque()
        self._num_kept = 0
        self._ended = False
        self._arrived, self._taken = asyncio.Event(), asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._read(leave))

    def close(self) -> None:
        """Reads no further; whoever still waits is told that the client has left."""
        task, self._task = self._task, None  # else a cancelled task and its frame hold each other
        if task is not None:
            self._ended = True
            self._arrived.set()
            task.cancel()

    async def __call__(self) -> Message:
        """Returns the next message."""
        if self._task is None:
            return await self._receive()
        while not self._kept:
            if self._ended:
                return {"type": DISCONNECT}
            self._arrived.clear()
            await self._arrived.wait()
        message = self._kept.popleft()
        self._num_kept -= len(message.get("body", b""))
        self._taken.set()
        return message

    async def _read(self, leave: Callable[[], None]) -> None:
        try:
            while (message := await self._receive())["type"] != DISCONNECT:
                self._kept.append(message)
                self._num_kept += len(message.get("body", b""))
                self._arrived.set()
                while self._num_kept > KEPT_BYTES:
                    self._taken.clear()
                    await self._taken.wait()
        except Exception as error:
            logger.debug("a connection broke: %r", error)
        self._ended = True
        self._arrived.set()
        leave()
