"""The 429 of a full queue: the same for whoever refuses."""

from __future__ import annotations

import json

import pytest

from truthgpt_serve.cluster.haproxy.answers import pages
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.queue_full import (
    AHEAD_S,
    RETRY_AFTER_S,
    Promises,
    queue_full,
    ray_backpressure,
    whole_seconds,
)


def test_the_refusal_says_whose_queue_it_is_and_when_to_come_back() -> None:
    error = queue_full("model 'story'", 7)
    assert isinstance(error, OverloadedError)
    assert (error.status, error.code, error.retry_after_s) == (429, "overloaded", RETRY_AFTER_S)
    assert error.message == (
        "The queue of model 'story' is full: 7 requests run or wait; try again in 1 s"
    )


def test_places_are_promised_one_after_the_other() -> None:
    now = [50.0]
    promises = Promises(lambda: now[0])
    assert [promises.next_s(2.0, 3) for _ in range(3)] == [2, 4, 6]
    now[0] += 5  # nobody was refused meanwhile
    assert promises.next_s(2.0, 3) == 3
    now[0] += 100
    assert promises.next_s(0.5, 3) == 0.5
    # Four queues, or a few seconds, however many ask.
    assert max(promises.next_s(2.5, 3) for _ in range(100)) == 30
    quick = Promises(lambda: now[0])
    assert quick.next_s(0.0, 3) == 0
    assert max(quick.next_s(0.5, 3) for _ in range(100)) == AHEAD_S
    assert max(Promises().next_s(1.0, 1000) for _ in range(2)) == pytest.approx(1)
    slow = Promises(lambda: now[0])
    assert [slow.next_s(40.0, 10) for _ in range(3)] == [40, 60, 60]


def test_waits_are_whole_seconds_from_one_to_sixty() -> None:
    assert [whole_seconds(wait_s) for wait_s in (0, 0.2, 1, 1.01, 59.5, 800)] == [
        1,
        1,
        1,
        2,
        60,
        60,
    ]


def test_ray_and_haproxy_refuse_with_the_same_status_code_and_pause() -> None:
    error = queue_full("model 'story'", 7)
    assert ray_backpressure() == {
        "status_code": error.status,
        "retry_after_s": error.retry_after_s,
    }
    head, _, body = pages()[error.status].partition(b"\r\n\r\n")
    assert f"retry-after: {RETRY_AFTER_S}".encode() in head.split(b"\r\n")
    shown = json.loads(body)["error"]
    assert (shown["type"], shown["code"]) == (error.type, error.code)
