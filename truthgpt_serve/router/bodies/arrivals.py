"""Bounds what still arrives at one router: how slowly it may come, and how much is kept of it.

A body that arrives slowly takes up no place at a model, but one of those connections that HAProxy
lets through to the routers, and memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from truthgpt_serve.body_limits import HURRY_BYTES, HURRY_S, STALL_S, hurried_body, stalled_body
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.asgi import Message, Receive
from truthgpt_serve.queue_full import RETRY_AFTER_S

MAX_SLOW = 256
"""So many bodies may take their time."""
GATHERED_BYTES = 256 * 1024
"""A body is sent on when so much of it is there, or all; more is kept only while the model's name
has not been found, or of a compressed one."""
MAX_KEPT_BYTES = 512 * 2**20
"""What is kept of all together beyond that."""
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
        """Counts a body while the block runs."""
        arrival = Arrival(self)
        self._bodies.add(arrival)
        self._begin_to_look()
        try:
            yield arrival
        finally:
            self._bodies.discard(arrival)
            arrival.keep(0)

    def _begin_to_look(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """Ends bodies that are too slow, as long as there are many."""
        self._timer = None
        late = sorted((body for body in self._bodies if body.is_late()), key=lambda one: one.due_s)
        for body in late[: max(0, self.num_arriving - MAX_SLOW)]:
            body.end()
        if self._bodies:
            self._begin_to_look()


class Arrival:
    """One body.

    Args:
        arrivals: All of them.

    Attributes:
        due_s: When its next byte should be there, if it is to keep to the pace.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._limit: asyncio.Timeout | None = None
        self._is_ended = False
        self._num_kept = 0
        self.due_s = monotonic() + HURRY_S

    async def receive(self, receive: Receive) -> Message:
        """Returns the next ASGI message.

        Raises:
            SlowRequestError: Nothing more came for 25 s, or too little while much else arrives.
        """
        try:
            async with asyncio.timeout(STALL_S) as self._limit:
                message = await receive()
        except TimeoutError:
            raise (hurried_body() if self._is_ended else stalled_body(STALL_S)) from None
        finally:
            self._limit = None
        now_s = monotonic()
        due_s = max(self.due_s, now_s) + len(message.get("body", b"")) / HURRY_BYTES
        self.due_s = min(due_s, now_s + HURRY_S)
        return message

    def keep(self, num_bytes: int) -> None:
        """Notes how much is kept of it.

        Raises:
            OverloadedError: That is too much, together with the others.
        """
        more = max(0, num_bytes - GATHERED_BYTES) - self._num_kept
        if more > 0 and self._arrivals.num_kept + more > MAX_KEPT_BYTES:
            raise OverloadedError(
                "too many large request bodies are still arriving: write `model` at the beginning, "
                f"without compression, or try again in {RETRY_AFTER_S} s",
                retry_after_s=RETRY_AFTER_S,
            )
        self._num_kept += more
        self._arrivals.num_kept += more

    def is_late(self) -> bool:
        """Whether it is waited for, and behind the pace."""
        is_waited_for = self._limit is not None and not self._limit.expired()
        return is_waited_for and monotonic() > self.due_s

    def end(self) -> None:
        """Ends the wait for it with an error."""
        self._is_ended = True
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())
