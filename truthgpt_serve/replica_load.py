"""What a replica has to do now, and the memory that it takes, as metrics for every family alike."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from truthgpt_serve.cluster.processes import descendants
from truthgpt_serve.http.asgi import Receive, Scope, Send

REQUESTS = "truthgpt_replica_requests"
REQUESTS_TOTAL = "truthgpt_replica_requests_total"
MEMORY = "truthgpt_replica_memory_bytes"
_PAGE = """\
# HELP {requests} Requests that this replica has now.
# TYPE {requests} gauge
{requests}{{state="ongoing"}} {ongoing}
{requests}{{state="queued"}} {queued}
# HELP {total} Requests that it has ended, however they ended.
# TYPE {total} counter
{total} {ended}
# HELP {memory} Resident memory of its process and those that it started; not that of GPUs.
# TYPE {memory} gauge
{memory} {bytes}
"""

App = Callable[[Scope, Receive, Send], Awaitable[Any]]


class ReplicaLoad:
    """Counts the requests of one replica where they arrive, and where its model takes them."""

    def __init__(self) -> None:
        self._present = 0
        self._ongoing = 0
        self._ended = 0

    def arriving(self, app: App) -> App:
        """Returns an application that counts what arrives, in front of Ray's queue."""

        async def count(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            self._present += 1
            try:
                await app(scope, receive, send)
            finally:
                self._present -= 1

        return count

    def working(self, app: App) -> App:
        """Returns an application that counts what the model works on, behind Ray's queue."""

        async def count(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            self._ongoing += 1
            try:
                await app(scope, receive, send)
            finally:
                self._ongoing -= 1
                self._ended += 1

        return count

    def page(self) -> str:
        """Returns the metrics, in Prometheus' text format; reads `/proc` for some 10 ms."""
        return _PAGE.format(
            requests=REQUESTS,
            total=REQUESTS_TOTAL,
            memory=MEMORY,
            ongoing=self._ongoing,
            # Requests that reach the model in another way, such as a handle, do not arrive here.
            queued=max(0, self._present - self._ongoing),
            ended=self._ended,
            bytes=resident_bytes(os.getpid()),
        )


def resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process and its descendants; shared pages count for each."""
    pages = sum(_resident_pages(each) for each in [pid, *descendants(pid)])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _resident_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
