"""No more requests wait for a place at a model than it is done with in a moment."""

from __future__ import annotations

import pytest

from tests.support.virtual_time import run
from truthgpt_serve.router.waiting.claims import Claimant
from truthgpt_serve.router.waiting.line import FIRST_LENGTH, MAX_LENGTH, Line


class Clock:
    """The time, which only goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("told_per_s", "expected"),
    [(None, FIRST_LENGTH), (0.2, 0), (4, 2), (100, 50), (10_000, MAX_LENGTH)],
)
def test_the_model_says_how_fast_it_is_before_that_is_seen(
    told_per_s: float | None, expected: int
) -> None:
    line = Line(Clock())
    assert line.length(told_per_s) == expected


def test_as_many_wait_as_have_ended_lately() -> None:
    clock = Clock()
    line = Line(clock)
    for _ in range(60):  # 20 a second
        clock.now_s += 0.05
        line.pace.end()
    assert line.length(1) == 10
    clock.now_s += 5  # nothing ends any more
    assert line.length(1) <= 2
    clock.now_s += 5
    assert line.length(1) == 0
    clock.now_s += 60
    assert line.length(100) == 50  # as at the start


def test_the_last_of_the_lowest_priority_makes_room_for_a_higher_one() -> None:
    async def leave() -> list[str]:
        line = Line(Clock())
        waiting = [
            line.join(Claimant(name, "", 1, priority), has_waited=has_waited)
            for name, priority, has_waited in (
                ("low", 0, False),
                ("kept", 0, True),
                ("last", 0, False),
                ("high", 2, False),
            )
        ]
        left = []
        while line.make_room(2):
            left += [
                each.who.client
                for each in waiting
                if each.place.done() and each.who.client not in left
            ]
        assert len(line) == 1
        assert not any(each.has_place for each in waiting)
        assert not line.make_room(2)
        return left

    assert run(leave()) == ["last", "low", "kept"]


def test_requests_end_steadily_where_none_is_long_in_coming() -> None:
    clock = Clock()
    pace = Line(clock).pace
    assert not pace.is_steady(clock.now_s)
    pace.begin()
    clock.now_s += 0.05
    pace.end()
    assert pace.is_steady(100)  # one that waits has seen one end
    assert not pace.is_steady(clock.now_s)
    for _ in range(3):
        clock.now_s += 0.5
        pace.end()
    assert pace.is_steady(clock.now_s)
    clock.now_s += 3
    pace.end()  # of a batch, say
    assert not pace.is_steady(100)
    clock.now_s += 60
    pace.begin()
    clock.now_s += 0.05
    pace.end()
    assert pace.is_steady(clock.now_s - 0.05)  # what was before an idle time says nothing


def test_who_is_next() -> None:
    async def order() -> list[str]:
        line = Line(Clock())
        for client, weight, priority, has_waited in (
            ("busy", 1, 0, False),
            ("late", 1, 0, False),
            ("heavy", 9, 0, False),
            ("kept", 1, 0, True),
            ("high", 1, 1, False),
        ):
            who = Claimant(client, "", weight, priority)
            line.join(who, has_waited=has_waited)
        running = {"busy": 2, "heavy": 8, "late": 1}
        found = []
        while (waiting := line.next(running)) is not None:
            found.append(waiting.who.client)
        return found

    assert run(order()) == ["high", "kept", "heavy", "late", "busy"]
