"""What a router knows of the requests to one application: who runs, who waits, what is promised."""

from __future__ import annotations

from collections.abc import Callable

from truthgpt_serve.queue_full import RETRY_AFTER_S, Promises
from truthgpt_serve.router.waiting.claims import Claimant, Claims
from truthgpt_serve.router.waiting.line import Line


class Requests:
    """Those of one application.

    Args:
        clock: The time in seconds, which only goes forward.

    Attributes:
        clock: That time.
        num_running: How many run.
        running: The same of each client.
        line: Who waits.
        claims: Who was told when to come again.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.num_running = 0
        self.running: dict[str, int] = {}
        self.line = Line(clock)
        self.claims = Claims(clock)
        self._promises = Promises(clock)

    def begin(self, who: Claimant) -> None:
        """Counts a request that runs."""
        if not self.num_running:
            self.line.pace.begin()
        self.num_running += 1
        self.running[who.client] = self.running.get(who.client, 0) + 1

    def end(self, who: Claimant, took_s: float = 0.0) -> None:
        """Counts one that does not any more.

        Args:
            who: Its client.
            took_s: How long it took; 0 where that says nothing.
        """
        self.line.pace.end(took_s)
        self.num_running -= 1
        if left := self.running[who.client] - 1:
            self.running[who.client] = left
        else:
            del self.running[who.client]

    def next_s(self, num_places: float) -> float:
        """Returns for how many seconds there may be no place: as long as one is kept.

        Args:
            num_places: How many requests the model works on.
        """
        place_s = self.line.pace.place_s(num_places)
        batch_s = self.line.pace.batch_s(place_s)
        # Clients were told whole seconds: they come up to one after the batch.
        return batch_s + RETRY_AFTER_S if batch_s else place_s

    def promise_s(self, num_places: float, num_held: int) -> float:
        """Promises the next place; returns in how many seconds there is one.

        Before any has ended, a request is thought to take as long again as it has taken by now. Of
        a batch all places come when it ends.

        Args:
            num_places: How many requests the model works on.
            num_held: Those that the queue holds, those at work included.
        """
        pace = self.line.pace
        if place_s := pace.place_s(num_places):
            wait_s = self._promises.next_s(place_s, num_held)
            batch_s = pace.batch_s(place_s)
            return pace.after_batch_s(wait_s, batch_s) if batch_s else wait_s
        return pace.quiet_s + self._promises.next_s(pace.quiet_s / num_places, num_held)
