"""Admits requests to a model up to what its replicas hold; others wait for a short time.

A request that a replica refuses has cost nearly as much as one that it answers: under several times
the load that a service carries, nothing but refusals would be left. Here those that find a model
full wait for one of its requests to end, for a short time, and only then are refused. And the proxy
learns how many requests all models hold together, so that it refuses what is beyond that by itself.
When a refused client may ask again follows from what the replicas tell in their answers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from truthgpt_serve.access.turns import MAX_DIGITS, read_timeout
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.asgi import Scope
from truthgpt_serve.queue_full import Promises, queue_full, whole_seconds
from truthgpt_serve.router.model_entry import ModelEntry

WAIT_S = 1.0
FAIR_QUEUE = "fair"
"""What `limits.queue` of a model's card says if requests wait in an order of their keys."""
RESERVE = 32
"""Requests beyond what the models hold: those that a router answers by itself, or has wait."""


@dataclass(slots=True)
class _Requests:
    """Those of one application: how many run, and who waits."""

    num_running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


@dataclass(slots=True)
class _Places:
    """How many seconds pass between two places of an application, and to whom they are promised."""

    place_s: float = 0.0
    promises: Promises = field(default_factory=Promises)


def capacity(entries: Iterable[ModelEntry]) -> int | None:
    """Returns how many requests the routers may have at the same time; None where it is not known.

    Args:
        entries: All models, adapters and aliases.
    """
    held = [_limits(entry) for entry in entries if entry.is_model]
    known = [sum(limits) for limits in held if limits is not None]
    return sum(known) + RESERVE if len(known) == len(held) else None


def held_by_model(entries: Iterable[ModelEntry], most_s: float) -> dict[str, int]:
    """Returns how many requests each running model holds, by name, where that is known.

    Args:
        entries: All models, adapters and aliases.
        most_s: Only models that end their requests within so many seconds by themselves.
    """
    held = {}
    for entry in entries:
        limits = _limits(entry) if entry.is_model and entry.running else None
        if limits is not None and entry.card["limits"].get("max_request_s", most_s + 1) <= most_s:
            held[entry.name] = sum(limits)
    return held


def _limits(entry: ModelEntry) -> tuple[int, int] | None:
    """Returns how many requests all replicas of a model work on, and how many they queue.

    Replicas with a fair queue get twice as many: a request may take the place of another key's
    there, so they have to see more than they hold.
    """
    limits = entry.card.get("limits") or {}
    ongoing = limits.get("max_ongoing_requests")
    queued = limits.get("max_queued_requests")
    if not isinstance(ongoing, int) or not isinstance(queued, int):
        return None
    num_replicas = max(1, entry.num_replicas)  # where none runs yet, one is about to
    if limits.get("queue") == FAIR_QUEUE:
        queued = ongoing + 2 * queued
    return ongoing * num_replicas, queued * num_replicas


class Admission:
    """The requests that this router has at each application.

    Args:
        num_routers: Routers that share a model's queue.
    """

    def __init__(self, num_routers: int) -> None:
        self._num_routers = num_routers
        self._requests: dict[str, _Requests] = {}
        self._places: dict[str, _Places] = {}

    @property
    def num_requests(self) -> int:
        """Those that run or wait."""
        return sum(one.num_running + len(one.waiting) for one in self._requests.values())

    @asynccontextmanager
    async def admit(self, entry: ModelEntry, scope: Scope | None = None) -> AsyncIterator[None]:
        """Waits for room, and counts one request as long as it runs.

        Args:
            entry: The model.
            scope: The request's; its header may say that it waits less.

        Raises:
            OverloadedError: There was none for a second.
            RequestError: Its header says no time.
        """
        requests = self._requests.setdefault(entry.application, _Requests())
        limit = self._limit(entry)
        if limit is not None and requests.num_running >= limit:
            await self._wait(requests, entry, limit, scope)
        else:
            requests.num_running += 1
        try:
            yield
        finally:
            self._end(requests, entry)

    def _limit(self, entry: ModelEntry) -> int | None:
        """Returns how many requests this router may have at a model.

        Alone it can use all replicas; together the routers fill no more than their queues.
        """
        limits = _limits(entry)
        if limits is None:
            return None
        ongoing, queued = limits
        return max(1, ongoing, (ongoing + queued) // self._num_routers)

    def note_place(self, entry: ModelEntry, place: bytes) -> None:
        """Notes how fast places come, as a replica's answer told it.

        Args:
            entry: Its model.
            place: Microseconds between two places of one replica, in digits.
        """
        if place.isdigit() and len(place) <= MAX_DIGITS:
            places = self._places.setdefault(entry.application, _Places())
            places.place_s = int(place) / 1e6 / max(1, entry.num_replicas)

    def _refusal(self, entry: ModelEntry, limit: int) -> OverloadedError:
        places = self._places.setdefault(entry.application, _Places())
        # The other routers promise as many.
        wait_s = places.promises.next_s(places.place_s * self._num_routers, limit)
        return queue_full(f"model {entry.name!r}", limit, whole_seconds(wait_s))

    async def _wait(
        self, requests: _Requests, entry: ModelEntry, limit: int, scope: Scope | None
    ) -> None:
        """Waits for the place of a request that ends, which hands it on.

        Raises:
            OverloadedError: None ended in time.
            RequestError: The request's header says no time.
        """
        limit_s = None if scope is None else read_timeout(scope)
        place = asyncio.get_running_loop().create_future()
        requests.waiting.append(place)
        try:
            async with asyncio.timeout(min(WAIT_S, limit_s or WAIT_S)):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self._end(requests, entry)  # it came together with the end of the wait
            with suppress(ValueError):
                requests.waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise self._refusal(entry, limit) from None
            raise

    def _end(self, requests: _Requests, entry: ModelEntry) -> None:
        """Hands a request's place on, or gives it up."""
        while requests.waiting:
            place = requests.waiting.popleft()
            if not place.done():  # else its request has given up
                place.set_result(None)
                return
        requests.num_running -= 1
        if not requests.num_running:  # models come and go
            self._requests.pop(entry.application, None)
