"""Bounds the body of a request while it arrives: its size, its pauses, and how slowly it may come.

A slow body takes nothing away as long as nobody wants what its request holds. Once others wait it
must keep to a pace, so that connections which hardly send anything do not keep a model from all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic

from truthgpt_serve.body_limits import (
    HURRY_BYTES,
    HURRY_S,
    PLACE_BYTES,
    STALL_S,
    body_too_large,
    hurried_body,
    stalled_body,
)
from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.http.asgi import Message

SCOPE_KEY = "truthgpt.body"
"""Where the body of a request stands in its ASGI scope."""


class Arrivals:
    """The slow bodies of one model, and whether others wait.

    Args:
        max_slow: So many may take their time at once.
        is_awaited: Returns whether requests wait for the model.
    """

    def __init__(self, max_slow: int, is_awaited: Callable[[], bool]) -> None:
        self._max_slow = max_slow
        self._is_awaited = is_awaited
        self.num_slow = 0

    @property
    def must_hurry(self) -> bool:
        """Whether bodies must keep to the pace."""
        return self.num_slow > self._max_slow or self._is_awaited()


class ArrivingBody:
    """One body.

    Args:
        max_bytes: Its largest size.
        arrivals: Those of the model; None where all may take their time.

    Attributes:
        more: Whether there is a rest.
        pace: How fast it must come while others wait, in bytes a second.
    """

    __slots__ = (
        *("_arrivals", "_due_s", "_is_slow", "_max_bytes", "_num_bytes", "_since_s", "more"),
        "pace",
    )

    def __init__(self, max_bytes: int, arrivals: Arrivals | None) -> None:
        self._max_bytes = max_bytes
        self._arrivals = arrivals
        self._num_bytes = 0
        self._since_s = monotonic()
        self._due_s = self._since_s + HURRY_S
        self._is_slow = False
        self.more = True
        self.pace = HURRY_BYTES

    def check_length(self, headers: Iterable[tuple[bytes, bytes]]) -> TruthGPTError | None:
        """Returns the refusal of a body that its headers say is too large."""
        for name, value in headers:
            if name == b"content-length" and value.isdigit() and int(value) > self._max_bytes:
                return self._too_large()
        return None

    def listen(self) -> None:
        """Notes that the application waits for a piece: only then its client is to send."""
        now_s = monotonic()
        self._due_s += now_s - self._since_s
        self._since_s = now_s

    def enter(self) -> None:
        """Notes that the request has its place while a rest of the body is still to come."""
        self.pace = PLACE_BYTES

    def take(self, message: Message) -> TruthGPTError | None:
        """Counts a piece; returns the refusal of a body that has become too large."""
        num_bytes = len(message.get("body", b""))
        self._num_bytes += num_bytes
        self.more = message.get("more_body", False)
        if self.more:
            self._since_s = now_s = monotonic()
            due_s = max(self._due_s, now_s - HURRY_S) + num_bytes / self.pace
            self._due_s = min(due_s, now_s + HURRY_S)
        else:
            self.close()
        return self._too_large() if self._num_bytes > self._max_bytes else None

    def look(self) -> TruthGPTError | None:
        """Returns the refusal of a body for which the application waits too long."""
        now_s = monotonic()
        if now_s >= self._since_s + STALL_S:
            return stalled_body(STALL_S)
        if (arrivals := self._arrivals) is None:
            return None
        if not self._is_slow:
            self._is_slow = True
            arrivals.num_slow += 1
        return hurried_body(self.pace) if now_s > self._due_s and arrivals.must_hurry else None

    def close(self) -> None:
        """Counts it among the slow ones no more."""
        if self._is_slow and self._arrivals is not None:
            self._arrivals.num_slow -= 1
        self._is_slow = False

    def _too_large(self) -> TruthGPTError:
        return body_too_large(self._max_bytes, "`serving.max_body_bytes`")
