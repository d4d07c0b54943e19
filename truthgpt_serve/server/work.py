"""Counts the work of requests, where it is known before it is done, such as steps x megapixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NEW_SHARE = 0.2
"""How much the newest request counts in the means."""


class WorkMeter:
    """The work that a model has now, and how fast it is with it. For one event loop.

    The model is taken to do one request after the other, or all at the same time at the speed that
    it has for one: both leave the same work for a request that comes.

    Args:
        clock: The time in seconds, which only goes forward.

    Attributes:
        mean: The work of a request, lately; 0 before the first.
        speed: Work done per second, lately; 0 before the first request has ended.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._present: dict[object, float] = {}
        self._busy_s = 0.0
        self._since_s = clock()
        self._marked_s = 0.0
        self._done = 0.0
        self.mean = 0.0
        self.speed = 0.0

    @contextmanager
    def taking(self, amount: float) -> Iterator[None]:
        """Counts a request's work for as long as the block runs; only what succeeds tells a speed.

        Args:
            amount: Its work.
        """
        self.busy_s()
        self.mean = amount if not self.mean else self.mean + _NEW_SHARE * (amount - self.mean)
        key = object()
        self._present[key] = amount
        try:
            yield
            self._done += amount
        finally:
            self.busy_s()
            del self._present[key]
        self._measure()

    def busy_s(self) -> float:
        """Returns for how long there has been any work."""
        now_s = self._clock()
        if self._present:
            self._busy_s += now_s - self._since_s
        self._since_s = now_s
        return self._busy_s

    @property
    def num_waiting(self) -> int:
        """Requests beyond the first."""
        return max(0, len(self._present) - 1)

    @property
    def queued(self) -> float:
        """The work of all requests but the largest: what another one would wait for."""
        return sum(self._present.values()) - max(self._present.values(), default=0.0)

    def _measure(self) -> None:
        """Takes the work since the request before, and the time in which there was any."""
        taken_s = self._busy_s - self._marked_s
        if taken_s <= 0:
            return
        speed = self._done / taken_s
        self.speed = speed if not self.speed else self.speed + _NEW_SHARE * (speed - self.speed)
        self._marked_s, self._done = self._busy_s, 0.0
