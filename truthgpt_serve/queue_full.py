"""The 429 of a full queue: its words, and who answers it.

A request that finds a queue full gets 429, the code `overloaded` and `retry-after` (status, type
and code are those of `errors.OverloadedError`), at once or after a short wait. From the client
inwards, these refuse:

- HAProxy, what all models together cannot hold: `cluster/haproxy/limits.py` says when,
  `cluster/haproxy/answers.py` holds the page.
- The router, what the model's replicas cannot hold: `router/admission.py`.
- HAProxy, what a model's replicas cannot hold on the direct way: `cluster/haproxy/direct.py`.
- Ray Serve, before a replica, by `ray_backpressure`, which `hardware.py` sets.
- The replica: `http/probes.py` for health checks and scrapes, `server/execution/workers.py` for
  calls one by one, `server/batching/queue.py` for batches, `server/images/files.py` for files, and
  the queues of hf-transformers and hf-diffusers. With keys, `access/fair_queue.py` before all of
  these, with a `retry-after` of its own, and `access/turns.py`, a turn that would come too late.

How long the queues are: `max_ongoing_requests` and `max_queued_requests` in `config/serving.py`,
with defaults in `hardware.py`, in `config/router.py` and in `config/playground.py`.
"""

from __future__ import annotations

from typing import Any

from truthgpt_serve.errors import OverloadedError

RETRY_AFTER_S = 1


def queue_full(
    owner: str, num_requests: int, retry_after_s: int = RETRY_AFTER_S
) -> OverloadedError:
    """Returns the refusal of a queue.

    Args:
        owner: Whose queue it is, such as `model 'story'`.
        num_requests: Requests that run or wait there.
        retry_after_s: Seconds after which there may be room.
    """
    return OverloadedError(
        f"The queue of {owner} is full: {num_requests} requests run or wait; try again in "
        f"{retry_after_s} s",
        retry_after_s=retry_after_s,
    )


def ray_backpressure() -> dict[str, Any]:
    """Returns Ray Serve's `backpressure_config`: how it answers where every queue is full."""
    return {"status_code": OverloadedError.status, "retry_after_s": RETRY_AFTER_S}
