"""Carries a job's events from the engine's thread to the event loop; knows no engine.

Bounded: steps that nobody has read yet are replaced by newer ones, and pictures are few.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any


class Feed:
    """The events of one job, to be made and read on an event loop.

    Args:
        progress: Whether steps and places in the queue are wanted; without it `next` only waits for
            the end.
    """

    def __init__(self, *, progress: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._wanted = progress
        self._items: deque[Any] = deque()
        self._wake = asyncio.Event()
        self._done = False

    def on_event(self, event: Any) -> None:
        """Takes an event on any thread; does not block."""
        if self._wanted:
            item = progress_item(event)
            self._call(lambda: self._put(item))

    def on_done(self, _job: Any) -> None:
        """Takes the end of the job on any thread; does not block."""
        self._call(self._finish)

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody reads any more
            self._loop.call_soon_threadsafe(function)

    def _put(self, item: Any) -> None:
        if isinstance(item, dict) and self._items and isinstance(self._items[-1], dict):
            self._items[-1] = item
        else:
            self._items.append(item)
        self._wake.set()

    def _finish(self) -> None:
        self._done = True
        self._wake.set()

    async def next(self) -> Any:
        """Returns the next event, or None when the job is done and all were read.

        A step or a place in the queue is the item for the stream; a picture is the engine's event.
        """
        while not self._items:
            if self._done:
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._items.popleft()


def progress_item(event: Any) -> Any:
    """Returns the stream's item for a step or a place in the queue, a picture's event as it is."""
    if hasattr(event, "image"):
        return event
    if event.queue_position:
        return {"queue_position": event.queue_position}
    return {"step": event.step, "num_steps": event.num_steps}
