"""Tells a model's blocking code that its client disconnected.

Nothing stops a thread from outside, so code that takes long asks `is_cancelled()` now and then, or
has a function called with `current_call().on_cancel`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


class CallCancelledError(Exception):
    """The call was given up because every client that waited for it has left."""


class Call:
    """One call of a model's blocking method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._callbacks: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        """Whether every client that waited for it has left."""
        return self._cancelled

    def cancel(self) -> None:
        """Tells the code that runs in the call; safe from any thread and more than once."""
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    @contextlib.contextmanager
    def on_cancel(self, callback: Callable[[], object]) -> Iterator[None]:
        """Calls `callback` when the call is cancelled during this block, in any thread."""
        with self._lock:
            self._callbacks.append(callback)
            cancelled = self._cancelled
        if cancelled:
            callback()
        try:
            yield
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

    def run(self, function: Callable[[], T]) -> T:
        """Returns `function()`, in which this is the current call."""
        token = _current.set(self)
        try:
            return function()
        finally:
            _current.reset(token)


_current: ContextVar[Call] = ContextVar("truthgpt_call")


def current_call() -> Call:
    """Returns the call in which this code runs; outside any, one that is never cancelled."""
    return _current.get(None) or Call()


def is_cancelled() -> bool:
    """Returns whether every client that waits for the code that asks has left."""
    return current_call().cancelled


def raise_if_cancelled() -> None:
    """Raises CallCancelledError when every client that waits for this code has left."""
    if is_cancelled():
        raise CallCancelledError("every client of this call disconnected")
