"""The 429 of a full queue: the same for whoever refuses."""

from __future__ import annotations

import json

from truthgpt_serve.cluster.haproxy.answers import pages
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.queue_full import RETRY_AFTER_S, queue_full, ray_backpressure


def test_the_refusal_says_whose_queue_it_is_and_when_to_come_back() -> None:
    error = queue_full("model 'story'", 7)
    assert isinstance(error, OverloadedError)
    assert (error.status, error.code, error.retry_after_s) == (429, "overloaded", RETRY_AFTER_S)
    assert error.message == (
        "The queue of model 'story' is full: 7 requests run or wait; try again in 1 s"
    )


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
