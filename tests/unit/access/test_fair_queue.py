"""Whose request comes next, and who leaves a full queue."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from truthgpt_serve.access.fair_queue import FairQueue
from truthgpt_serve.access.queued import Ticket
from truthgpt_serve.errors import OverloadedError


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Place:
    """A queue with its clock; `run` ends requests one by one and says whose came next."""

    num_places: int = 1
    max_waiting: int = 100
    clock: Clock = field(default_factory=Clock)
    tickets: list[tuple[str, Ticket]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = FairQueue(self.num_places, self.max_waiting, "model 'story'", self.clock)

    def enter(self, name: str, weight: float = 1.0, priority: int = 0) -> Ticket:
        ticket = self.queue.enter(name, weight, priority)
        self.tickets.append((name, ticket))
        return ticket

    def running(self) -> list[tuple[str, Ticket]]:
        """Returns what runs, by when it began."""
        found = [pair for pair in self.tickets if pair[1].begun_s]
        return sorted(found, key=lambda pair: pair[1].begun_s)

    def run(self, number: int, seconds: float = 1.0) -> str:
        """Ends the request that has run for longest, again and again; returns whose they were."""
        names = ""
        for _ in range(number):
            self.clock.now_s += seconds
            name, ticket = self.running()[0]
            self.tickets.remove((name, ticket))
            self.queue.leave(ticket)
            names += name
        return names


def has_ended(ticket: Ticket) -> bool:
    """Returns whether it is known of a request that waited what comes of it."""
    return ticket.future is not None and ticket.future.done()


def failure(ticket: Ticket) -> BaseException | None:
    """Returns why a request that waited was put out of the queue."""
    is_put_out = ticket.future is not None and has_ended(ticket) and not ticket.future.cancelled()
    return ticket.future.exception() if is_put_out and ticket.future is not None else None


async def test_a_burst_of_one_key_does_not_hold_up_the_others() -> None:
    place = Place()
    for _ in range(20):
        place.enter("a")
    assert place.run(5) == "aaaaa"
    for _ in range(3):
        place.enter("b")
    # The one that runs ends; then both in turn.
    order = place.run(8)
    assert order.count("b") == 3
    assert order.index("b") <= 2
    assert order.rindex("b") <= 7
    assert place.run(10) == "a" * 10


@pytest.mark.parametrize("weight", [1.0, 3.0])
async def test_shares_follow_weights(weight: float) -> None:
    place = Place(num_places=4, max_waiting=1000)
    for _ in range(300):
        place.enter("a", weight)
        place.enter("b")
    counts = Counter(place.run(200))
    assert counts["a"] / counts["b"] == pytest.approx(weight, rel=0.1)


async def test_long_requests_use_up_the_share_of_their_key() -> None:
    place = Place(max_waiting=1000)
    for _ in range(300):
        place.enter("a")
        place.enter("b")
    taken = Counter[str]()
    for _ in range(200):
        name = place.running()[0][0]
        seconds = 9.0 if name == "a" else 1.0
        taken[name] += int(seconds)
        place.run(1, seconds)
    assert taken["a"] / taken["b"] == pytest.approx(1, rel=0.15)


async def test_a_key_that_was_away_has_no_claim_on_the_past() -> None:
    place = Place()
    for _ in range(50):
        place.enter("a")
    place.run(40)
    for _ in range(20):
        place.enter("b")
    assert place.run(15).count("a") >= 6


async def test_priorities() -> None:
    place = Place()
    for name, priority in (("a", 0), ("b", -1), ("c", 5)):
        for _ in range(2):
            place.enter(name, priority=priority)
    assert place.run(6) == "accabb"


async def test_a_full_queue_makes_room_for_a_key_that_has_less() -> None:
    place = Place(max_waiting=10)
    for _ in range(11):
        place.enter("a")
    with pytest.raises(OverloadedError) as refused:
        place.enter("a")
    assert refused.value.retry_after_s == 1
    for number in range(5):
        place.enter("b")
        assert sum(has_ended(t) for _, t in place.tickets) == 1 + number
    with pytest.raises(OverloadedError, match="11 requests run or wait"):
        place.enter("b")
    # The newest of the key that had most are told so.
    evicted = [t for n, t in place.tickets if failure(t)]
    assert len(evicted) == 5
    assert [t for n, t in place.tickets if n == "a"][-5:] == evicted
    for ticket in evicted:
        place.queue.leave(ticket)
    assert place.queue.num_waiting == 10
    place.enter("c", priority=1)
    with pytest.raises(OverloadedError):
        place.enter("d", priority=-1)
    assert place.queue.num_waiting == 10


def told_s(place: Place, name: str, **options: int) -> int | None:
    """Returns what a request is told that the queue refuses."""
    with pytest.raises(OverloadedError) as refused:
        place.queue.enter(name, **options)
    return refused.value.retry_after_s


async def test_each_of_the_refused_is_told_a_place_of_its_own() -> None:
    """All who came back together would find one place."""
    place = Place(num_places=2, max_waiting=10)
    for _ in range(12):
        place.enter("a")
    assert told_s(place, "a") == 1  # nothing is known yet
    place.run(2, seconds=4.0)
    assert place.queue.place_s == pytest.approx(2.4)  # one took 4 s, the next one 8 s
    place.enter("a")
    place.enter("a")
    assert [told_s(place, "a") for _ in range(4)] == [3, 5, 8, 10]
    place.clock.now_s += 4.8
    assert [told_s(place, "a") for _ in range(2)] == [8, 10]
    place.clock.now_s += 1000
    assert told_s(place, "a") == 3
    # Four queues of 2 + 10, and no more than a minute.
    assert [told_s(place, "a") for _ in range(30)][-1] == 60


async def test_a_refused_key_is_told_its_share_of_the_places() -> None:
    place = Place(max_waiting=4)
    for _ in range(5):
        place.enter("a")
    place.run(2, seconds=1.0)
    for name in "bb":
        place.enter(name)
    assert told_s(place, "a") == 2
    assert told_s(place, "b") == 2
    assert told_s(place, "a") == 4
    # Those of a higher priority come first.
    assert told_s(place, "c", priority=-1) == 5


async def test_those_of_a_higher_priority_wait_less() -> None:
    place = Place(num_places=2, max_waiting=10)
    for _ in range(12):
        place.enter("a")
    place.run(3, seconds=4.0)
    assert place.queue.expected_s("b", priority=9) < place.queue.expected_s("b")


async def test_a_flood_of_one_key_is_not_in_the_way_of_another() -> None:
    place = Place()
    for _ in range(31):
        place.enter("a")
    place.run(1, seconds=10.0)
    assert place.queue.expected_s("a") == pytest.approx(300)
    assert place.queue.expected_s("b") == pytest.approx(20)
    assert place.queue.expected_s("b", weight=0.25) == pytest.approx(50)
    assert place.queue.expected_s("b", priority=1) == pytest.approx(10)


async def test_a_time_of_higher_priority_starves_nobody_afterwards() -> None:
    place = Place()
    place.enter("b")
    place.run(1)
    for _ in range(60):
        place.enter("h", priority=10)
    place.enter("b")
    assert place.run(60) == "h" * 60
    for _ in range(5):
        place.enter("b")
    place.enter("c")
    assert "c" in place.run(3)


async def test_what_failed_at_once_tells_nothing_of_the_time_that_requests_take() -> None:
    place = Place()
    place.enter("a")
    place.run(1, seconds=8.0)
    for _ in range(20):
        ticket = place.queue.enter("a")
        place.clock.now_s += 0.001
        place.queue.leave(ticket, is_done=False)
    place.enter("a")
    assert place.queue.expected_s("a") == pytest.approx(8)


async def test_whoever_leaves_early_takes_nobodys_place() -> None:
    place = Place()
    first, second, third = (place.enter(name) for name in "abc")
    place.queue.leave(second)
    place.queue.leave(second)
    place.queue.leave(first)
    assert has_ended(third)
    assert not has_ended(second)
    place.queue.leave(third)
    place.queue.leave(third)
    assert (place.queue.num_running, place.queue.num_waiting) == (0, 0)
    assert place.queue.expected_s("a") == 0


async def test_nothing_is_lost_in_a_long_random_run() -> None:
    rng = random.Random(3)
    place = Place(num_places=3, max_waiting=20)
    waiting: list[Ticket] = []
    for _ in range(20_000):
        place.clock.now_s += rng.random()
        if rng.random() < 0.5:
            name, weight, priority = (
                rng.choice("abcdef"),
                rng.choice((0.5, 1, 4)),
                rng.choice((0, 1)),
            )
            expected_s = place.queue.expected_s(name, weight, priority)
            assert expected_s <= place.queue.longest_s * (1 + 1e-9)
            try:
                waiting.append(place.queue.enter(name, weight, priority))
            except OverloadedError:
                assert place.queue.num_waiting == 20
        elif waiting:
            place.queue.leave(waiting.pop(rng.randrange(len(waiting))))
        running = sum(1 for t in waiting if t.begun_s)
        assert place.queue.num_running == running <= 3
        queued = [t for t in waiting if t.future is not None and not t.future.done()]
        assert len(queued) == place.queue.num_waiting <= 20
        assert not queued or running == 3
        for ticket in waiting:
            if failure(ticket):
                assert not ticket.begun_s
    for ticket in waiting:
        place.queue.leave(ticket)
    assert (place.queue.num_running, place.queue.num_waiting) == (0, 0)
    assert len(place.queue._keys) <= 6


async def test_many_keys_leave_nothing_behind() -> None:
    place = Place()
    for number in range(10_000):
        ticket = place.queue.enter(f"key-{number}")
        place.clock.now_s += 0.001
        place.queue.leave(ticket)
    assert len(place.queue._keys) <= 4096
    await asyncio.sleep(0)


async def test_a_key_that_is_only_refused_is_told_one_place_after_the_other() -> None:
    place = Place(num_places=1, max_waiting=1)
    place.enter("others", priority=1)
    place.clock.now_s += 10
    place.queue.leave(place.tickets[0][1])
    place.enter("others", priority=1)
    place.enter("others", priority=1)
    told = []
    for _ in range(3):
        with pytest.raises(OverloadedError) as refused:
            place.queue.enter("low")
        told.append(refused.value.retry_after_s)
    assert told == [20, 30, 40]
