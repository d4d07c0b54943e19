"""What this process let in during the last minute: a server that lost its counts is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from truthgpt_serve.access.counting.charges import BUCKET_S, NUM_BUCKETS, WINDOW_S

Counts = dict[int, float]
"""Amounts by half seconds since the epoch, on this machine's clock."""


class OwnCounts:
    """The counts of one process by name, and what is known of those of all processes."""

    def __init__(self) -> None:
        self._all: dict[str, Counts] = {}
        self._untold: dict[str, Counts] = {}
        self._told: list[tuple[str, Counts]] = []
        self._known: dict[str, tuple[float, float]] = {}
        self._dropped_s = 0.0

    def __bool__(self) -> bool:
        """Returns whether anything may be of the last minute."""
        return bool(self._all)

    def add(self, name: str, amount: float, at_s: float, *, is_told: bool) -> None:
        """Notes what was let in, or corrects it.

        Args:
            name: Whose count.
            amount: How much more, or less.
            at_s: When it counts.
            is_told: Whether the server has counted it.
        """
        bucket = int(at_s / BUCKET_S)
        for counts in (self._all,) if is_told else (self._all, self._untold):
            of_name = counts.get(name)
            if of_name is None:
                of_name = counts[name] = {}
            of_name[bucket] = of_name.get(bucket, 0.0) + amount

    def know(self, name: str, used: float, now_s: float) -> None:
        """Notes what of a minute all processes have used, as the server has said it."""
        self._known[name] = (used, now_s)

    def known(self, name: str, now_s: float) -> float:
        """Returns what of that still counts, if it was used evenly."""
        used, then_s = self._known.get(name, (0.0, 0.0))
        return used * max(0.0, 1 - (now_s - then_s) / WINDOW_S) if used else 0.0

    def to_tell(self, *, is_lost: bool) -> dict[str, Counts]:
        """Returns what the server does not know.

        Args:
            is_lost: Whether it has lost what it knew.
        """
        return {
            name: {**counts} for name, counts in (self._all if is_lost else self._untold).items()
        }

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Holds that the server is told in this block; what comes meanwhile is told next time."""
        untold, self._untold = self._untold, {}
        try:
            yield
        except BaseException:
            for name, counts in untold.items():
                of_name = self._untold.setdefault(name, {})
                for bucket, amount in counts.items():
                    of_name[bucket] = of_name.get(bucket, 0.0) + amount
            raise
        self._told += untold.items()

    def take_told(self) -> list[tuple[str, Counts]]:
        """Returns what the server was told since the last call."""
        told, self._told = self._told, []
        return told

    def drop_old(self, now_s: float) -> None:
        """Forgets what is older than a minute, once in a while."""
        if now_s - self._dropped_s < WINDOW_S / 4:
            return
        self._dropped_s, oldest = now_s, int(now_s / BUCKET_S) - NUM_BUCKETS
        for counts in (self._all, self._untold):
            for name, of_name in list(counts.items()):
                counts[name] = kept = {at: each for at, each in of_name.items() if at > oldest}
                if not kept:
                    del counts[name]
        self._known = {
            name: pair for name, pair in self._known.items() if now_s - pair[1] < WINDOW_S
        }
