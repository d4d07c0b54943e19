"""What a fair queue knows of a key, and of each of its requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from truthgpt_serve.queue_full import Promises


class Key:
    """What is known of a key.

    Attributes:
        waiting: Its requests, oldest first.
        running: How many of its requests run.
        ready_s: The time of requests that it has had, divided by its weight, on the queue's clock
            of shares; the key with the least comes next.
        mean_s: How long its requests take.
        seen_s: When it last had a request here.
        weight: Its share, in proportion to those of others.
        promises: When those of its requests that are refused may come again.
    """

    __slots__ = (
        *("mean_s", "name", "priority", "promises", "ready_s", "running", "seen_s", "waiting"),
        "weight",
    )

    def __init__(
        self,
        name: str,
        ready_s: float,
        mean_s: float,
        weight: float = 1.0,
        priority: int = 0,
    ) -> None:
        self.name = name
        self.waiting: deque[Ticket] = deque()
        self.running = 0
        self.ready_s = ready_s
        self.mean_s = mean_s
        self.seen_s = 0.0
        self.weight = weight
        self.priority = priority
        self.promises: Promises | None = None


class Ticket:
    """One request in the queue, or at work.

    Attributes:
        key: Whose it is.
        begun_s: When it began to run; 0 before that and after its end.
        charged_s: How long it was thought to take.
        future: Says when its turn comes, by True; None where it came at once.
    """

    __slots__ = ("begun_s", "charged_s", "future", "key")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.begun_s = self.charged_s = 0.0
        self.future: asyncio.Future[bool] | None = None


def give_up(turn: asyncio.Future[bool]) -> None:
    """Ends the waiting for a turn that has not come; it is then False."""
    if not turn.done():
        turn.set_result(False)


def who_yields(keys: Iterable[Key], arriving: Key) -> Key | None:
    """Returns the key whose newest waiting request makes room for one that arrives.

    It is the one of the lowest priority that has the most there, by its weight.

    Args:
        keys: Those with something waiting, at least.
        arriving: Whose request arrives.

    Returns:
        None if that is the arriving one, or one that has no more than it, or comes before it.
    """
    longest = min(
        (key for key in keys if key.waiting),
        key=lambda key: (key.priority, -len(key.waiting) / key.weight),
        default=None,
    )
    if longest is None or longest.priority > arriving.priority:
        return None
    share = (len(arriving.waiting) + 1) / arriving.weight
    is_even = len(longest.waiting) / longest.weight <= share
    return None if longest.priority == arriving.priority and is_even else longest
