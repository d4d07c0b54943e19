"""How fast places come at a model, as it says it, and as they were seen to come."""

from __future__ import annotations

import pytest

from truthgpt_serve.router.waiting.pace import IDLE_S, TOLD_S, Pace
from truthgpt_serve.router.waiting.requests import Requests


class Clock:
    """The time, which only goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def end_one_by_one(pace: Pace, clock: Clock, every_s: float, number: int = 20) -> None:
    for _ in range(number):
        clock.now_s += every_s
        pace.end(8 * every_s)


def test_what_a_model_has_told_counts_for_a_while(clock: Clock) -> None:
    pace = Pace(clock)
    assert pace.place_s(4) == 0
    pace.tell(2.0)
    assert pace.place_s(4) == pace.told_s == 2
    end_one_by_one(pace, clock, 0.5)
    assert pace.place_s(4) == 2
    clock.now_s += IDLE_S - 10
    end_one_by_one(pace, clock, 0.5)
    assert pace.place_s(8) == pytest.approx(0.5, rel=0.1)  # as it was seen
    clock.now_s += IDLE_S + 1
    assert pace.place_s(8) == 2  # rather than nothing
    clock.now_s += TOLD_S
    assert pace.told_s == 0
    assert pace.place_s(8) == 0


def test_a_model_that_had_little_to_do_can_do_more(clock: Clock) -> None:
    pace = Pace(clock)
    for _ in range(10):
        clock.now_s += 2
        pace.end(1.0)
    assert pace.place_s(10) == pytest.approx(0.1)
    clock.now_s += IDLE_S + 1
    assert pace.place_s(10) == pytest.approx(0.1)
    clock.now_s += TOLD_S
    pace.begin()  # it may be another one
    assert pace.place_s(10) == 0


def test_batches(clock: Clock) -> None:
    pace = Pace(clock)
    for _ in range(4):
        clock.now_s += 5
        for _ in range(16):
            pace.end(15)
    place_s = pace.place_s(16)
    assert place_s == pytest.approx(5 / 16, rel=0.3)
    assert pace.batch_s(place_s) == 5
    clock.now_s += 2
    assert [pace.after_batch_s(wait_s, 5) for wait_s in (0.1, 3, 3.1, 12)] == [3, 3, 8, 13]


@pytest.mark.parametrize("every_s", [0.01, 0.4, 3.0])
def test_requests_that_end_one_by_one_are_no_batches(clock: Clock, every_s: float) -> None:
    pace = Pace(clock)
    end_one_by_one(pace, clock, every_s)
    assert pace.batch_s(pace.place_s(1)) == 0


def test_before_any_has_ended_they_take_as_long_again(clock: Clock) -> None:
    requests = Requests(clock)
    assert requests.promise_s(4, 12) == 0
    for seconds in (3.0, 7.0):
        clock.now_s += seconds
        told = [requests.promise_s(4, 12) for _ in range(4)]
        age_s = clock.now_s - 100
        assert told[0] >= age_s
        assert told == sorted(told)
        assert told[-1] <= 60
