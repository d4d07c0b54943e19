"""A router knows which clients came before they were told to."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.queue_full import CLIENT_HEADER, MAX_QUEUES
from truthgpt_serve.router.waiting.claims import (
    FEW_PROMISES,
    KEPT_S,
    LATE_S,
    MAX_PROMISES,
    Claim,
    Claimant,
    Claims,
    claimant_of,
)

MOST = 3
NEW, WAITED = Claim(), Claim(has_waited=True)
FIRST, SECOND = Claimant("192.0.2.1", "192.0.2.1:1"), Claimant("192.0.2.1", "192.0.2.1:2")
OTHER = Claimant("192.0.2.2", "192.0.2.2:1")


class Clock:
    """The time, which only goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def claims(clock: Clock) -> Claims:
    return Claims(clock)


def test_a_connection_that_was_told_to_wait_is_early_until_then(
    claims: Claims, clock: Clock
) -> None:
    assert claims.take(FIRST, MOST) == NEW
    claims.give(FIRST, 2)
    assert claims.take(FIRST, MOST) == Claim(is_early=True, wait_s=2)
    assert claims.take(SECOND, MOST) == NEW  # another client of the same address
    assert claims.take(OTHER, MOST) == NEW
    clock.now_s += 1.5
    assert claims.take(FIRST, MOST) == Claim(is_early=True, wait_s=0.5)
    clock.now_s += 0.45  # nearly: clocks differ
    assert claims.take(FIRST, MOST) == WAITED
    assert claims.take(FIRST, MOST) == NEW
    assert not claims.num_expected()


def test_new_connections_are_known_by_how_many_promises_are_open(
    claims: Claims, clock: Clock
) -> None:
    for port in range(MAX_QUEUES * MOST):
        who = Claimant("192.0.2.1", f"192.0.2.1:{port}")
        assert claims.take(who, MOST) == (NEW if port < MOST else Claim(is_early=True))
        claims.give(who, 1 + port)
    late = Claimant("192.0.2.1", "192.0.2.1:99")
    assert claims.take(late, MOST) == Claim(is_early=True, wait_s=MAX_QUEUES * MOST)
    clock.now_s += 1 + LATE_S
    assert claims.take(late, MOST) == WAITED  # of a client that opened a new connection
    assert claims.take(late, MOST) == Claim(is_early=True)


def test_where_connections_are_not_known_promises_are_of_the_client(
    claims: Claims, clock: Clock
) -> None:
    who = Claimant("key a")
    for _ in range(MOST):
        assert claims.take(who, MOST) == NEW
        claims.give(who, 1)
    assert claims.take(who, MOST).is_early
    clock.now_s += 1
    assert [claims.take(who, MOST) for _ in range(MOST + 1)] == [*[WAITED] * MOST, NEW]


def test_as_many_are_expected_as_come_when_they_are_told(claims: Claims, clock: Clock) -> None:
    claims.give(FIRST, 1)
    claims.give(OTHER, 2)
    assert claims.num_expected() == 0
    assert claims.num_expected(1.5) == claims.num_expected(1)
    both = claims.num_expected(2)
    assert 0 < claims.num_expected(1) == both / 2
    clock.now_s += 2
    assert claims.num_expected() == both
    assert claims.take(FIRST, MOST) == WAITED
    assert claims.num_expected() > both / 2  # one more has kept its word
    clock.now_s += KEPT_S + 0.1
    assert claims.num_expected() == 0
    assert not claims
    for number in range(200):
        clock.now_s += 5  # nobody comes any more
        claims.give(Claimant("", str(number)), 1)
    assert claims.num_expected(1) < 0.01


def test_no_more_than_some_are_remembered(claims: Claims, clock: Clock) -> None:
    for number in range(MAX_PROMISES):
        claims.give(Claimant(str(number), f"{number}:1"), 5)
    late = Claimant("late", "late:1")
    claims.give(late, 6)
    assert claims.take(late, MOST) == NEW
    assert claims.take(Claimant("0", "0:1"), MOST).wait_s == 5
    claims.give(OTHER, 1)  # it comes sooner, and takes the place of one that comes last
    assert claims.take(OTHER, MOST).wait_s == 1
    claims.give(replace(late, priority=1), 6)
    assert claims.take(late, MOST).wait_s == 6
    share = claims.num_expected(5) / MAX_PROMISES
    assert share == pytest.approx(0.5, abs=0.01)  # who was forgotten has broken no word


@pytest.mark.parametrize("num_promises", [1, FEW_PROMISES])
def test_a_client_of_few_promises_may_come_by_any_connection(
    claims: Claims, clock: Clock, num_promises: int
) -> None:
    for port in range(num_promises):
        claims.give(Claimant("192.0.2.1", f"192.0.2.1:{port}"), 1)
    other = Claimant("192.0.2.1", "192.0.2.1:99")
    assert claims.take(other, 2 * FEW_PROMISES) == NEW
    clock.now_s += 1
    taken = [claims.take(other, 2 * FEW_PROMISES) for _ in range(num_promises + 1)]
    assert taken == [*[WAITED] * num_promises, NEW]


def test_of_many_promises_each_is_of_its_connection(claims: Claims, clock: Clock) -> None:
    for port in range(FEW_PROMISES + 1):
        claims.give(Claimant("192.0.2.1", f"192.0.2.1:{port}"), 1)
    other = Claimant("192.0.2.1", "192.0.2.1:99")
    clock.now_s += 1
    assert claims.take(other, 2 * FEW_PROMISES) == NEW
    assert claims.take(Claimant("192.0.2.1", "192.0.2.1:0"), 2 * FEW_PROMISES) == WAITED


@pytest.mark.parametrize(
    ("scope", "claimant"),
    [
        (None, Claimant()),
        ({"headers": []}, Claimant()),
        (
            {"headers": [(CLIENT_HEADER.encode(), b"192.0.2.1:5000")]},
            Claimant("192.0.2.1", "192.0.2.1:5000"),
        ),
        (
            {"headers": [], SCOPE_KEY: Identity("a", priority=2, weight=3)},
            Claimant("key a", "", 3, 2),
        ),
        ({"headers": [(CLIENT_HEADER.encode(), b"\xff" * 999)]}, Claimant("", "\xff" * 64)),
        (
            {
                "headers": [(CLIENT_HEADER.encode(), b"192.0.2.1:5000")],
                "client": ("127.0.0.1", 9),
            },
            Claimant("192.0.2.1", "192.0.2.1:5000"),
        ),
    ],
)
def test_a_client_is_its_key_or_its_address(scope: Any, claimant: Claimant) -> None:
    assert claimant_of(scope) == claimant


FORGED: Any = {
    "headers": [(CLIENT_HEADER.encode(), b"192.0.2.1:5000"), (b"x-real-ip", b"192.0.2.1")],
    "client": ("192.0.2.99", 9),
}


def test_only_a_proxy_says_who_its_client_is() -> None:
    assert claimant_of(FORGED, lambda host: False) == Claimant("192.0.2.99", "192.0.2.99:9")
    unknown = {**FORGED, "client": None}
    assert claimant_of(unknown, lambda host: False) == Claimant()


def test_a_proxy_in_front_says_who_its_clients_are() -> None:
    headers = [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2, 3.3.3.3")]
    scope: Any = {"headers": headers, "client": ("192.0.2.99", 9)}
    name = b"x-forwarded-for"
    assert claimant_of(scope, lambda host: False, name) == Claimant("3.3.3.3", "")
    scope[SCOPE_KEY] = Identity("a")
    assert claimant_of(scope, lambda host: False, name) == Claimant("key a", "")
    without = claimant_of({**FORGED, "headers": []}, lambda host: False, name)
    assert without == Claimant("192.0.2.99", "192.0.2.99:9")


def test_only_promises_of_as_high_a_priority_count(claims: Claims, clock: Clock) -> None:
    claims.give(Claimant("low", "1"), 1)
    claims.give(Claimant("high", "2", priority=5), 1)
    every = claims.num_expected(1)
    assert claims.num_expected(1, 5) == claims.num_expected(1, 1) == every / 2
    assert claims.num_expected(1, 6) == 0
    assert claims.num_expected(1, 0) == every


def test_a_promise_that_is_given_anew_replaces_the_one_before(claims: Claims, clock: Clock) -> None:
    for wait_s in (1, 7, 3):
        claims.give(FIRST, wait_s)
    once = claims.num_expected(60)
    claims.give(OTHER, 1)
    assert claims.num_expected(60) == 2 * once
    assert claims.take(FIRST, MOST).wait_s == 3


def test_looking_at_all_promises_takes_microseconds(claims: Claims, clock: Clock) -> None:
    for number in range(MAX_PROMISES):
        claims.give(Claimant("192.0.2.1", str(number)), 1 + number % 50)
    began_s = time.thread_time()
    for _ in range(1000):
        claims.num_expected(60)
    assert time.thread_time() - began_s < 0.05


def test_promises_are_looked_at_in_the_order_in_which_they_are_due(
    claims: Claims, clock: Clock
) -> None:
    claims.give(OTHER, 60)
    claims.give(FIRST, 1)
    clock.now_s += 1
    assert claims.num_expected() > 0
    clock.now_s += KEPT_S + 0.1
    assert not claims.num_expected()
    assert claims.take(FIRST, MOST) == NEW
    assert claims.take(OTHER, MOST).is_early
