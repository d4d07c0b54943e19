"""Limits and pauses of restarts after a failure."""

from __future__ import annotations

MAX_FAILURES = 3
WINDOW_S = 600.0
DELAYS_S = (1.0, 5.0, 15.0)


class Retries:
    """Counts failures; gives up at the fourth within 10 minutes, or in a row.

    A start that never became ready counts however long it took.
    """

    def __init__(self) -> None:
        self._failures: list[tuple[float, bool]] = []

    def count(self, now_s: float, *, was_ready: bool) -> None:
        """Counts a failure at this moment of the monotonic clock."""
        if was_ready:
            self._failures = [
                (when, ready) for when, ready in self._failures if now_s - when < WINDOW_S
            ]
        self._failures.append((now_s, was_ready))

    @property
    def delay_s(self) -> float | None:
        """Seconds until the next try, or None to give up."""
        number = len(self._failures)
        return None if number > MAX_FAILURES else DELAYS_S[max(0, number - 1)]

    @property
    def num_failures(self) -> int:
        """How many failures count now."""
        return len(self._failures)

    @property
    def left(self) -> int:
        """How many more tries there are."""
        return MAX_FAILURES + 1 - len(self._failures)
