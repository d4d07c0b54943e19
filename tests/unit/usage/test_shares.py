"""Whose requests come next into a batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice

from truthgpt_serve.usage.shares import NOBODY, Owner, Shares

MANY, FEW = Owner("many"), Owner("few")


@dataclass(frozen=True)
class Request:
    owner: Owner
    number: int


def serve(shares: Shares, waiting: list[Request], number: int) -> list[Request]:
    """Takes so many requests, each of which counts."""
    taken = []
    for request in islice(shares.in_order(waiting), number):
        shares.charge(request.owner)
        shares.leave(request.owner)
        waiting.remove(request)
        taken.append(request)
    return taken


def enter(shares: Shares, waiting: list[Request], owner: Owner, number: int) -> None:
    for at in range(number):
        shares.enter(owner)
        waiting.append(Request(owner, at))


def count(taken: list[Request]) -> Counter[str]:
    return Counter(request.owner.name for request in taken)


def test_owners_take_turns_and_each_has_its_own_order() -> None:
    shares, waiting = Shares(), list[Request]()
    enter(shares, waiting, MANY, 8)
    enter(shares, waiting, FEW, 2)
    taken = serve(shares, waiting, 6)
    assert [request.owner for request in taken] == [MANY, FEW, MANY, FEW, MANY, MANY]
    assert [request.number for request in taken if request.owner is MANY] == [0, 1, 2, 3]


def test_shares_are_by_weight() -> None:
    shares, waiting = Shares(), list[Request]()
    light, heavy = Owner("light", weight=1), Owner("heavy", weight=3)
    enter(shares, waiting, light, 40)
    enter(shares, waiting, heavy, 40)
    assert count(serve(shares, waiting, 40)) == {"heavy": 30, "light": 10}


def test_a_higher_priority_comes_first_whatever_it_had() -> None:
    shares, waiting = Shares(), list[Request]()
    urgent = Owner("urgent", priority=1)
    enter(shares, waiting, MANY, 5)
    enter(shares, waiting, urgent, 5)
    assert [request.owner for request in serve(shares, waiting, 7)] == 5 * [urgent] + 2 * [MANY]


def test_who_was_idle_has_no_claim_for_that_time() -> None:
    shares, waiting = Shares(), list[Request]()
    enter(shares, waiting, FEW, 1)
    enter(shares, waiting, MANY, 40)
    serve(shares, waiting, 21)
    enter(shares, waiting, FEW, 20)
    assert count(serve(shares, waiting, 10)) == {"many": 5, "few": 5}


def test_what_a_higher_priority_had_counts_against_no_other() -> None:
    shares, waiting = Shares(), list[Request]()
    enter(shares, waiting, MANY, 4)
    enter(shares, waiting, Owner("urgent", priority=1), 100)
    serve(shares, waiting, 100)
    enter(shares, waiting, FEW, 4)
    assert count(serve(shares, waiting, 4)) == {"many": 2, "few": 2}


def test_names_that_came_once_are_forgotten() -> None:
    shares = Shares()
    shares.enter(MANY)
    for number in range(5000):
        owner = Owner(f"key-{number}")
        shares.enter(owner)
        shares.charge(owner)
        shares.leave(owner)
    assert len(shares._starts) < 2000
    assert shares.first([MANY, Owner("key-1")]) == MANY
    assert not shares.are_shared


def test_without_keys_nothing_is_shared() -> None:
    shares, waiting = Shares(), list[Request]()
    enter(shares, waiting, NOBODY, 3)
    assert not shares.are_shared
    assert [request.number for request in serve(shares, waiting, 3)] == [0, 1, 2]
