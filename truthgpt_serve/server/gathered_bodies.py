"""Reads the body of a request before the request takes a place at the model."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from truthgpt_serve.access.identity import ANONYMOUS, Identity, identity_of
from truthgpt_serve.access.queued import Key, Ticket, who_yields
from truthgpt_serve.access.turns import QUEUE
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.asgi import READS, Message, Receive, Scope, Send, replay
from truthgpt_serve.queue_full import RETRY_AFTER_S
from truthgpt_serve.server.read_ahead import DISCONNECT, KEPT_BYTES
from truthgpt_serve.usage.counted import note_refusal

_KEPT_SHARE = 8
"""One of so many of the requests that a replica holds is kept for bodies that are whole."""


class GatheredBodies:
    """An application that sees a request when its body is whole, or `KEPT_BYTES` of it are there.

    A client that sends slowly holds no place meanwhile. Most bodies are there at once; of those
    that are not a bounded number may arrive at a time, and one more takes the room of the newest
    one of the key that has the most. Stands inside of what bounds bodies in size and time.

    Args:
        app: The application.
        max_bodies: How many may arrive at a time.
        owner: What they arrive at, for messages, such as `model 'story'`.
    """

    def __init__(self, app: Any, max_bodies: int, owner: str) -> None:
        self._app = app
        self._max_bodies = max_bodies
        self._owner = owner
        self._keys: dict[str, Key] = {}
        self.num_arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection.

        Raises:
            OverloadedError: Too many bodies arrive.
        """
        if scope["type"] != "http" or scope["method"] in READS:
            await self._app(scope, receive, send)
            return
        message = await receive()
        if message.get("more_body", False):
            again = await self._gather(identity_of(scope) or ANONYMOUS, message, receive)
        else:
            again = None if message["type"] == DISCONNECT else replay(message["body"], receive)
        if again is not None:
            await self._app(scope, again, send)

    async def _gather(
        self, identity: Identity, message: Message, receive: Receive
    ) -> Receive | None:
        """Reads on after the first piece; returns None if the client left."""
        body = self._enter(identity)
        try:
            async with body.limit:
                return await _read(message, receive)
        except TimeoutError:
            raise self._overloaded() from None
        finally:
            self._leave(body)

    def _enter(self, identity: Identity) -> _Body:
        key = self._keys.get(identity.name) or Key(identity.name, 0.0, 0.0)
        key.weight, key.priority = identity.weight, identity.priority
        if self.num_arriving >= self._max_bodies:
            longest = who_yields(self._keys.values(), key)
            if longest is None:
                raise self._overloaded()
            newest = longest.waiting[-1]
            assert isinstance(newest, _Body)
            newest.limit.reschedule(asyncio.get_running_loop().time())
            self._leave(newest)
        body = _Body(key)
        self._keys[key.name] = key
        key.waiting.append(body)
        self.num_arriving += 1
        return body

    def _leave(self, body: _Body) -> None:
        key = body.key
        if body not in key.waiting:
            return
        key.waiting.remove(body)
        self.num_arriving -= 1
        if not key.waiting:
            del self._keys[key.name]

    def _overloaded(self) -> OverloadedError:
        note_refusal(QUEUE)
        return OverloadedError(
            f"{self._max_bodies} request bodies are still arriving at {self._owner}; send this one "
            f"again in {RETRY_AFTER_S} s",
            retry_after_s=RETRY_AFTER_S,
        )


class _Body(Ticket):
    """One that arrives; its limit ends when another takes its room."""

    __slots__ = ("limit",)

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self.limit = asyncio.timeout(None)


class _Gathered:
    """A `receive` that gives what was read, and then what comes after it."""

    __slots__ = ("_messages", "_receive")

    def __init__(self, messages: deque[Message], receive: Receive) -> None:
        self._messages = messages
        self._receive = receive

    async def __call__(self) -> Message:
        return self._messages.popleft() if self._messages else await self._receive()


async def _read(message: Message, receive: Receive) -> Receive | None:
    messages = deque((message,))
    num_bytes = len(message.get("body", b""))
    while message.get("more_body", False) and num_bytes < KEPT_BYTES:
        message = await receive()
        if message["type"] == DISCONNECT:
            return None
        messages.append(message)
        num_bytes += len(message.get("body", b""))
    return _Gathered(messages, receive)


def max_bodies(num_held: int) -> int:
    """Returns how many bodies may arrive at once at a replica that holds so many requests.

    Some room is left: a flood of bodies that never end does not use all that the proxy lets in.
    """
    return max(2, num_held - max(1, num_held // _KEPT_SHARE))
