"""What is known of one request on its way through a replica or the router."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.access.identity import identity_of
from truthgpt_serve.access.meter import USAGE_KEY, find_outcome
from truthgpt_serve.http.asgi import Message, Scope
from truthgpt_serve.http.connection import sane_id
from truthgpt_serve.usage.counted import Usage
from truthgpt_serve.wording import hide_keys

RECORD_KEY = "truthgpt.record"
"""Where the record of a request stands in its ASGI scope; copies of the scope share it."""
MAX_PATH = 256
MAX_METHOD = 16


class RequestRecord:
    """One request, as a process sees it from outside.

    Attributes:
        scope: Its ASGI scope, where the gate notes whose it is and what it used.
        model: The model's name; empty where none was found.
        path: Its path below the mount point without keys, at most `MAX_PATH` printable characters.
        began_s: When it arrived, as `time.perf_counter` gives it.
        began_ns: The same, as `time.time_ns` gives it.
        reached_s: When it left Ray Serve's queue; None if it did not.
        first_s: When the first piece of its answer went out; None if there was none.
        last_s: When the last piece of its answer went out; of one that is not whole, its end.
        status: Of its answer; 0 before that has begun.
        is_whole: Whether the answer is complete.
        is_cancelled: Whether its task was cancelled.
        is_relayed: Whether the answer is a model's, whose replica tells of it too.
        span: What a tracer keeps here.
        trace_id: Of its trace, 32 hexadecimal digits; empty without a tracer.
    """

    __slots__ = (
        "_answered_id",
        "_failed",
        "began_ns",
        "began_s",
        "first_s",
        "is_cancelled",
        "is_relayed",
        "is_whole",
        "last_s",
        "model",
        "path",
        "reached_s",
        "scope",
        "span",
        "status",
        "trace_id",
    )

    def __init__(self, scope: Scope, model: str, mount: str) -> None:
        self.scope = scope
        self.model = model
        path: str = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix(mount)
        path = hide_keys(path or "/")[:MAX_PATH]
        self.path = path if path.isprintable() else ascii(path)[1:-1]
        self.began_s = self.last_s = time.perf_counter()
        self.began_ns = time.time_ns()
        self.reached_s: float | None = None
        self.first_s: float | None = None
        self.status = 0
        self.is_whole = self.is_cancelled = self.is_relayed = self._failed = False
        self.span: Any = None
        self.trace_id = self._answered_id = ""

    def reach(self) -> None:
        """Notes that it has left Ray Serve's queue."""
        if self.reached_s is None:
            self.reached_s = time.perf_counter()

    def note(self, message: Message) -> None:
        """Notes the head of its answer, and the first and the last piece."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._answered_id = sane_id(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            now_s = time.perf_counter()
            if self.first_s is None:
                self.first_s = now_s
            if not message.get("more_body", False):
                self.last_s, self.is_whole = now_s, True

    def fail(self) -> None:
        """Notes that its answer failed after it had begun."""
        self._failed = True

    @property
    def is_told_elsewhere(self) -> bool:
        """Whether the model's replica tells how it ended: not if the answer broke off."""
        return self.is_relayed and not self._failed and not self.usage.broke_off

    @property
    def method(self) -> str:
        """Its method, at most `MAX_METHOD` characters."""
        return str(self.scope["method"])[:MAX_METHOD]

    @property
    def request_id(self) -> str:
        """Its id as the answer gives it, else as its client does, without keys; may be empty."""
        return hide_keys(self._answered_id or sane_id(self.scope["headers"]))

    @property
    def key_name(self) -> str | None:
        """The name of its key; None where there are no keys, or it had no good one."""
        identity = identity_of(self.scope)
        return None if identity is None else identity.name

    @property
    def usage(self) -> Usage:
        """What it used."""
        usage: Usage = self.scope[USAGE_KEY]
        return usage

    @property
    def queued_s(self) -> float:
        """Seconds that it waited for its turn, in Ray Serve's queue and in the replica's."""
        before_s = 0.0 if self.reached_s is None else self.reached_s - self.began_s
        return before_s + self.usage.queued_s

    @property
    def outcome(self) -> str:
        """`ok`, `error`, `cancelled` (its client left) or `refused` (429)."""
        broke_off = self._failed or self.usage.broke_off
        return find_outcome(self.status, self.is_whole, broke_off, self.is_cancelled)


def record_of(scope: Mapping[str, Any]) -> RequestRecord | None:
    """Returns the record of a request; None if it is neither logged nor traced."""
    record: RequestRecord | None = scope.get(RECORD_KEY)
    return record
