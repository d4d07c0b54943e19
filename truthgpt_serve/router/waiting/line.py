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
from truthgpt_serve.router.waiting.pace import Pace

DRAIN_S = 0.5
WAIT_S = 2.0
"""How long one waits at most: four times what the line takes, as requests end unevenly."""
MOMENT_S = 0.06
"""How long it waits where no place may come for long: a refusal is then still one at once."""
MAX_LENGTH = 256
FIRST_LENGTH = 8
"""Before it is known how fast requests end."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the line.

    Attributes:
        who: Its client.
        has_waited: Whether its client was told to come now.
        place: Says when it has a place, or that another one waits in its stead.
    """

    who: Claimant
    has_waited: bool
    place: asyncio.Future[bool] = field(repr=False)

    @property
    def has_place(self) -> bool:
        """Whether it was given one."""
        return self.place.done() and not self.place.cancelled() and self.place.result()


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

    def make_room(self, priority: int) -> bool:
        """Puts out the request that would come last; returns whether there was one to put out.

        Args:
            priority: Of the request that comes in its stead: only lower ones leave.
        """
        lower = [each for each in self._waiting if each.who.priority < priority]
        if not lower:
            return False
        last = min(reversed(lower), key=lambda each: (each.who.priority, each.has_waited))
        self._waiting.remove(last)
        if not last.place.done():
            last.place.set_result(False)
        return True

    def next(
        self, running: dict[str, int], may_begin: Callable[[Claimant], bool] = lambda who: True
    ) -> Waiting | None:
        """Takes the request that is next out of the line.

        Those of a higher priority come first, then those whose clients came as they were told; then
        those of the client that has the fewest at work, by its weight.

        Args:
            running: How many requests of each client are at work.
            may_begin: Returns whether there is a place for one of a client.
        """
        found = min(
            (each for each in self._waiting if may_begin(each.who)),
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
