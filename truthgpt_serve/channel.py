"""A bounded channel from a model's thread to an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

MAX_ITEMS = 64
"""Items that may wait for a slow client before the writer has to wait too."""


class ReaderGoneError(Exception):
    """The reader closed the channel: the writer must stop."""


class Channel:
    """One writer in any thread, one reader on the event loop that created it.

    Args:
        max_items: Waiting items at which `put` returns a future to wait for.
        merge: Takes the last waiting item and a new one, and returns what stands for both, or None
            to keep them apart.
    """

    def __init__(
        self, max_items: int = MAX_ITEMS, merge: Callable[[Any, Any], Any] | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._items: deque[Any] = deque()
        self._max_items = max_items
        self._merge = merge
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

    def put(self, item: Any, *, wake: bool = True) -> Future[None] | None:
        """Adds an item; returns a future to wait for when the channel is full now.

        Args:
            item: The item.
            wake: Whether the reader learns of it at once; else `wake_all` must follow.

        Raises:
            ReaderGoneError: The reader has closed the channel.
        """
        with self._lock:
            if self._closed:
                raise ReaderGoneError
            items = self._items
            both = self._merge(items[-1], item) if self._merge is not None and items else None
            if both is not None:
                items[-1] = both
            else:
                items.append(item)
            if len(items) >= self._max_items:
                self._room = Future()
            room = self._room
            waiter = self._take_waiter() if wake else None
        self._wake(waiter)
        return room

    def finish(self, error: BaseException | None = None, *, wake: bool = True) -> None:
        """Says that no item follows; without effect on a channel that is finished.

        Args:
            error: Raised to the reader after the last item.
            wake: See `put`.
        """
        with self._lock:
            if not self._finished:
                self._finished = True
                self._error = error
            waiter = self._take_waiter() if wake else None
        self._wake(waiter)

    def on_close(self, callback: Callable[[], object]) -> None:
        """Has `callback` called, in the reader's thread, when the reader closes the channel."""
        with self._lock:
            self._on_close = callback
            closed = self._closed
        if closed:
            callback()

    def _take_waiter(self) -> asyncio.Future[None] | None:
        waiter, self._waiter = self._waiter, None
        return waiter

    def _wake(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is None:
            return
        try:
            self._loop.call_soon_threadsafe(_resolve, (waiter,))
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


def wake_all(channels: Iterable[Channel]) -> None:
    """Wakes the readers of channels: one call for each event loop, however many there are."""
    waiters: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for channel in channels:
        with channel._lock:
            waiter = channel._take_waiter()
        if waiter is not None:
            waiters.setdefault(channel._loop, []).append(waiter)
    for loop, found in waiters.items():
        with contextlib.suppress(RuntimeError):  # the reader's loop was closed
            loop.call_soon_threadsafe(_resolve, found)


def _resolve(waiters: Iterable[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
