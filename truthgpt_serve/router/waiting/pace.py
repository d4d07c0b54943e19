"""How fast requests end at a model, and how steadily: one by one, or many at once in batches."""

from __future__ import annotations

from collections.abc import Callable

STEADY_S, STEADY_ENDS = 1.0, 4
"""Requests end steadily where no two ends are further apart, of so many in the last seconds."""
SPAN_S, IDLE_S = 2.0, 30.0
"""Over which ends are counted; after which those before say nothing."""
TOLD_S = 600.0
"""After which what a model has told and taken says nothing either: it may be another one."""
BATCH = 4
"""Requests end in batches where so many of them would have ended in the longest time without."""
_NEW_SHARE = 0.1
"""How much the newest request counts in the mean."""


class Pace:
    """How many requests end in a second, and how steadily.

    Args:
        clock: The time in seconds, which only goes forward.
    """

    __slots__ = (
        *("_before", "_clock", "_gaps_s", "_last_s", "_mean_s", "_number", "_number_before"),
        *("_since_s", "_told", "_told_s"),
    )

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since_s = self._last_s = clock()
        self._gaps_s = (0.0, 0.0)  # the longest before, and now
        self._number = self._number_before = 0
        self._before: float | None = None
        self._mean_s = 0.0
        self._told, self._told_s = 0.0, self._last_s

    def begin(self) -> None:
        """Notes that one begins where none was at work: none could end before."""
        if self._clock() - self._last_s > TOLD_S:
            self._mean_s = 0.0
        self._last_s = self._clock()

    def end(self, took_s: float = 0.0) -> None:
        """Counts one.

        Args:
            took_s: How long it took, its waiting at the model included; 0 where that says nothing.
        """
        self._look()
        now_s = self._clock()
        self._gaps_s = (self._gaps_s[0], max(self._gaps_s[1], now_s - self._last_s))
        self._last_s = now_s
        self._number += 1
        if took_s:
            self._mean_s += (_NEW_SHARE if self._mean_s else 1.0) * (took_s - self._mean_s)

    def tell(self, place_s: float) -> None:
        """Notes the seconds between two places, as the model says it."""
        self._told, self._told_s = place_s, self._clock()

    def place_s(self, num_places: float) -> float:
        """Returns the seconds between two places; 0 where nothing is known.

        What the model has told lately counts, then what was seen. A model that had little to do
        could do more than was seen: as much as its requests at work end by the time that they take.

        Args:
            num_places: How many requests the model works on.
        """
        told_age_s = self._clock() - self._told_s
        if self._told and told_age_s <= IDLE_S:
            return self._told
        mean_s = self._mean_s if self.quiet_s <= TOLD_S else 0.0
        if per_s := self.per_s:
            return min(1 / per_s, mean_s / num_places) if mean_s else 1 / per_s
        if self._told and told_age_s <= TOLD_S:
            return self._told
        return mean_s / num_places

    @property
    def told_s(self) -> float:
        """Seconds between two places, as the model has told it lately; 0 if it has not."""
        return self._told if self._clock() - self._told_s <= TOLD_S else 0.0

    @property
    def quiet_s(self) -> float:
        """Seconds since one ended, or began where none was at work."""
        return self._clock() - self._last_s

    def batch_s(self, place_s: float) -> float:
        """Returns the seconds between two batches; 0 where requests end one by one, or soon.

        Args:
            place_s: Seconds between two places.
        """
        self._look()
        gap_s = max(self._gaps_s)
        return gap_s if place_s and gap_s >= max(STEADY_S, BATCH * place_s) else 0.0

    def after_batch_s(self, wait_s: float, batch_s: float) -> float:
        """Returns in how many seconds a batch ends, at `wait_s` or after it."""
        since_s = self.quiet_s
        return -(-(since_s + wait_s) // batch_s) * batch_s - since_s

    def is_steady(self, since_s: float, *, is_quick: bool = False) -> bool:
        """Returns whether the next one is likely to end soon.

        Args:
            since_s: One that has ended since then is enough.
            is_quick: Whether it is known that none takes long: none needs to have ended.
        """
        self._look()
        is_seen = self._last_s > since_s or self._number + self._number_before >= STEADY_ENDS
        return (is_seen or is_quick) and max(*self._gaps_s, self.quiet_s) <= STEADY_S

    @property
    def per_s(self) -> float | None:
        """That number, of the last seconds; None at the start, and after an idle time."""
        self._look()
        if self._before is None:
            return None
        taken_s = self._clock() - self._since_s
        return max(self._before, self._number / max(taken_s, SPAN_S, *self._gaps_s))

    def _look(self) -> None:
        taken_s = self._clock() - self._since_s
        if taken_s >= SPAN_S:
            is_idle = taken_s >= IDLE_S
            self._before = None if is_idle else self._number / taken_s
            self._gaps_s = (0.0 if is_idle else self._gaps_s[1], 0.0)
            self._number_before = 0 if is_idle else self._number
            self._since_s += taken_s
            self._number = 0
