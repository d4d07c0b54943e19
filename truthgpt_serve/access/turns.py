"""Has requests wait for their turn at a model: in a fair order of keys, or as they came.

Stands where a request's time is bounded and its client's leaving cancels it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable
from typing import Any

from truthgpt_serve.access.fair_queue import FairQueue
from truthgpt_serve.access.identity import ANONYMOUS, Identity, identity_of
from truthgpt_serve.access.queued import Ticket, give_up
from truthgpt_serve.errors import OverloadedError, RequestError
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, is_work
from truthgpt_serve.http.client_limits import read_turn_limit
from truthgpt_serve.http.connection import refuse_websocket
from truthgpt_serve.queue_full import PLACE_HEADER, whole_seconds
from truthgpt_serve.usage.counted import current_usage, note_refusal

QUEUE, DEADLINE = "queue", "deadline"
"""Why requests are refused here."""
_FAILED = 400
_PLACE_HEADER = PLACE_HEADER.encode()


class Turns:
    """An application with some places, for which requests wait in a fair queue.

    Args:
        app: The application; something around it answers the errors that this raises.
        queue: The places.
        owner: Whose queue it is, for messages, such as `model 'story'`.
        max_request_s: Seconds that a request may take in all. One whose turn leaves it less than
            requests take is refused: it would be cut, and its place lost for the others.
    """

    def __init__(
        self, app: Any, queue: FairQueue, owner: str, *, max_request_s: float = math.inf
    ) -> None:
        self._app = app
        self._queue = queue
        self._owner = owner
        self._max_request_s = max_request_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection.

        Raises:
            OverloadedError: The queue is full, or its turn would come too late.
            RequestError: Its header says no time.
        """
        kind = scope["type"]
        if kind == "lifespan" or not is_work(scope):
            await self._app(scope, receive, send)
            return
        if kind == "http":
            await self._serve(scope, receive, send)
            return
        try:
            await self._serve(scope, receive, send)
        except (OverloadedError, RequestError) as error:
            await refuse_websocket(scope, receive, send, error)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity = identity_of(scope) or ANONYMOUS
        limit_s = self._check_time(scope, identity)
        ticket = self._enter(identity)
        is_done = False

        def send_noted(message: Message) -> Awaitable[None]:
            nonlocal is_done
            if message["type"] == "http.response.start":
                is_done = message["status"] < _FAILED
                message = self._with_place(message)
            return send(message)

        try:
            if ticket.future is not None:
                await self._wait(ticket.future, limit_s)
            await self._app(scope, receive, send_noted)
        except BaseException:
            is_done = False
            raise
        finally:
            self._queue.leave(ticket, is_done=is_done)

    def check(self, scope: Scope) -> None:
        """Raises what a request would be refused with if it came now; see `__call__`."""
        identity = identity_of(scope) or ANONYMOUS
        self._check_time(scope, identity)
        try:
            self._queue.check(identity.name, identity.weight, identity.priority)
        except OverloadedError:
            note_refusal(QUEUE)
            raise

    def _check_time(self, scope: Scope, identity: Identity) -> float | None:
        """Returns how long a request may take, if it says so."""
        limit_s = read_turn_limit(scope)
        if limit_s is not None or self._queue.num_waiting:
            self._check(identity, limit_s)
        return limit_s

    def _enter(self, identity: Identity) -> Ticket:
        try:
            return self._queue.enter(identity.name, identity.weight, identity.priority)
        except OverloadedError:
            note_refusal(QUEUE)
            raise

    def _with_place(self, message: Message) -> Message:
        """Returns the head of an answer with how fast places come, while requests wait.

        The model's own application does not say it: the proxy would believe it for all models.
        """
        given = message.get("headers", ())
        kept = [pair for pair in given if pair[0].lower() != _PLACE_HEADER]
        if self._queue.num_waiting and (place_s := self._queue.place_s):
            kept.append((_PLACE_HEADER, b"%d" % (place_s * 1e6)))
        return message if kept == given else {**message, "headers": kept}

    def _most_s(self, limit_s: float | None) -> float:
        """Returns how long a request may wait: the rest of its time is for its work."""
        own_s = max(0.0, self._max_request_s - self._queue.mean_s)
        return own_s if limit_s is None else min(limit_s, own_s)

    def _check(self, identity: Identity, limit_s: float | None) -> None:
        if self._queue.longest_s <= self._most_s(limit_s):
            return
        expected_s = self._queue.expected_s(identity.name, identity.weight, identity.priority)
        if expected_s > self._most_s(limit_s):
            raise self._too_late(f"would come in about {expected_s:.1f} s", limit_s, expected_s)

    async def _wait(self, turn: asyncio.Future[bool], limit_s: float | None) -> None:
        began_s, most_s = time.monotonic(), self._most_s(limit_s)
        timer = None
        if most_s != math.inf:  # `asyncio.timeout` takes four times as long
            timer = asyncio.get_running_loop().call_later(most_s, give_up, turn)
        try:
            has_come = await turn
        except OverloadedError:  # another key's request took its place
            note_refusal(QUEUE)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if (usage := current_usage()) is not None:
                usage.queued_s += time.monotonic() - began_s
        if not has_come:
            raise self._too_late("has not come", limit_s, 1)

    def _too_late(self, what: str, limit_s: float | None, retry_after_s: float) -> OverloadedError:
        note_refusal(DEADLINE)
        if limit_s is not None and limit_s <= self._most_s(None):
            limit = f"it may take {limit_s:g} s (`x-request-timeout-ms`)"
        else:
            limit = f"requests may take {self._max_request_s:g} s with their waiting"
        return OverloadedError(
            f"The turn of this request at {self._owner} {what}, and {limit}",
            retry_after_s=whole_seconds(retry_after_s),
        )
