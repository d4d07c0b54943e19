"""Calls that belong together: they run at the same time, and one that fails ends the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def gather(calls: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs calls at the same time; when one fails, or the caller is cancelled, all others end."""
    if len(calls) == 1:
        return [await calls[0]]
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = [task for task in tasks if task.done() and not task.cancelled()]
        for task in failed:
            if (error := task.exception()) is not None:
                raise error
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class CallSlots:
    """Where further calls of one request wait, so that a request with many calls is no overload.

    Its first call competes with other requests; each further one needs one of as many slots as a
    model has calls at once.

    Args:
        count: Says how many slots there are, once the model has started.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._free: asyncio.Semaphore | None = None

    async def run(self, index: int, call: Callable[[], Awaitable[T]]) -> T:
        """Awaits a call, which is the request's `index`-th, counted from 0."""
        if index == 0:
            return await call()
        if self._free is None:
            self._free = asyncio.Semaphore(self._count())
        async with self._free:
            return await call()
