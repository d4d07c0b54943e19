"""Keeps a few places free for keys that have less than their share of them.

Without it a key that has a long queue takes each place at the moment it is free, and a request of
another key, though it is the next, waits for some request to end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

SHARE = 5
"""One place of so many is kept free, with many places fewer: their root. With fewer places, none.
With 16 places and requests of the same length, 3 are what a flood of one key does not move the
waits of another by."""
ACTIVE_S = 10.0
"""For how long places are kept for a key after its last request: then all are used."""
MAX_KEYS = 256
"""Keys for which places are kept: those that were here last."""


class Tenant(Protocol):
    """A key, as far as it matters here."""

    name: str
    running: int
    seen_s: float
    weight: float
    priority: int

    @property
    def waiting(self) -> object:
        """Its requests that wait; false if there are none."""


class Reserve:
    """Says for whom the last free places of a model are.

    Args:
        num_places: All places.
        clock: The time in seconds, which only goes forward.
    """

    def __init__(self, num_places: int, clock: Callable[[], float]) -> None:
        self._num_places = num_places
        self._num_kept = min(num_places // SHARE, math.isqrt(num_places))
        self._clock = clock
        self._recent: dict[str, Tenant] = {}

    def see(self, key: Tenant) -> None:
        """Notes that a key has a request."""
        if not self._num_kept:
            return
        key.seen_s = self._clock()
        self._recent.pop(key.name, None)
        self._recent[key.name] = key  # the last to be dropped
        if len(self._recent) > MAX_KEYS:
            self._recent.pop(next(iter(self._recent)))

    def keeps(self, key: Tenant, num_free: int) -> bool:
        """Returns whether the places that are free are kept from a key's next request.

        Args:
            key: The key.
            num_free: How many are free.
        """
        if num_free > self._num_kept or len(self._recent) < 2:
            return False
        self._drop_old()
        if len(self._recent) < 2:
            return False
        # Who comes before a key anyway counts for its share; who comes after it does not.
        rivals = [
            other
            for other in self._recent.values()
            if other.priority >= key.priority and other.name != key.name
        ]
        weights = key.weight + sum(other.weight for other in rivals)
        a_weight = self._num_places / weights
        if key.running < max(1, math.floor(key.weight * a_weight)):
            return False
        missing = 0
        for other in rivals:
            if other.waiting:  # the order of the queue says whether it comes before
                continue
            missing += max(0, math.ceil(other.weight * a_weight) - other.running)
            if missing >= num_free:
                return True
        return False

    def _drop_old(self) -> None:
        """Forgets the keys that had no request for a while and have none now."""
        old_s = self._clock() - ACTIVE_S
        while self._recent:
            key = next(iter(self._recent.values()))
            if key.seen_s > old_s:
                return
            del self._recent[key.name]
            if key.running or key.waiting:
                self.see(key)
