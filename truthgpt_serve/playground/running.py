"""The requests that run for open pages, so that a button or a closed page ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

INTERVAL_S = 0.05
"""The least time between two updates of a page: what comes meanwhile is shown together. Browsers
leave out an update that another one follows within a frame."""
MAX_UNREAD, READ_S = 4 << 20, 30.0
"""Bytes that a page may have unread when it is sent more, and how long that is waited for."""

Work = Callable[[Callable[[], None]], Awaitable[None]]
"""Does a request, and calls its argument whenever there is something to show."""


class Running:
    """At most one request for each open page and kind of request.

    Attributes:
        num_unread: Returns how many bytes a page has not read.
    """

    def __init__(self) -> None:
        self.num_unread: Callable[[str], int] = lambda _: 0
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def stop(self, session: str, kind: str) -> bool:
        """Ends a request; returns whether there was one."""
        task = self._tasks.pop((session, kind), None)
        return task is not None and task.cancel()

    def stop_all(self, session: str | None = None) -> None:
        """Ends the requests of one page, or of all."""
        for key in [key for key in self._tasks if session in (key[0], None)]:
            self.stop(*key)

    async def follow(self, session: str, kind: str, work: Work) -> AsyncGenerator[None, None]:
        """Yields whenever there is something to show, and once more at the end.

        Closing this ends the work, as `stop` does, which is no error.

        Args:
            session: The page.
            kind: What it is; an earlier one of this kind ends.
            work: The request.

        Raises:
            Exception: Whatever the work raises.
        """
        changed = asyncio.Event()
        self.stop(session, kind)
        task = asyncio.ensure_future(_as_coroutine(work, changed))
        task.add_done_callback(lambda _: changed.set())
        self._tasks[session, kind] = task
        try:
            while not task.done():
                await asyncio.sleep(INTERVAL_S)
                await changed.wait()
                changed.clear()
                if not await self._is_read(session):
                    task.cancel()
                if not task.done():
                    yield
            with suppress(asyncio.CancelledError):
                await task
            yield
        finally:
            if self._tasks.get((session, kind)) is task:
                del self._tasks[session, kind]
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _is_read(self, session: str) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_S):
                while self.num_unread(session) > MAX_UNREAD:
                    await asyncio.sleep(INTERVAL_S)
            return True
        return False


async def _as_coroutine(work: Work, changed: asyncio.Event) -> None:
    await work(changed.set)
