"""A service that fails starts again a few times, later each time, and not for ever."""

from __future__ import annotations

from truthgpt_serve.cluster.service.retries import MAX_FAILURES, WINDOW_S, Retries


def test_starts_that_fail_are_few_however_long_they_take() -> None:
    retries = Retries()
    delays: list[float | None] = []
    for number in range(MAX_FAILURES + 1):
        retries.count(number * 10 * WINDOW_S, was_ready=False)
        delays.append(retries.delay_s)
    assert delays[-1] is None
    waits = [delay for delay in delays[:-1] if delay]
    assert len(waits) == MAX_FAILURES
    assert waits == sorted(waits)


def test_failures_long_ago_count_no_more() -> None:
    retries = Retries()
    for number in range(10):
        retries.count(number * (WINDOW_S + 1), was_ready=True)
        assert retries.delay_s == 1.0
        assert retries.left == MAX_FAILURES
    for _ in range(MAX_FAILURES - 1):
        retries.count(9 * (WINDOW_S + 1) + 5, was_ready=True)
        assert retries.delay_s is not None
    retries.count(9 * (WINDOW_S + 1) + 9, was_ready=True)
    assert retries.delay_s is None
