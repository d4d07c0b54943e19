"""Bounds what still arrives at one router: how slowly it may come, and how much is kept of it.

A body that arrives slowly takes up no place at a model, but one of those connections that HAProxy
lets through to the routers, and memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from truthgpt_serve.body_limits import (
    HURRY_BYTES,
    HURRY_S,
    LATE_S,
    STALL_S,
    hurried_body,
    stalled_body,
)
from truthgpt_serve.errors import OverloadedError, TruthGPTError
from truthgpt_serve.http.asgi import Message, Receive
from truthgpt_serve.queue_full import RETRY_AFTER_S

MAX_SLOW = 256
"""So many bodies may take their time."""
GATHERED_BYTES = 256 * 1024
"""A body is sent on when so much of it is there, or all; more is kept only while the model's name
has not been found, or of a compressed one."""
MAX_KEPT_BYTES = 512 * 2**20
"""What is kept of all together beyond that, until it is sent on."""
LOOK_S = 1.0


class Arrivals:
    """The bodies that one router is reading and no model has.

    Attributes:
        num_kept: What is kept of them beyond `GATHERED_BYTES` each, in bytes.
    """

    def __init__(self) -> None:
        self._bodies: set[Arrival] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.num_kept = 0

    @property
    def num_arriving(self) -> int:
        """How many there are."""
        return len(self._bodies)

    @contextmanager
    def body(self) -> Iterator[Arrival]:
        """Counts a body as arriving while the block runs; what is kept of it is, if that failed."""
        arrival = Arrival(self)
        self._bodies.add(arrival)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        try:
            yield arrival
        except BaseException:
            arrival.release()
            raise
        finally:
            self._bodies.discard(arrival)

    def find_largest(self) -> Arrival | None:
        """Returns the arriving body of which the most is kept."""
        return max(self._bodies, key=lambda body: body.num_kept, default=None)

    def _look(self) -> None:
        """Ends bodies that are too slow, as long as there are many or much is kept."""
        loop, timer = asyncio.get_running_loop(), self._timer
        self._timer = None
        if timer is not None and loop.time() > timer.when() + LATE_S:
            self._timer = loop.call_later(LATE_S, self._look)
            return
        num_excess = self.num_arriving - MAX_SLOW
        is_much = self.num_kept > MAX_KEPT_BYTES // 2
        late = sorted((body for body in self._bodies if body.is_late()), key=lambda one: one.due_s)
        for number, body in enumerate(late):
            if number < num_excess or (is_much and body.num_kept):
                body.end(hurried_body())
        if self._bodies:
            self._timer = loop.call_later(LOOK_S, self._look)


class Arrival:
    """One body.

    Args:
        arrivals: All of them.

    Attributes:
        due_s: When its next byte should be there, if it is to keep to the pace.
        num_kept: What is kept of it beyond `GATHERED_BYTES`.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._limit: asyncio.Timeout | None = None
        self._error: TruthGPTError | None = None
        self.num_kept = 0
        self.due_s = monotonic() + HURRY_S

    async def receive(self, receive: Receive) -> Message:
        """Returns the next ASGI message.

        Raises:
            SlowRequestError: Nothing more came for 25 s, or too little while much else arrives.
            OverloadedError: Too much is kept of all bodies, and of this one the most.
        """
        try:
            async with asyncio.timeout(STALL_S) as self._limit:
                message = await receive()
        except TimeoutError:
            raise self._error or stalled_body(STALL_S) from None
        finally:
            self._limit = None
        now_s = monotonic()
        due_s = max(self.due_s, now_s - HURRY_S) + len(message.get("body", b"")) / HURRY_BYTES
        self.due_s = min(due_s, now_s + HURRY_S)
        return message

    def keep(self, num_bytes: int) -> None:
        """Counts how much is kept of it; where all is too much, the largest arriving body ends.

        Raises:
            OverloadedError: That is this one.
        """
        more = max(0, num_bytes - GATHERED_BYTES) - self.num_kept
        self.num_kept += more
        self._arrivals.num_kept += more
        if more > 0 and self._arrivals.num_kept > MAX_KEPT_BYTES:
            largest = self._arrivals.find_largest()
            if largest is None or largest.num_kept <= self.num_kept:
                raise _too_much()
            largest.end(_too_much())

    def release(self) -> None:
        """Counts it no more: it has been sent on, or let go."""
        self._arrivals.num_kept -= self.num_kept
        self.num_kept = 0

    def is_late(self) -> bool:
        """Whether it is waited for, and behind the pace."""
        is_waited_for = self._limit is not None and not self._limit.expired()
        return is_waited_for and monotonic() > self.due_s

    def end(self, error: TruthGPTError) -> None:
        """Ends the wait for it."""
        if self._limit is not None and not self._limit.expired():
            self._error = error
            self._limit.reschedule(asyncio.get_running_loop().time())


def _too_much() -> OverloadedError:
    return OverloadedError(
        "too many large request bodies are still arriving: write `model` at the beginning, without "
        f"compression, or try again in {RETRY_AFTER_S} s",
        retry_after_s=RETRY_AFTER_S,
    )
