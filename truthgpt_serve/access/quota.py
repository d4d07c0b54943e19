"""Holds keys to their limits: requests in a minute, and requests at the same time.

Each request to a model counts once, at its replica, whatever way it came. All replicas of one
machine count together; each machine counts for itself.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from truthgpt_serve.access.counters import Counters, Standing
from truthgpt_serve.access.identity import Identity
from truthgpt_serve.cluster.private_files import is_private
from truthgpt_serve.errors import RateLimitError
from truthgpt_serve.http.asgi import Headers

logger = logging.getLogger(__name__)

_REQUESTS = "requests"


class Quota:
    """The limits of all keys of one file.

    Args:
        keys_file: The file, which names the counters too.
        clock: The time, as `time.time` gives it.
    """

    def __init__(self, keys_file: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._counters = _open_counters(keys_file)

    def admit(self, identity: Identity) -> Lease | None:
        """Counts a request; returns what ends it, or None for a key without limits.

        Raises:
            RateLimitError: It is too much; nothing was counted.
        """
        limits = identity.limits
        per_minute, most = limits.requests_per_minute, limits.max_concurrent
        if per_minute is None and most is None:
            return None
        standing = self._counters.take(identity.name, 1, per_minute, most, self._clock())
        if standing.wait_s:
            retry_after_s = math.ceil(standing.wait_s)
            raise RateLimitError(
                f"The key {identity.name!r} may send {per_minute} requests in a minute; try again "
                f"in {retry_after_s} s",
                retry_after_s=retry_after_s,
                headers=_headers(per_minute, standing),
            )
        if standing.running < 0:
            raise RateLimitError(
                f"The key {identity.name!r} may have {most} requests at the same time; try again "
                "when one of them has ended",
                headers=_headers(per_minute, standing),
            )
        return Lease(self, identity.name, _headers(per_minute, standing))

    def finish(self, name: str) -> None:
        """Ends a request of a key."""
        self._counters.finish(name, self._clock())

    def close(self) -> None:
        """Leaves the counters to the other processes."""
        self._counters.close()


class Lease:
    """One request that was let in.

    Attributes:
        headers: Of its answer: what the key may still send.
    """

    __slots__ = ("_ended", "_name", "_quota", "headers")

    def __init__(self, quota: Quota, name: str, headers: Headers) -> None:
        self._quota = quota
        self._name = name
        self._ended = False
        self.headers = headers

    def end(self) -> None:
        """Ends it; once is enough."""
        if not self._ended:
            self._ended = True
            self._quota.finish(self._name)


def _headers(limit: int | None, standing: Standing) -> Headers:
    """Returns OpenAI's headers of limits; none without a limit of requests."""
    if limit is None:
        return []
    values = {
        "limit": f"{limit}",
        "remaining": f"{max(0, math.floor(limit - standing.used))}",
        "reset": f"{math.ceil(standing.reset_s)}s",
    }
    return [
        (f"x-ratelimit-{name}-{_REQUESTS}".encode(), value.encode())
        for name, value in values.items()
    ]


def _open_counters(keys_file: Path) -> Counters:
    """Opens the counters that this user's processes share for a file of keys."""
    folder = Path(tempfile.gettempdir(), f"truthgpt-quota-{os.geteuid()}")
    name = hashlib.sha256(os.fsencode(keys_file.absolute())).hexdigest()[:32]
    try:
        folder.mkdir(0o700, exist_ok=True)
        if not is_private(folder):
            raise PermissionError(f"{folder} is not this user's alone")
        return Counters(folder / name)
    except OSError as error:
        logger.error("this process counts the requests of keys for itself alone: %s", error)
        return Counters(None)
