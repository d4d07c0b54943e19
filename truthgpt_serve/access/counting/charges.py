"""What is counted of a key: how much of a minute's limit is asked for, and how it then stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_S = 60.0
BUCKET_S = 0.5
NUM_BUCKETS = int(WINDOW_S / BUCKET_S) + 1
"""One more than a minute's: so no minute, wherever it begins, has more than was let in by it."""


@dataclass(slots=True)
class Standing:
    """What one name has used of a limit.

    Attributes:
        used: In the last minute, what was asked for now included if it was let in.
        wait_s: Seconds until what was asked for fits; 0 if it was let in.
        reset_s: Seconds until nothing of the minute counts any more.
        running: What runs now, this included; -1 if it was not let in for that.
    """

    used: float
    wait_s: float
    reset_s: float
    running: int

    @property
    def fits(self) -> bool:
        """Whether it was let in, as far as this name goes."""
        return not self.wait_s and self.running >= 0


@dataclass(slots=True)
class Charge:
    """What shall be counted under one name.

    Attributes:
        name: Whose count.
        amount: How much.
        limit: Most in a minute; None for no limit.
        max_running: Most at the same time; None for no limit.
        runs: Whether it also counts as one thing that runs, until `finish`.
    """

    name: str
    amount: float
    limit: float | None
    max_running: int | None = None
    runs: bool = True


def time_until(counts: Sequence[float], bucket: int, limit: float, now_s: float) -> float:
    """Returns in how many seconds no more than `limit` of a minute's counts is left.

    Args:
        counts: Of the buckets, in a ring.
        bucket: The present one.
        limit: How much may be left.
        now_s: The time, as `time.time` gives it.
    """
    left = sum(counts)
    if left <= limit:
        return 0.0
    into_s = now_s % BUCKET_S
    for step in range(1, NUM_BUCKETS):  # the oldest first: it is emptied next
        left -= counts[(bucket + step) % NUM_BUCKETS]
        if left <= limit + 1e-9:
            return step * BUCKET_S - into_s
    return NUM_BUCKETS * BUCKET_S - into_s
