"""Reads the body of a request before the request takes a place at the model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from truthgpt_serve.access.identity import ANONYMOUS, identity_of
from truthgpt_serve.access.queued import Key, Ticket, who_yields
from truthgpt_serve.access.turns import QUEUE
from truthgpt_serve.body_limits import LATE_S
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.asgi import READS, Message, Receive, Scope, Send, WholeBody
from truthgpt_serve.queue_full import RETRY_AFTER_S
from truthgpt_serve.server.arriving_body import SCOPE_KEY
from truthgpt_serve.server.read_ahead import DISCONNECT, KEPT_BYTES
from truthgpt_serve.usage.counted import note_refusal

SPARE_BYTES = 128 * 2**20
SLOW_S = 0.5
"""A body that has not come by then counts among the slow ones."""
MESSAGE_BYTES = 256
"""What a piece takes beside its bytes."""
_KEPT_SHARE = 4
"""One of so many of the requests that a replica holds is kept for bodies that come at once."""


class GatheredBodies:
    """An application that sees a request when its body is whole.

    A client that sends slowly holds no place meanwhile. Most bodies come at once; of those that do
    not a bounded number may arrive at a time, and one more takes the room of the newest one of the
    key that has the most. Of each `KEPT_BYTES` are kept, and of all together `SPARE_BYTES` more: a
    body for which these do not last is given on with a rest to come, and must hurry.

    Stands inside of what bounds bodies in size and time.

    Args:
        app: The application.
        max_slow: How many may arrive slowly at a time.
        owner: What they arrive at, for messages, such as `model 'story'`.
        check: Called with the scope before a long body is read; raises where the request would be
            refused in any case.
    """

    def __init__(
        self,
        app: Any,
        max_slow: int,
        owner: str,
        check: Callable[[Scope], None] = lambda scope: None,
    ) -> None:
        self._app = app
        self._max_slow = max_slow
        self._owner = owner
        self._check = check
        self._keys: dict[str, Key] = {}
        self.spare = Spare()
        self.num_slow = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection.

        Raises:
            OverloadedError: Too many bodies arrive slowly.
        """
        if scope["type"] != "http" or scope["method"] in READS:
            await self._app(scope, receive, send)
            return
        message = await receive()
        if message.get("more_body", False):
            self._check(scope)
            await self._serve_gathered(scope, _Gathered(message, receive, self.spare), send)
        elif message["type"] != DISCONNECT:
            again = WholeBody(message.get("body", b""), receive)
            del message  # the model works for long
            await self._app(scope, again, send)

    async def _serve_gathered(self, scope: Scope, body: _Gathered, send: Send) -> None:
        identity = identity_of(scope) or ANONYMOUS
        slow = _Slow(Key(identity.name, 0.0, 0.0, identity.weight, identity.priority))
        slow.timer = asyncio.get_running_loop().call_later(SLOW_S, self._enter, slow)
        try:
            try:
                async with slow.limit:
                    is_here = await body.gather()
            except TimeoutError:
                raise self._overloaded() from None
            finally:
                slow.timer.cancel()
                self._leave(slow)
            if is_here:
                if body.has_rest and (arriving := scope.get(SCOPE_KEY)) is not None:
                    arriving.enter()
                await self._app(scope, body, send)
        finally:
            body.close()

    def _enter(self, slow: _Slow) -> None:
        """Counts a body that has become slow; another or itself ends where there are too many."""
        loop = asyncio.get_running_loop()
        if loop.time() > slow.timer.when() + LATE_S:
            slow.timer = loop.call_later(LATE_S, self._enter, slow)
            return
        key = self._keys.get(slow.key.name, slow.key)
        key.weight, key.priority, slow.key = slow.key.weight, slow.key.priority, key
        if self.num_slow >= self._max_slow:
            longest = who_yields(self._keys.values(), key)
            ended = slow if longest is None else longest.waiting[-1]
            assert isinstance(ended, _Slow)
            if not ended.limit.expired():
                ended.limit.reschedule(loop.time())
            if longest is None:
                return
            self._leave(ended)
        self._keys[key.name] = key
        key.waiting.append(slow)
        self.num_slow += 1

    def _leave(self, slow: _Slow) -> None:
        key = slow.key
        if slow not in key.waiting:
            return
        key.waiting.remove(slow)
        self.num_slow -= 1
        if not key.waiting:
            del self._keys[key.name]

    def _overloaded(self) -> OverloadedError:
        note_refusal(QUEUE)
        return OverloadedError(
            f"{self._max_slow} request bodies arrive slowly at {self._owner}; send this one again "
            f"in {RETRY_AFTER_S} s",
            retry_after_s=RETRY_AFTER_S,
        )


class _Slow(Ticket):
    """One that arrives slowly; its limit ends when another takes its room."""

    __slots__ = ("limit", "timer")

    timer: asyncio.TimerHandle
    """Counts it when it has become slow."""

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self.limit = asyncio.timeout(None)


class Spare:
    """What bodies take of `SPARE_BYTES`.

    Attributes:
        num_bytes: All together.
    """

    def __init__(self) -> None:
        self.num_bytes = 0


class _Gathered:
    """One body: what was read of it, and then what comes after that.

    Args:
        message: Its first piece.
        receive: What gives the others.
        spare: What it may take of, beyond what each may.
    """

    __slots__ = ("_messages", "_num_bytes", "_num_spare", "_receive", "_spare")

    def __init__(self, message: Message, receive: Receive, spare: Spare) -> None:
        self._messages = deque((message,))
        self._receive = receive
        self._spare = spare
        self._num_bytes = MESSAGE_BYTES + len(message.get("body", b""))
        self._num_spare = 0

    @property
    def has_rest(self) -> bool:
        """Whether there is more than what was read."""
        return bool(self._messages and self._messages[-1].get("more_body", False))

    async def gather(self) -> bool:
        """Reads on as far as may be; returns whether the client is still there."""
        while self._messages[-1].get("more_body", False) and self._has_room():
            message = await self._receive()
            if message["type"] == DISCONNECT:
                return False
            self._messages.append(message)
            self._num_bytes += MESSAGE_BYTES + len(message.get("body", b""))
        return True

    def _has_room(self) -> bool:
        more = max(0, self._num_bytes - KEPT_BYTES) - self._num_spare
        self._num_spare += more
        self._spare.num_bytes += more
        return self._num_bytes < KEPT_BYTES or self._spare.num_bytes < SPARE_BYTES

    async def __call__(self) -> Message:
        if not self._messages:
            return await self._receive()
        message = self._messages.popleft()
        if not self._messages:
            self.close()
        return message

    def close(self) -> None:
        """Gives back what it took."""
        self._messages.clear()
        self._spare.num_bytes -= self._num_spare
        self._num_spare = 0


def max_slow(num_held: int) -> int:
    """Returns how many bodies may arrive slowly at a replica that holds so many requests.

    Some room is left: a flood of bodies that never end does not use all that the proxy lets in.
    """
    return num_held - num_held // _KEPT_SHARE
