"""How many replicas a model should have, by what the replicas told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from truthgpt_serve.autoscaling.decision import (
    STALE_S,
    Limits,
    Sample,
    Trend,
    desired_replicas,
)

LIMITS = Limits(1, 10, target_queue_s=10, downscale_delay_s=60, downscale_to_zero_delay_s=30)
IDLE = Sample(0.0)
FULL = Sample(0.0, queue_s=40, waiting=8, busy=1, service_s=5)
CALM = Sample(0.0, queue_s=0, busy=0.3, service_s=1)


class Scaler:
    """Calls the decision every 2 s, as often as replicas tell something."""

    def __init__(self, target: int, limits: Limits = LIMITS) -> None:
        self.target = target
        self.limits = limits
        self.now_s = 1000.0
        self.trend = Trend()

    def see(self, *samples: Sample | None, has_requests: bool = True) -> int:
        self.now_s += 2
        told = [each and replace(each, time_s=self.now_s) for each in samples]
        return self.decide(told, has_requests)

    def decide(self, told: Sequence[Sample | None], has_requests: bool = True) -> int:
        self.target, self.trend = desired_replicas(
            told, self.now_s, self.target, has_requests, self.limits, self.trend
        )
        return self.target


def test_a_second_sample_confirms_and_one_alone_does_nothing() -> None:
    scaler = Scaler(1)
    assert [scaler.see(FULL), scaler.see(CALM), scaler.see(FULL)] == [1, 1, 1]
    assert scaler.see(FULL) == 5  # one is at work, and 40 s of work are to be done in 10 s


def test_the_smaller_of_two_samples_counts() -> None:
    scaler = Scaler(1)
    scaler.see(replace(FULL, queue_s=95, waiting=20))
    assert scaler.see(replace(FULL, queue_s=11)) == 3


def test_the_same_sample_read_again_confirms_nothing() -> None:
    scaler = Scaler(2)
    scaler.see(FULL, FULL)
    old = [replace(FULL, time_s=scaler.now_s)] * 2
    for _ in range(5):
        scaler.now_s += 0.5
        assert scaler.decide(old) == 2
    # Nor does one replica's second sample, before the other's.
    assert scaler.decide([old[0], replace(FULL, time_s=scaler.now_s)]) == 2


def test_the_delay_is_kept_and_a_pause_in_it_starts_it_anew() -> None:
    scaler = Scaler(1, replace(LIMITS, upscale_delay_s=6))
    assert [scaler.see(FULL) for _ in range(3)] == [1, 1, 1]
    assert scaler.see(CALM) == 1
    assert [scaler.see(FULL) for _ in range(4)] == [1, 1, 1, 5]


def test_many_short_requests_within_the_target_need_no_more() -> None:
    scaler = Scaler(1)
    short = Sample(0.0, queue_s=9, waiting=90, busy=1, service_s=0.1)
    assert {scaler.see(short) for _ in range(50)} == {1}


def test_no_more_than_requests_that_wait() -> None:
    scaler = Scaler(1)
    scaler.see(long := Sample(0.0, queue_s=300, waiting=1, busy=1, service_s=300))
    assert scaler.see(long) == 2


def test_no_more_than_the_most_and_no_less_than_the_least() -> None:
    scaler = Scaler(1)
    scaler.see(huge := replace(FULL, queue_s=3600, waiting=500))
    assert scaler.see(huge) == 10
    scaler = Scaler(5, replace(LIMITS, min_replicas=3))
    assert [scaler.see(*[IDLE] * 5, has_requests=False) for _ in range(60)][-1] == 3


def test_replicas_that_start_are_not_asked_for_again() -> None:
    scaler = Scaler(1)
    scaler.see(FULL)
    assert [scaler.see(FULL) for _ in range(10)] == [5] * 10


def test_fewer_only_after_the_delay_and_to_the_most_that_was_needed() -> None:
    scaler = Scaler(6)
    seen = [scaler.see(*[CALM] * 6) for _ in range(10)]
    seen += [scaler.see(*[replace(CALM, busy=0.5)] * 6) for _ in range(5)]
    seen += [scaler.see(*[CALM] * 6) for _ in range(15)]
    assert seen == [6] * 30
    assert scaler.see(*[CALM] * 6) == 4  # 6 x 0.5 at work need 4, not 3, to be in time
    assert [scaler.see(*[CALM] * 4) for _ in range(31)][-2:] == [4, 2]


def test_none_goes_without_which_the_others_would_be_late() -> None:
    scaler = Scaler(2)
    busy = Sample(0.0, busy=0.4, service_s=20)  # one would be 80 % busy: a mean wait of 80 s
    assert {scaler.see(busy, busy) for _ in range(60)} == {2}
    scaler = Scaler(2)
    assert [scaler.see(*[replace(busy, service_s=1)] * 2) for _ in range(40)][-1] == 1
    scaler = Scaler(2)
    assert [scaler.see(*[replace(busy, places=64)] * 2) for _ in range(40)][-1] == 1


def test_a_wait_between_both_bounds_changes_nothing() -> None:
    scaler = Scaler(3)
    between = Sample(0.0, queue_s=7, waiting=1, busy=0.1)
    assert {scaler.see(*[between] * 3) for _ in range(100)} == {3}


def test_to_zero_by_a_delay_of_its_own_and_never_beside_a_request() -> None:
    limits = replace(LIMITS, min_replicas=0)
    scaler = Scaler(3, limits)
    seen = [scaler.see(*[IDLE] * 3, has_requests=False) for _ in range(31)]
    assert seen == [3] * 30 + [1]
    seen = [scaler.see(IDLE, has_requests=False) for _ in range(16)]
    assert seen == [1] * 15 + [0]
    scaler = Scaler(1, limits)
    assert {scaler.see(IDLE, has_requests=True) for _ in range(60)} == {1}


def test_a_replica_that_tells_nothing_is_kept_and_the_others_go_on() -> None:
    scaler = Scaler(3)
    assert [scaler.see(IDLE, IDLE, None, has_requests=False) for _ in range(31)][-1] == 2
    scaler = Scaler(2)
    scaler.see(FULL, None)
    assert scaler.see(replace(FULL, queue_s=90, waiting=20), None) == 5
    scaler = Scaler(4)
    assert {scaler.see(None, None) for _ in range(100)} == {4}


def test_an_old_sample_is_none() -> None:
    scaler = Scaler(2)
    old = replace(FULL, time_s=scaler.now_s)
    scaler.now_s += STALE_S
    seen = []
    for _ in range(40):
        scaler.now_s += 2
        seen.append(scaler.decide([old, old]))
    assert set(seen) == {2}
    # Beside one that tells, it is one that is busy.
    seen = []
    for _ in range(40):
        scaler.now_s += 2
        seen.append(scaler.decide([old, replace(IDLE, time_s=scaler.now_s)], False))
    assert set(seen) == {2}


@pytest.mark.parametrize("share", [0.2, 0.45, 0.7, 0.9])
def test_a_steady_load_settles(share: float) -> None:
    """What is decided from the load of a number of replicas holds for that number, too."""
    scaler, changes = Scaler(8), 0
    for _ in range(600):
        before = scaler.target
        busy = min(1.0, 8 * share / before)
        changes += scaler.see(*[Sample(0.0, busy=busy, service_s=2)] * before) != before
    assert changes <= 3
    assert scaler.target >= 8 * share
