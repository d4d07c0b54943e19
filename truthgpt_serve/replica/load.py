"""What a replica has to do now, and the memory that it takes, as metrics for every family alike."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from truthgpt_serve.http.asgi import READS, Receive, Scope, Send, is_work, relative_path
from truthgpt_serve.http.probes import HEALTH, METRICS
from truthgpt_serve.prometheus import REPLICA_MEMORY, REPLICA_REQUESTS, labeled, write_page

MEMORY_TEXT = "Resident memory of its process and those that it started; not that of GPUs."

App = Callable[[Scope, Receive, Send], Awaitable[Any]]


_NEW_SHARE = 0.1
"""How much the newest request counts in the mean."""


def _count(app: App, add: Callable[[int], None]) -> App:
    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_probe(scope):
            await app(scope, receive, send)
            return
        add(1)
        try:
            await app(scope, receive, send)
        finally:
            add(-1)

    return count


def _is_probe(scope: Scope) -> bool:
    """Whether it comes past the queue of requests, and so is none of those that are counted."""
    return scope["method"] in READS and relative_path(scope).rstrip("/") in (HEALTH, METRICS)


class ReplicaLoad:
    """Counts the requests of one replica where they arrive, and where its model takes them.

    Attributes:
        num_places: Requests that the model works on at the same time, for `busy_s`.
        service_s: How long requests take the model lately; 0 before the first has ended.
    """

    def __init__(self, num_places: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_places = num_places
        self.service_s = 0.0
        self._clock = clock
        self._present = 0
        self._ongoing = 0
        self._ended = 0
        self._busy_s = 0.0
        self._changed_s = clock()

    @property
    def num_queued(self) -> int:
        """Requests that wait in front of the model."""
        # Requests that reach the model in another way, such as a handle, do not arrive here.
        return max(0, self._present - self._ongoing)

    def busy_s(self) -> float:
        """Returns for how long all places have been in use, together; half of them count half."""
        now_s = self._clock()
        share = min(self._ongoing, self.num_places) / self.num_places
        self._busy_s += share * (now_s - self._changed_s)
        self._changed_s = now_s
        return self._busy_s

    def arriving(self, app: App) -> App:
        """Returns an application that counts what arrives, in front of its queue."""

        def add(number: int) -> None:
            self._present += number

        return _count(app, add)

    def working(self, app: App) -> App:
        """Returns an application that counts what the model works on, behind its queue."""

        def add(number: int) -> None:
            self.busy_s()
            self._ongoing += number
            self._ended += number < 0

        return _count(self._timed(app), add)

    def _timed(self, app: App) -> App:
        async def measure(scope: Scope, receive: Receive, send: Send) -> None:
            began_s = self._clock()
            await app(scope, receive, send)
            if scope["type"] == "http" and is_work(scope):  # and none that failed
                taken_s = self._clock() - began_s
                old_s = self.service_s or taken_s
                self.service_s = old_s + _NEW_SHARE * (taken_s - old_s)

        return measure

    def page(self) -> str:
        """Returns the metrics, in Prometheus' text format; reads `/proc` for some 10 ms."""
        now = {"ongoing": self._ongoing, "queued": self.num_queued}
        text = "Requests that this replica has now."
        ended = "Requests that it has ended, however they ended."
        return write_page(
            [
                labeled(GaugeMetricFamily, REPLICA_REQUESTS, text, "state", now),
                CounterMetricFamily(REPLICA_REQUESTS, ended, self._ended),
                GaugeMetricFamily(REPLICA_MEMORY, MEMORY_TEXT, resident_bytes(os.getpid())),
            ]
        )


def resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process and its descendants; shared pages count for each."""
    found = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                found += each.memory_info().rss
    return found
