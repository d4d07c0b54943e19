"""A bounded way from a model's thread to the replica's event loop; knows no models and no HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

MAX_ITEMS = 64
"""Items that may wait for a slow client before the writer has to wait too."""


class ReaderGoneError(Exception):
    """The reader closed the channel: the writer must stop."""


class Channel:
    """One writer in any thread, one reader on the event loop that created it."""

    def __init__(self, max_items: int = MAX_ITEMS) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._items: deque[Any] = deque()
        self._max_items = max_items
        self._room: Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._finished = False
        self._closed = False
        self._error: BaseException | None = None
        self._on_close: Callable[[], object] | None = None

    @property
    def closed(self) -> bool:
        """Whether the reader has gone."""
        return self._closed

    def put(self, item: Any) -> Future[None] | None:
        """Adds an item; returns a future to wait for when the channel is full now.

        Raises:
            ReaderGoneError: The reader has closed the channel.
        """
        with self._lock:
            if self._closed:
                raise ReaderGoneError
            self._items.append(item)
            if len(self._items) >= self._max_items:
                self._room = Future()
            waiter, self._waiter = self._waiter, None
            room = self._room
        self._wake(waiter)
        return room

    def finish(self, error: BaseException | None = None) -> None:
        """Says that no item follows; `error` is raised to the reader after the last item."""
        with self._lock:
            self._finished = True
            self._error = error
            waiter, self._waiter = self._waiter, None
        self._wake(waiter)

    def on_close(self, callback: Callable[[], object]) -> None:
        """Has `callback` called, in the reader's thread, when the reader closes the channel."""
        with self._lock:
            self._on_close = callback
            closed = self._closed
        if closed:
            callback()

    def _wake(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is None:
            return
        try:
            self._loop.call_soon_threadsafe(_resolve, waiter)
        except RuntimeError:  # the reader's event loop was closed under a running model
            self._closed = True

    async def get(self) -> list[Any]:
        """Returns all waiting items, at least one; an empty list at the end.

        Raises:
            BaseException: The error given to `finish`.
        """
        while True:
            with self._lock:
                room, self._room = self._room, None
                items = list(self._items)
                self._items.clear()
                if not items and not self._finished:
                    self._waiter = self._loop.create_future()
                waiter = self._waiter
            if room is not None:
                room.set_result(None)
            if items:
                return items
            if waiter is None:
                if self._error is not None:
                    raise self._error
                return items
            await waiter

    def close(self) -> None:
        """Ends the reading side; a writer that waits or puts is told to stop."""
        with self._lock:
            self._closed = True
            room, self._room = self._room, None
            callback, self._on_close = self._on_close, None
            self._items.clear()
        if room is not None:
            room.set_result(None)
        if callback is not None:
            callback()


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
