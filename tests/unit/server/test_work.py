"""The meter of work that is known before it is done."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from truthgpt_serve.server.work import WorkMeter


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_queued_is_all_but_the_largest_and_speed_what_was_done_while_busy() -> None:
    clock = Clock()
    meter = WorkMeter(clock)
    assert (meter.mean, meter.speed, meter.queued, meter.num_waiting) == (0, 0, 0, 0)
    with meter.taking(30):
        clock.now_s += 3
        assert meter.queued == 0
    assert meter.speed == 10
    clock.now_s += 100  # nothing to do: no part of the speed
    with ExitStack() as stack:
        for amount in (20, 50, 10):
            stack.enter_context(meter.taking(amount))
        assert meter.queued == 30
        assert meter.num_waiting == 2
        clock.now_s += 8
    assert meter.queued == 0
    assert meter.num_waiting == 0
    assert 1 < meter.speed < 10.1
    assert meter.busy_s() == 11
    assert meter.mean == pytest.approx(27.92)


def test_what_fails_or_is_cancelled_tells_no_speed() -> None:
    clock = Clock()
    meter = WorkMeter(clock)
    work = meter.taking(1000)
    work.__enter__()
    clock.now_s += 0.001
    error = RuntimeError("out of memory")
    assert not work.__exit__(type(error), error, None)
    assert meter.speed == 0
    assert meter.num_waiting == 0
    assert meter.queued == 0
