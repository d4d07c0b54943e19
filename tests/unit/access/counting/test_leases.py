"""What processes take of a count beyond what they need, and that limits hold all the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from truthgpt_serve.access.counting.charges import BUCKET_S, WINDOW_S, Charge
from truthgpt_serve.access.counting.counters import Counters
from truthgpt_serve.access.counting.leases import FLUSH_S, SHARE, Lease

LIMIT = 10_000
NOW_S = 1e9 + 0.1


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Counters, Counters]]:
    """Two processes' counters of one file."""
    pair = Counters(tmp_path / "counters"), Counters(tmp_path / "counters")
    yield pair
    for counters in pair:
        counters.close()


def take(counters: Counters, now_s: float, amount: float = 1, limit: int = LIMIT) -> float:
    """Returns what is used of the limit; -1 if nothing was let in."""
    found = counters.take("team", amount, limit, None, now_s)
    counters.finish("team", now_s)
    return found.used if found.fits else -1.0


def test_a_lease_holds_a_small_part_of_the_limit() -> None:
    lease, charge = Lease(), Charge("team", 1, LIMIT)
    held = [lease.take(charge, 1.0 + number, 7) for number in range(100)]
    assert held[:3] == [0, 2, 3]  # who counts once holds nothing
    assert max(held) == SHARE * LIMIT
    assert Lease().take(Charge("team", 1, 100), 1.0, 7) == 0
    full = Lease()
    full.take(charge, LIMIT - 3.0, 7)
    assert full.take(charge, LIMIT - 2.0, 7) == 1  # half of what is left


def test_what_is_left_falls_with_each_request(pair: tuple[Counters, Counters]) -> None:
    one, _ = pair
    used = [take(one, NOW_S) for _ in range(300)]
    assert all(second - first == 1 for first, second in pairwise(used))


def test_processes_let_in_the_limit_together(pair: tuple[Counters, Counters]) -> None:
    one, other = pair
    admitted = 0
    for number in range(2 * LIMIT):
        admitted += take((one, other)[number % 3 == 0], NOW_S) > 0
    assert (1 - 2 * SHARE) * LIMIT <= admitted <= LIMIT


def test_what_is_not_spent_comes_back(pair: tuple[Counters, Counters]) -> None:
    one, other = pair
    for _ in range(200):
        take(one, NOW_S)
    deadline = time.monotonic() + 40 * FLUSH_S
    while take(other, NOW_S, amount=LIMIT - 200) < 0:
        assert time.monotonic() < deadline
        time.sleep(FLUSH_S / 5)


def test_a_lease_is_spent_in_its_own_half_second(pair: tuple[Counters, Counters]) -> None:
    """Else a minute could have more than its limit."""
    one, other = pair
    for _ in range(200):
        take(one, NOW_S)
    take(one, NOW_S + BUCKET_S)
    one.close()
    assert take(other, NOW_S + WINDOW_S + BUCKET_S, amount=LIMIT - 1) > 0
    assert take(other, NOW_S + WINDOW_S + BUCKET_S, amount=1) < 0


def test_corrections_go_into_the_lease_and_count(pair: tuple[Counters, Counters]) -> None:
    one, other = pair
    for _ in range(100):
        take(one, NOW_S, amount=10)
        one.correct("team", -7, NOW_S, NOW_S)
        one.correct("team", 2, NOW_S, NOW_S)
    one.close()
    assert take(other, NOW_S) == 100 * 5 + 1


def test_what_is_taken_back_later_is_free_here_at_once_and_soon_elsewhere(
    pair: tuple[Counters, Counters],
) -> None:
    """Most requests use less than was thought, and end in another half second than they began."""
    one, other = pair
    later_s = NOW_S + 3 * BUCKET_S
    assert take(one, NOW_S, amount=LIMIT) == LIMIT
    assert take(one, later_s) < 0
    one.correct("team", 300 - LIMIT, NOW_S, later_s)
    assert take(one, later_s) == 301
    one.correct("team", -200, NOW_S, later_s)
    deadline = time.monotonic() + 40 * FLUSH_S
    while take(other, later_s, amount=LIMIT - 101) < 0:
        assert time.monotonic() < deadline
        time.sleep(FLUSH_S / 5)
    assert take(other, later_s) < 0


def test_what_is_taken_back_just_before_the_end_counts(pair: tuple[Counters, Counters]) -> None:
    one, other = pair
    assert take(one, NOW_S, amount=LIMIT) == LIMIT
    one.correct("team", -LIMIT, NOW_S, NOW_S + BUCKET_S)
    one.close()
    assert take(other, NOW_S + BUCKET_S, amount=LIMIT) == LIMIT


def test_no_more_run_than_may(pair: tuple[Counters, Counters]) -> None:
    one, other = pair
    admitted = [
        (one, other)[number % 2].take("team", 1, LIMIT, 20, NOW_S).running > 0
        for number in range(60)
    ]
    assert sum(admitted) == 20
    one.finish("team", NOW_S)
    assert other.take("team", 1, LIMIT, 20, NOW_S).running == 20
    assert one.take("team", 1, LIMIT, 20, NOW_S).running < 0
