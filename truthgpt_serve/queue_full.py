"""The 429 of a full queue: its words, and who answers it.

A request that finds a queue full gets 429, the code `overloaded` and `retry-after` (status, type
and code are those of `errors.OverloadedError`), at once or after a short wait. From the client
inwards, these refuse:

- HAProxy, what all models together cannot hold: `cluster/haproxy/limits.py` says when,
  `cluster/haproxy/refusals.py` after how long, `cluster/haproxy/answers.py` holds the page.
- The router, what the model's replicas cannot hold: `router/admission.py`; who comes before others
  there, `router/waiting/line.py` and `router/waiting/claims.py`.
- HAProxy, what a model's replicas cannot hold of what comes to them without a router:
  `cluster/haproxy/queues.py`.
- Ray Serve, before a replica, by `ray_backpressure`, which `hardware/plan.py` sets; in these words
  by `replica/queue_answers.py`, and by `cluster/proxy_answers.py` where its Python proxy refuses.
- The replica: `http/probes.py` for health checks and scrapes, `server/execution/workers.py` for
  calls one by one, `server/batching/queue.py` for batches, `server/execution/threads.py` for files
  of images and recordings, and the queues of hf-transformers and hf-diffusers. Before all of these,
  `access/fair_queue.py`, and `access/turns.py` for a turn that would come too late. Before that,
  `server/gathered_bodies.py`, where too many bodies are still arriving.

`retry-after` is when a place in the queue comes to this client, as fast as places have been free
lately: each refused client is told the next one (`Promises`). A replica measures that speed. While
requests wait in it, its answers carry it (`PLACE_HEADER`) to HAProxy and to the router, which
refuse by it. Where nothing has been measured it is `RETRY_AFTER_S`.

How long the queues are: `max_ongoing_requests` and `max_queued_requests` in `config/serving.py`,
with defaults in `hardware/plan.py`, in `config/router.py` and in `config/playground.py`.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

from truthgpt_serve.errors import OverloadedError

RETRY_AFTER_S = 1
FULL = "The queue of {} is full: {} requests run or wait; try again in {} s"
ALL_FULL = "The queues of all models are full; try again in {} s"
MAX_RETRY_S = 60
MAX_QUEUES = 4
"""How many queues of a model may be promised at most, but for `AHEAD_S`. Clients that ask again at
once, whatever they are told, would else have the others wait for ever longer."""
AHEAD_S = 8
"""So far ahead places are promised where the queues are shorter: thousands of clients of a quick
model would all come back after a second, and most of them be refused again."""
PLACE_HEADER = "x-truthgpt-place-us"
"""In a replica's answer while requests wait in it: microseconds between two places. HAProxy takes
it out again."""
_RAY_QUEUE = re.compile(rb"max_queued_requests=(\d{1,9})\b")
CLIENT_HEADER = "x-truthgpt-client"
"""In what HAProxy sends to a router: the client's address and port, as `192.0.2.7:51234`."""


class Promises:
    """Says to each client that a full queue refuses when there is a place for it.

    All who came back at the same time would find one place.

    Args:
        clock: The time in seconds, which only goes forward.
    """

    __slots__ = ("_clock", "_last_s")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = -math.inf

    def next_s(self, place_s: float, num_held: int) -> float:
        """Promises the next place; returns in how many seconds there is one.

        Args:
            place_s: Seconds between two places; 0 where that is not known.
            num_held: Requests that the queue holds, those at work included.
        """
        now_s = self._clock()
        most_s = min(MAX_RETRY_S, max(AHEAD_S, MAX_QUEUES * num_held * place_s))
        self._last_s = min(max(self._last_s, now_s) + place_s, now_s + most_s)
        return self._last_s - now_s

    def is_over(self) -> bool:
        """Returns whether all places that were promised have come."""
        return self._last_s <= self._clock()


def whole_seconds(wait_s: float) -> int:
    """Returns a wait as `retry-after` has it: from `RETRY_AFTER_S` to `MAX_RETRY_S`."""
    return min(MAX_RETRY_S, max(RETRY_AFTER_S, math.ceil(wait_s)))


def queue_full(
    owner: str, num_requests: int, retry_after_s: int = RETRY_AFTER_S
) -> OverloadedError:
    """Returns the refusal of a queue.

    Args:
        owner: Whose queue it is, such as `model 'story'`.
        num_requests: Requests that run or wait there.
        retry_after_s: Seconds after which there may be room.
    """
    message = FULL.format(owner, num_requests, retry_after_s)
    return OverloadedError(message, retry_after_s=retry_after_s)


def read_ray_refusal(text: bytes) -> int | None:
    """Returns the length of the queue by which Ray Serve refused; None where it says another."""
    found = _RAY_QUEUE.search(text)
    return int(found[1]) if found else None


def ray_backpressure() -> dict[str, Any]:
    """Returns Ray Serve's `backpressure_config`: how it answers where every queue is full."""
    return {"status_code": OverloadedError.status, "retry_after_s": RETRY_AFTER_S}
