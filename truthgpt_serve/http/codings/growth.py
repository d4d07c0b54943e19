"""Bounds how much longer all bodies of a process together may be than they came."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from truthgpt_serve.errors import OverloadedError, TooLargeError

MAX_GROWN_BYTES = 256 * 2**20
"""How much longer all bodies of one process together may be than they came. Else many small
requests, which cost their clients nothing, would fill the memory."""


class Grown:
    """How much longer the bodies of one process are than they came.

    Args:
        max_bytes: Most of it.
    """

    def __init__(self, max_bytes: int = MAX_GROWN_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lock = threading.Lock()

    @contextmanager
    def body(self) -> Iterator[Growth]:
        """Counts one body while the block runs, or until it is released."""
        growth = Growth(self)
        try:
            yield growth
        finally:
            growth.release()

    def _take(self, num_bytes: int, of_body: int) -> None:
        if of_body > self._max_bytes:
            raise TooLargeError(
                f"the body becomes over {self._max_bytes} bytes longer without its compression: "
                "send it without compression"
            )
        if self._num_bytes + num_bytes > self._max_bytes:
            raise OverloadedError(
                "too many compressed bodies are being worked on; try again, or send this one "
                "without compression"
            )
        self._num_bytes += num_bytes


class Growth:
    """How much longer one body is than it came; threads may call it.

    Args:
        all_bodies: Those of the process.
    """

    def __init__(self, all_bodies: Grown) -> None:
        self._all = all_bodies
        self._taken = 0
        self._released = False

    def reach(self, num_bytes: int) -> None:
        """Counts so many bytes in all for this body.

        Raises:
            TooLargeError: They are more than all bodies together may have.
            OverloadedError: They are with those of other bodies, or this one was released.
        """
        with self._all._lock:
            if self._released:  # a thread goes on after its request was cancelled: this ends it
                raise OverloadedError("the request has ended")
            if num_bytes > self._taken:
                self._all._take(num_bytes - self._taken, num_bytes)
                self._taken = num_bytes

    def release(self) -> None:
        """Counts nothing any more: the body was sent on or parsed, or its request has ended."""
        with self._all._lock:
            self._all._num_bytes -= self._taken
            self._taken = 0
            self._released = True
