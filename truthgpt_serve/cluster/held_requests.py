"""Bounds how long Ray's Python proxy holds a request whose application has no running replica.

Ray's holds it without an end. Behind HAProxy it is the fallback, which gets what is for a model
that sleeps, loads or cannot load, at `/models/<name>` or from a router. A router has a limit of its
own (`router/deadline.py`); here is the same one for all others, and for all of them the client's,
`x-request-timeout-ms`, which bounds how long a request waits for its turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.cluster.controller import CALL_TIMEOUT_S, fetch_serve_file, fetch_serve_state
from truthgpt_serve.cluster.proxy_answers import ROUTER_HEADER, below_mount, model_of, owner_of
from truthgpt_serve.cluster.state import ServeState
from truthgpt_serve.errors import OverloadedError, RequestError, TruthGPTError, UnavailableError
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, header, send_error
from truthgpt_serve.http.client_limits import read_turn_limit
from truthgpt_serve.http.cors import Cors

App = Callable[[Scope, Receive, Send], Awaitable[Any]]
HOLD_S = 60.0
"""How long a request is held where the Serve file's router has no `hold_timeout_s`."""
AGAIN_S, MIN_SLEEP_S = 5.0, 0.05
"""How often it is looked whether a replica runs: at most, and at least."""
MAX_AGE_S = 1.0
"""How old an answer of Serve's controller may be: clients decide how often there is a question."""


@dataclass(frozen=True, slots=True)
class Known:
    """What Serve's controller said.

    Attributes:
        state: Which applications have running replicas.
        hold_s: How long requests are held.
    """

    state: ServeState
    hold_s: float = HOLD_S

    def is_running(self, path: str) -> bool:
        """Returns whether the application at a path has a running replica, or is not known."""
        found = [
            (len(prefix), application.num_running_replicas > 0)
            for application in self.state.applications.values()
            if (prefix := (application.route_prefix or "/").rstrip("/")) == path
            or path.startswith(f"{prefix}/")
        ]
        return max(found)[1] if found else True


def ask_controller() -> Known:
    """Asks Serve's controller; blocks for some 20 ms. Raises RuntimeError where it cannot say."""
    state = fetch_serve_state()
    for application in fetch_serve_file().get("applications", ()):
        if str(application.get("import_path", "")).endswith(":router"):
            hold_s = (application.get("args") or {}).get("hold_timeout_s")
            return Known(state, HOLD_S if hold_s is None else float(hold_s))
    return Known(state)


class Replicas:
    """Which applications have running replicas, asked for by many and looked up by one.

    Args:
        ask: Asks; called in a thread.
    """

    def __init__(self, ask: Callable[[], Known] = ask_controller) -> None:
        self._ask = ask
        self._asking: asyncio.Future[Known] | None = None
        self._known: Known | None = None
        self._known_s = float("-inf")

    async def look(self) -> Known | None:
        """Returns what is known, `MAX_AGE_S` old at most; None if the controller does not say."""
        if time.monotonic() - self._known_s < MAX_AGE_S:
            return self._known
        if self._asking is None:  # one that takes long goes on, and no second one begins
            self._asking = asyncio.ensure_future(asyncio.to_thread(self._ask))
            self._asking.add_done_callback(self._note)
        await asyncio.wait((self._asking,), timeout=CALL_TIMEOUT_S)
        return self._known if time.monotonic() - self._known_s < MAX_AGE_S else None

    def _note(self, asked: asyncio.Future[Known]) -> None:
        self._asking, self._known_s = None, time.monotonic()
        failed = asked.cancelled() or asked.exception() is not None
        self._known = None if failed else asked.result()


class HeldRequests:
    """The application of Ray's proxy, which holds no request longer than it may be held.

    Args:
        app: The application.
        allow_origins: Origins whose pages may read an answer.
        replicas: Says which applications have running replicas.
    """

    def __init__(
        self, app: App, allow_origins: Sequence[str], replicas: Replicas | None = None
    ) -> None:
        self._app = app
        self._allow_origins = allow_origins
        self._replicas = replicas or Replicas()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        watch = asyncio.create_task(self._watch(scope, receive, answer))
        try:
            await self._app(scope, receive, answer.send)
        finally:
            if not answer.is_refused:
                watch.cancel()
            elif not watch.done():
                await asyncio.wait((watch,))

    async def _watch(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Refuses a request that is held too long. Ray then sees that its client has gone."""
        limit_s = _turn_limit(scope)
        by_router = header(scope["headers"], ROUTER_HEADER) is not None
        if by_router and limit_s is None:
            return
        began_s = held_since_s = now_s = time.monotonic()
        hold_s = HOLD_S
        while not answer.has_begun:
            ends = [began_s + limit_s] if limit_s is not None and now_s < began_s + limit_s else []
            next_s = min(now_s + AGAIN_S, held_since_s + hold_s, *ends)
            await asyncio.sleep(max(MIN_SLEEP_S, next_s - now_s))
            known = await self._replicas.look()
            now_s = time.monotonic()
            if known is None or known.is_running(scope["path"]):
                held_since_s = now_s
                continue
            hold_s = known.hold_s
            is_late = limit_s is not None and now_s >= began_s + limit_s
            if not answer.has_begun and (
                is_late or (not by_router and now_s >= held_since_s + hold_s)
            ):
                error = self._error(scope, limit_s if is_late else None, hold_s)
                await self._refuse(error, scope, receive, answer)
                return

    @staticmethod
    def _error(scope: Scope, limit_s: float | None, hold_s: float) -> TruthGPTError:
        owner = owner_of(scope)
        if limit_s is not None:
            return OverloadedError(
                f"The turn of this request at {owner.removeprefix('the ')} has not come, and it "
                f"may take {limit_s:g} s (`x-request-timeout-ms`)",
                retry_after_s=1,
            )
        name = model_of(scope)
        where = "" if name is None else f": `truthgpt why {name}` says why"
        return UnavailableError(
            f"{owner[0].upper()}{owner[1:]} had no running replica for {hold_s:g} s{where}",
            retry_after_s=5,
        )

    async def _refuse(
        self, error: TruthGPTError, scope: Scope, receive: Receive, answer: _Answer
    ) -> None:
        send = answer.refuse()

        async def say(scope: Scope, receive: Receive, send: Send) -> None:
            await send_error(send, error, path=below_mount(scope["path"]))

        await Cors(say, self._allow_origins)(scope, receive, send)


def _turn_limit(scope: Scope) -> float | None:
    try:
        return read_turn_limit(scope)
    except RequestError:  # the model says what is wrong with it
        return None


class _Answer:
    """The way back of one request.

    Attributes:
        has_begun: Whether its answer has begun.
        is_refused: Whether it was refused here; what the application sends goes nowhere then.
    """

    __slots__ = ("_send", "has_begun", "is_refused")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self.is_refused = False

    async def send(self, message: Message) -> None:
        """Passes a message of the application on."""
        if self.is_refused:
            return
        self.has_begun = True
        await self._send(message)

    def refuse(self) -> Send:
        """Returns the way back for another answer in the place of the application's."""
        self.is_refused = True
        return self._send
