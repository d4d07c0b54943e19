"""Times forwards, and keeps the CPU from running far ahead of a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch


class ForwardClock:
    """Runs forwards and says, at once or later, how many seconds each took. For one thread.

    On a GPU a forward returns when it is enqueued. Without a bound the engine would enqueue many
    steps ahead, and a request that comes or leaves would have to wait for all of them.
    """

    def __init__(self, max_run_ahead: int) -> None:
        self._max_run_ahead = max_run_ahead
        self._enqueued: deque[tuple[Any, Any, Callable[[float], None]]] = deque()

    def run(
        self, device: torch.device, forward: Callable[[], Any], done: Callable[[float], None]
    ) -> Any:
        """Returns what `forward` returns; calls `done(seconds)` once that is known."""
        if device.type != "cuda":
            start = time.perf_counter()
            output = forward()
            done(time.perf_counter() - start)
            return output
        self._wait(self._max_run_ahead)
        started = torch.cuda.Event(enable_timing=True)
        ended = torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(device)
        started.record(stream)
        output = forward()
        ended.record(stream)
        self._enqueued.append((started, ended, done))
        return output

    def drain(self) -> None:
        """Waits for all that is enqueued and reports it."""
        self._wait(0)

    def _wait(self, max_left: int) -> None:
        while len(self._enqueued) > max_left:
            started, ended, done = self._enqueued.popleft()
            ended.synchronize()
            done(started.elapsed_time(ended) / 1000)
