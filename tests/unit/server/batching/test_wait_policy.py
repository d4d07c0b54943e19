"""How long a batch waits for others: the cost model and the rule, in numbers."""

from __future__ import annotations

import random

import pytest

from truthgpt_serve.server.batching.wait_policy import BatchWait, CallCost


@pytest.mark.parametrize(("fixed_s", "each_s"), [(0.01, 0.001), (0.0, 0.002), (0.05, 0.0)])
def test_the_fixed_cost_is_found(fixed_s: float, each_s: float) -> None:
    generator = random.Random(42)
    cost = CallCost()
    for _ in range(100):
        size = generator.randint(1, 16)
        cost.add(size, fixed_s + each_s * size + generator.uniform(-1e-4, 1e-4))
    assert cost.fixed_s == pytest.approx(fixed_s, abs=2e-4)


def test_the_fixed_cost_follows_the_model() -> None:
    cost = CallCost()
    for fixed_s in (0.01, 0.1):
        for number in range(600):
            size = number % 8 + 1
            cost.add(size, fixed_s + 0.001 * size)
        assert cost.fixed_s == pytest.approx(fixed_s, rel=0.01)


def test_nothing_is_assumed_about_calls_of_one_size() -> None:
    cost = CallCost()
    assert cost.fixed_s == 0
    for _ in range(100):
        cost.add(8, 0.1)
    assert cost.fixed_s == 0


def learned(*, fixed_s: float = 0.02, each_s: float = 0.001, max_wait_s: float = 1.0) -> BatchWait:
    wait = BatchWait(8, max_wait_s)
    for size in (1, 2, 4, 8) * 10:
        wait.called(size, fixed_s + each_s * size, num_waiting=0, now_s=0)
    return wait


def test_an_idle_model_starts_at_once() -> None:
    assert BatchWait(8, 1.0).pause_s(1, 0) == 0
    wait = learned()
    wait.called(1, 0.021, num_waiting=0, now_s=100)
    assert wait.pause_s(1, 100) == 0, "one client alone: there is no other to wait for"
    wait.called(8, 0.028, num_waiting=0, now_s=100)
    assert wait.pause_s(1, 101) == 0, "the others had time to come back"


def test_the_pause_is_worth_it() -> None:
    wait = learned()
    wait.called(8, 0.028, num_waiting=0, now_s=100)
    # 2 of 8 are here. A call now answers 2 in 22 ms; after a pause p, 8 in 28 ms + p.
    pause_s = wait.pause_s(2, 100)
    assert pause_s == pytest.approx(0.02 * (8 / 2 - 1), rel=0.02)
    assert 8 / (0.028 + pause_s) == pytest.approx(2 / 0.022, rel=0.02)
    assert wait.pause_s(2, 100 + pause_s / 2) == pytest.approx(pause_s / 2)
    assert wait.pause_s(4, 100) < pause_s, "the more are here, the less is to be won"
    assert wait.pause_s(8, 100) == 0


def test_no_request_waits_for_a_model_that_gains_nothing() -> None:
    wait = learned(fixed_s=0.0)
    wait.called(8, 0.008, num_waiting=0, now_s=100)
    assert wait.pause_s(2, 100) < 1e-4


def test_the_configured_limit_holds() -> None:
    wait = learned(max_wait_s=0.003)
    wait.called(8, 0.028, num_waiting=0, now_s=100)
    assert wait.pause_s(1, 100) == pytest.approx(0.003)
    none = learned(max_wait_s=0.0)
    none.called(8, 0.028, num_waiting=0, now_s=100)
    assert none.pause_s(1, 100) == 0


def test_no_more_are_expected_than_fit_or_than_there_are() -> None:
    wait = learned()
    wait.called(8, 0.028, num_waiting=50, now_s=100)
    assert wait.pause_s(8, 100) == 0
    wait.called(2, 0.022, num_waiting=1, now_s=100)
    assert wait.pause_s(3, 100) == 0
    assert wait.pause_s(1, 100) > 0
