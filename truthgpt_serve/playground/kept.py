"""Answers that several pages share for a moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Finds each value once for all who ask at the same time, and keeps it, or its error.

    Args:
        keep_s: How long.
        most: How many are kept.
    """

    def __init__(self, keep_s: float, most: int) -> None:
        self._keep_s, self._most = keep_s, most
        self._kept: dict[str, tuple[float, T | Exception]] = {}
        self._finding: dict[str, asyncio.Task[T | Exception]] = {}

    @property
    def num_finding(self) -> int:
        """How many values are being found."""
        return len(self._finding)

    def look(self, name: str) -> T | Exception | None:
        """Returns what is kept, or None."""
        since, value = self._kept.get(name, (-self._keep_s, None))
        return value if time.monotonic() - since < self._keep_s else None

    async def get(self, name: str, find: Callable[[], Awaitable[T]]) -> T:
        """Returns what is kept, or else what `find` returns; it runs on when its askers leave.

        Raises:
            Exception: Whatever `find` raised.
        """
        value = self.look(name)
        if value is None:
            task = self._finding.get(name)
            if task is None:
                task = self._finding[name] = asyncio.ensure_future(self._find(name, find))
            value = await asyncio.shield(task)
        if isinstance(value, Exception):
            raise value.with_traceback(None)
        return value

    async def _find(self, name: str, find: Callable[[], Awaitable[T]]) -> T | Exception:
        value: T | Exception
        try:
            value = await find()
        except Exception as error:  # an outcome as any other, for all who ask
            value = error
        finally:
            del self._finding[name]
        self._kept.pop(name, None)
        while len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[name] = time.monotonic(), value
        return value
