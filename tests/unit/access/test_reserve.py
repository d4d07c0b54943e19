"""A few places are kept free for keys that have less than their share."""

from __future__ import annotations

import asyncio
import heapq
import random
from dataclasses import dataclass, field

import pytest

from truthgpt_serve.access import fair_queue, reserve
from truthgpt_serve.access.fair_queue import FairQueue
from truthgpt_serve.access.queued import Ticket
from truthgpt_serve.access.reserve import ACTIVE_S


@dataclass
class Place:
    """A queue of 16 places with its clock."""

    num_places: int = 16
    now_s: float = 100.0
    running: list[tuple[str, Ticket]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = FairQueue(self.num_places, 1000, "model 'story'", lambda: self.now_s)

    def enter(self, name: str, priority: int = 0, weight: float = 1.0) -> Ticket:
        ticket = self.queue.enter(name, weight, priority)
        self.running.append((name, ticket))
        return ticket

    def end(self, name: str) -> None:
        """Ends one request of a key that runs."""
        pair = next(pair for pair in self.running if pair[0] == name and pair[1].begun_s)
        self.running.remove(pair)
        self.queue.leave(pair[1])

    def number(self, name: str) -> int:
        return sum(1 for each, ticket in self.running if each == name and ticket.begun_s)


async def test_the_next_request_of_another_key_begins_at_once() -> None:
    place = Place()
    place.enter("steady")
    for _ in range(100):
        place.enter("busy")
    assert place.number("busy") == 12  # of 16, one runs and three are kept
    for _ in range(3):
        assert place.queue.expected_s("steady") == 0
        assert place.enter("steady").future is None
    assert place.queue.expected_s("busy") >= 0
    for _ in range(3):  # places that come are kept again
        place.end("busy")
    assert place.number("busy") == 9
    assert place.enter("steady").future is None


async def test_one_key_alone_has_all_places() -> None:
    place = Place()
    for _ in range(30):
        place.enter("busy")
    assert place.number("busy") == 16


async def test_keys_with_their_share_leave_no_place_unused() -> None:
    place = Place()
    for _ in range(30):
        place.enter("a")
        place.enter("b")
    assert (place.number("a"), place.number("b")) == (8, 8)
    for _ in range(8):
        place.now_s += 1
        place.end("a")
    assert place.queue.num_running == 16


async def test_places_are_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "LOOK_S", 0.02)
    place = Place()
    place.enter("steady")
    for _ in range(100):
        place.enter("busy")
    place.now_s += 1
    place.end("steady")
    assert place.number("busy") == 13
    place.now_s += ACTIVE_S / 2
    place.end("busy")
    assert place.number("busy") == 13
    place.now_s += ACTIVE_S
    async with asyncio.timeout(10):
        while place.number("busy") < 16:  # without any request that comes or ends
            await asyncio.sleep(0.01)


async def test_weights_say_what_a_share_is() -> None:
    place = Place()
    for _ in range(4):
        place.enter("steady", weight=1.0)
    for _ in range(30):
        place.enter("busy", weight=3.0)
    assert place.number("busy") == 12  # both have their share: a quarter, and three


async def test_nothing_is_kept_for_those_who_come_later_anyway() -> None:
    place = Place()
    place.enter("steady", priority=-1)
    for _ in range(30):
        place.enter("busy")
    assert place.number("busy") == 15


async def test_few_places_are_all_used() -> None:
    place = Place(num_places=4)
    place.enter("steady")
    for _ in range(30):
        place.enter("busy")
    assert place.queue.num_running == 4


async def test_the_keys_for_which_places_are_kept_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reserve, "MAX_KEYS", 4)
    place = Place()
    for number in range(50):
        place.enter(f"key-{number}")
        place.end(f"key-{number}")
    assert len(place.queue._reserve._recent) == 4


async def test_with_many_keys_the_reserve_is_asked_for_few_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place()
    for number in range(400):
        place.enter(f"key-{number % 200}")
    asked = []
    keeps = reserve.Reserve.keeps

    def noted(self: reserve.Reserve, key: reserve.Tenant, num_free: int) -> bool:
        asked.append(key.name)
        return keeps(self, key, num_free)

    monkeypatch.setattr(reserve.Reserve, "keeps", noted)
    place.end("key-0")
    assert place.queue.num_running == 16
    assert len(asked) <= 16


class Load:
    """Requests of a steady key, 8 a second, and of a busy one: 0.5 s each on average, 16 places.

    Attributes:
        waits_s: How long those of the steady key wait.
    """

    def __init__(
        self, busy_per_s: float, num_kept: int | None = None, seconds: float = 300
    ) -> None:
        self._rng, self._place = random.Random(1), Place()
        if num_kept is not None:
            self._place.queue._reserve._num_kept = num_kept
        self._events: list[tuple[float, int, str, Ticket | None]] = []
        self._waiting: dict[Ticket, tuple[str, float]] = {}
        self.waits_s: list[float] = []
        for name, rate in (("steady", 8.0), ("busy", busy_per_s)):
            at_s = self._place.now_s
            while rate and at_s < 100 + seconds:
                at_s += self._rng.expovariate(rate)
                self._add(at_s, name, None)

    def run(self) -> float:
        """Returns the wait of the steady key's requests that one of a hundred exceeds."""
        while self._events:
            self._place.now_s, _, name, ended = heapq.heappop(self._events)
            if ended is not None:
                self._place.queue.leave(ended)
            elif name == "steady" or len(self._waiting) < 150:
                self._waiting[self._place.queue.enter(name)] = (name, self._place.now_s)
            for ticket in [each for each in self._waiting if each.begun_s]:
                self._begin(ticket, *self._waiting.pop(ticket))
        return sorted(self.waits_s)[int(0.99 * len(self.waits_s))]

    def _begin(self, ticket: Ticket, name: str, came_s: float) -> None:
        if name == "steady":
            self.waits_s.append(self._place.now_s - came_s)
        self._add(self._place.now_s + 0.02 * self._rng.randrange(1, 50), name, ticket)

    def _add(self, at_s: float, name: str, ticket: Ticket | None) -> None:
        heapq.heappush(self._events, (at_s, len(self._events), name, ticket))


async def test_a_flood_moves_the_waits_of_another_key_by_little() -> None:
    share, flood = Load(16).run(), Load(160).run()
    assert flood <= 1.15 * share
    assert flood < Load(160, num_kept=0).run() / 1.2
    assert Load(0).run() == 0
