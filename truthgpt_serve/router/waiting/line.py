"""The requests that wait a moment for a place at a model, and which of them gets the next one.

No more wait than the model is done with in half a second: those that it would leave waiting are
refused at once, and the others have their place before they would give up. Where none may come for
long, as in an image model, whoever waits is refused after a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from truthgpt_serve.router.waiting.claims import Claimant

DRAIN_S = 0.5
WAIT_S = 2.0
"""How long one waits at most: four times what the line takes, as requests end unevenly."""
MOMENT_S = 0.08
"""How long it waits where no place may come for long: a refusal is then still one at once."""
STEADY_S, STEADY_ENDS = 1.0, 4
"""Requests end steadily where no two ends are further apart, of so many in the last seconds."""
MAX_LENGTH = 256
FIRST_LENGTH = 8
"""Before it is known how fast requests end."""
_SPAN_S, _IDLE_S = 2.0, 30.0
"""Over which ends are counted; after which those before say nothing."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the line.

    Attributes:
        who: Its client.
        has_waited: Whether its client was told to come now.
        place: Says when it has a place.
    """

    who: Claimant
    has_waited: bool
    place: asyncio.Future[None] = field(repr=False)


class Pace:
    """How many requests end in a second, and how steadily.

    Args:
        clock: The time in seconds, which only goes forward.
    """

    __slots__ = ("_before", "_clock", "_gaps_s", "_last_s", "_number", "_number_before", "_since_s")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since_s = self._last_s = clock()
        self._gaps_s = (0.0, 0.0)  # the longest before, and now
        self._number = self._number_before = 0
        self._before: float | None = None

    def begin(self) -> None:
        """Notes that one begins where none was at work: none could end before."""
        self._last_s = self._clock()

    def end(self) -> None:
        """Counts one."""
        self._look()
        now_s = self._clock()
        self._gaps_s = (self._gaps_s[0], max(self._gaps_s[1], now_s - self._last_s))
        self._last_s = now_s
        self._number += 1

    def is_steady(self, since_s: float, *, is_quick: bool = False) -> bool:
        """Returns whether the next one is likely to end soon.

        Args:
            since_s: One that has ended since then is enough.
            is_quick: Whether it is known that none takes long: none needs to have ended.
        """
        self._look()
        is_seen = self._last_s > since_s or self._number + self._number_before >= STEADY_ENDS
        return (is_seen or is_quick) and max(
            *self._gaps_s, self._clock() - self._last_s
        ) <= STEADY_S

    @property
    def per_s(self) -> float | None:
        """That number, of the last seconds; None at the start, and after an idle time."""
        self._look()
        if self._before is None:
            return None
        taken_s = self._clock() - self._since_s
        return max(self._before, self._number / max(taken_s, _SPAN_S))

    def _look(self) -> None:
        taken_s = self._clock() - self._since_s
        if taken_s >= _SPAN_S:
            is_idle = taken_s >= _IDLE_S
            self._before = None if is_idle else self._number / taken_s
            self._gaps_s = (0.0 if is_idle else self._gaps_s[1], 0.0)
            self._number_before = 0 if is_idle else self._number
            self._since_s += taken_s
            self._number = 0


class Line:
    """The line of one model.

    Args:
        clock: The time in seconds, which only goes forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._waiting: list[Waiting] = []
        self.pace = Pace(clock)

    def __len__(self) -> int:
        """Returns how many wait."""
        return len(self._waiting)

    def length(self, told_per_s: float | None) -> int:
        """Returns how many requests the model is done with in `DRAIN_S`.

        Args:
            told_per_s: How many places a second it says that there are, or None.
        """
        per_s = self.pace.per_s
        if per_s is None:
            per_s = told_per_s
        return FIRST_LENGTH if per_s is None else min(MAX_LENGTH, round(per_s * DRAIN_S))

    def join(self, who: Claimant, *, has_waited: bool) -> Waiting:
        """Has a request wait; whoever joins leaves, or is given a place."""
        place = asyncio.get_running_loop().create_future()
        waiting = Waiting(who, has_waited, place)
        self._waiting.append(waiting)
        return waiting

    def leave(self, waiting: Waiting) -> None:
        """Takes a request out of the line, if it is there."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def next(self, running: dict[str, int]) -> Waiting | None:
        """Takes the request that is next out of the line.

        Those of a higher priority come first, then those whose clients came as they were told; then
        those of the client that has the fewest at work, by its weight.

        Args:
            running: How many requests of each client are at work.
        """
        found = min(
            self._waiting,
            key=lambda each: (
                -each.who.priority,
                not each.has_waited,
                running.get(each.who.client, 0) / each.who.weight,
            ),
            default=None,
        )
        if found is not None:
            self._waiting.remove(found)
        return found
