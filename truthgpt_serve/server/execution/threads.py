"""A few threads for work off the event loop, with a bounded queue in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from truthgpt_serve.queue_full import queue_full

T = TypeVar("T")

NUM_THREADS = 4
MAX_WAITING = 256
"""Calls that may run or wait; each request makes few."""


class BoundedExecutor:
    """Runs functions in threads, a few at a time; for one event loop.

    Args:
        owner: Whose queue it is, for the refusal, such as `recordings`. Its threads are named so.
        num_threads: How many functions run at a time.
        max_waiting: How many run or wait at most.
    """

    def __init__(
        self, owner: str, *, num_threads: int = NUM_THREADS, max_waiting: int = MAX_WAITING
    ) -> None:
        self._owner = owner
        self._num_threads = num_threads
        self._max_waiting = max_waiting
        self._threads: ThreadPoolExecutor | None = None
        self._num_waiting = 0

    async def run(self, function: Callable[[], T]) -> T:
        """Returns what `function` returns.

        Raises:
            OverloadedError: The queue is full.
            Exception: Whatever it raised.
        """
        if self._num_waiting >= self._max_waiting:
            raise queue_full(self._owner, self._num_waiting)
        if self._threads is None:
            prefix = self._owner.replace(" ", "-")
            self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix=prefix)
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """Ends the threads once they are done with what they have; `run` makes new ones."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
