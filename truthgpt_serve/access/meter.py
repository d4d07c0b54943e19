"""Counts what each request of a key does at a model, from the gate to the end of its answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.access.identity import Identity
from truthgpt_serve.access.quota import Lease, Quota
from truthgpt_serve.errors import RateLimitError
from truthgpt_serve.http.asgi import Headers, Message, Receive, Scope, Send
from truthgpt_serve.usage.counted import Usage, counting

USAGE_KEY = "truthgpt.usage"
"""Where the usage of a request stands in its ASGI scope."""
METERED_KEY = "truthgpt.metered"
"""Where a request that counts stands in its ASGI scope."""
OUTCOMES = ("ok", "error", "cancelled", "refused")
REFUSED = 429
_FAILED = 400


@dataclass(slots=True)
class Ended:
    """A request that has ended.

    Attributes:
        key: The name of its key.
        usage: What it used.
        status: Of its answer; 0 if there was none.
        outcome: `ok`, `error`, `cancelled` (its client left) or `refused` (429).
        first_s: Seconds until the first piece of its answer; None if there was none.
        whole_s: Seconds until the last piece, or until its work ended without one.
    """

    key: str
    usage: Usage
    status: int
    outcome: str
    first_s: float | None
    whole_s: float


class Meter:
    """Holds requests to the limits of their number, and says what each of them did.

    Args:
        quota: The limits of all keys.
        report: Is told of each request that has ended; raises nothing.
    """

    def __init__(self, quota: Quota, report: Callable[[Ended], None]) -> None:
        self._quota = quota
        self._report = report

    async def admit(self, identity: Identity) -> Lease | None:
        """Counts a request; returns what ends it, or None for a key without such limits.

        Raises:
            RateLimitError: It is too much.
        """
        try:
            return await self._quota.admit(identity)
        except RateLimitError as error:
            usage = Usage(refusal=error.reason)
            self._report(Ended(identity.name, usage, REFUSED, "refused", None, 0.0))
            raise

    async def begin(self, identity: Identity, scope: Scope, send: Send) -> Metered:
        """Counts a request, and notes in its scope what counts on.

        Args:
            identity: Whose request it is.
            scope: Its scope.
            send: Where its answer goes.

        Raises:
            RateLimitError: It is too much.
        """
        lease = await self.admit(identity)
        salt = identity.name if identity.has_own_cache else ""
        usage = Usage(
            priority=identity.priority,
            weight=identity.weight,
            key=identity.name,
            cache_salt=salt,
        )
        scope[USAGE_KEY] = usage
        watch = _Watch(send, lease)
        metered = scope[METERED_KEY] = Metered(identity.name, usage, watch, lease, self._report)
        return metered


class Metered:
    """One request that was admitted. It ends when its answer and its work have both ended.

    The work is done behind Ray's server, which leaves it behind when the client goes: what it holds
    is given back when it has really ended.

    Args:
        key: The name of its key.
        usage: What it uses.
        watch: Its answer.
        lease: What it holds; None without limits of requests.
        report: Is told of its end.

    Attributes:
        usage: What it uses.
    """

    __slots__ = ("_is_cancelled", "_key", "_lease", "_num_open", "_report", "_watch", "usage")

    def __init__(
        self,
        key: str,
        usage: Usage,
        watch: _Watch,
        lease: Lease | None,
        report: Callable[[Ended], None],
    ) -> None:
        self._key = key
        self.usage = usage
        self._watch = watch
        self._lease = lease
        self._report = report
        self._num_open = 0
        self._is_cancelled = False

    async def answer(self, app: Any, scope: Scope, receive: Receive) -> None:
        """Serves the request by an application in which `work` may be called."""
        await self._run(app, scope, receive, self._watch.send)

    async def work(self, app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the request by the application that does the work."""
        await self._run(app, scope, receive, send)

    async def _run(self, app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        self._num_open += 1
        is_over = False
        try:
            with counting(self.usage):
                await app(scope, receive, send)
            is_over = True
        except Exception:
            self.usage.broke_off = is_over = True
            raise
        finally:
            self._is_cancelled |= not is_over
            self._num_open -= 1
            if not self._num_open:
                self._end()

    def add_headers(self, headers: Headers) -> None:
        """Adds headers to an answer that has not begun."""
        self._watch.headers += headers

    def _end(self) -> None:
        if self._lease is not None:
            self._lease.end()
        self.usage.finish(failed=self._watch.status >= _FAILED)
        self._report(self._watch.ended(self._key, self.usage, cancelled=self._is_cancelled))


class _Watch:
    """The answer of a request on its way out.

    What the request holds is given back before the last piece goes out: a client that sends the
    next request at once finds it free.

    Args:
        send: Where it goes.
        lease: What the request holds; None without limits.

    Attributes:
        headers: Further headers of the answer.
        status: Of the answer; 0 before it has begun.
    """

    __slots__ = (
        *("_began_s", "_first_s", "_last_s", "_lease", "_send"),
        *("headers", "status"),
    )

    def __init__(self, send: Send, lease: Lease | None) -> None:
        self._send = send
        self._lease = lease
        self._began_s = time.perf_counter()
        self._first_s: float | None = None
        self._last_s: float | None = None
        self.headers: Headers = [] if lease is None else [*lease.headers]
        self.status = 0

    def send(self, message: Message) -> Awaitable[None]:
        """Sends a message on; not a coroutine itself, which each piece of a stream would pay for.

        It does no more than that for the pieces between the first and the last: of all messages
        only these say `more_body` once the first has been seen.
        """
        if self._first_s is not None and message.get("more_body"):
            return self._send(message)
        if message["type"] == "http.response.body":
            now_s = time.perf_counter()
            if self._first_s is None:
                self._first_s = now_s
            if not message.get("more_body", False):
                self._last_s = now_s
                if self._lease is not None:
                    self._lease.end()
        elif message["type"] == "http.response.start":
            self.status = message["status"]
            if self.headers:
                message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
        return self._send(message)

    def ended(self, key: str, usage: Usage, *, cancelled: bool) -> Ended:
        """Returns what has been seen of the request.

        Args:
            key: The name of its key.
            usage: What it used.
            cancelled: Whether its task was cancelled.
        """
        is_whole = self._last_s is not None
        outcome = find_outcome(self.status, is_whole, usage.broke_off, cancelled)
        first_s = None if self._first_s is None else self._first_s - self._began_s
        whole_s = (self._last_s or time.perf_counter()) - self._began_s
        return Ended(key, usage, self.status, outcome, first_s, whole_s)


def find_outcome(status: int, is_whole: bool, broke_off: bool, is_cancelled: bool) -> str:
    """Returns how a request ended: `ok`, `error`, `cancelled` or `refused`.

    Args:
        status: Of its answer; 0 if there was none.
        is_whole: Whether its answer is complete.
        broke_off: Whether its answer failed after it had begun.
        is_cancelled: Whether its task was cancelled.
    """
    if status == REFUSED:
        return "refused"
    if status >= _FAILED or broke_off:
        return "error"
    return "cancelled" if is_cancelled or not is_whole else "ok"
