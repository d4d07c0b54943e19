"""Lets grammars that are slow to compile into the engine a few at a time.

The engine compiles again what was compiled beside it, on threads of its own: a few slow grammars
must not take all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict

PLACES = 2
"""Slow grammars that the engine compiles at the same time."""

SLOW_S = 0.25
"""A grammar that takes longer to compile counts as slow."""

_MAX_KNOWN = 512
_PATIENCE = 3.0
"""How many times its measured time a grammar may hold its place: the engine's threads make way for
its steps, and go on when the request's client has left."""


class SlowLane:
    """The places of slow grammars in the engine."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(PLACES)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._holding: set[asyncio.Task[None]] = set()

    async def enter(self, key: tuple[str, str], seconds: float) -> asyncio.Event | None:
        """Waits for a place if a grammar needs one.

        Args:
            key: The grammar. One that the engine had before is in its cache.
            seconds: How long it took to compile beside the engine.

        Returns:
            What the caller sets when the engine has compiled it, or None if it needs no place.
        """
        if seconds <= SLOW_S or key in self._known:
            return None
        await self._places.acquire()
        if key in self._known:
            self._places.release()
            return None
        self._known[key] = None
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        compiled = asyncio.Event()
        holding = asyncio.create_task(self._hold(compiled, _PATIENCE * seconds + 1))
        self._holding.add(holding)
        holding.add_done_callback(self._holding.discard)
        return compiled

    async def _hold(self, compiled: asyncio.Event, limit_s: float) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(compiled.wait(), limit_s)
        finally:
            self._places.release()
