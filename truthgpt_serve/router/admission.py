"""Admits requests to a model up to what its replicas hold, and refuses the others at once.

A request that a replica refuses has cost nearly as much as one that it answers: under several times
the load that a service carries, nothing but refusals would be left. Here those that find a model
full are refused, but for as many as have a place in a moment, which wait for it
(`waiting/line.py`). A client that comes before it was told to has only places that nobody else is
to have (`waiting/claims.py`): it would else be there whenever one is free. And the proxy learns how
many requests all models hold together, so that it refuses what is beyond that by itself. When a
refused client may ask again follows from what the replicas tell in their answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from truthgpt_serve.access.turns import MAX_DIGITS, read_timeout
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.asgi import Scope
from truthgpt_serve.queue_full import Promises, queue_full, whole_seconds
from truthgpt_serve.router.model_entry import ModelEntry
from truthgpt_serve.router.waiting.claims import Claimant, Claims, claimant_of
from truthgpt_serve.router.waiting.line import DRAIN_S, MOMENT_S, STEADY_S, WAIT_S, Line, Waiting

FAIR_QUEUE = "fair"
"""What `limits.queue` of a model's card says if requests wait in an order of their keys."""
RESERVE = 32
"""Requests beyond what the models hold: those that a router answers by itself, or has wait."""
MAX_APPLICATIONS = 1024
"""From which on those without requests are forgotten: models come and go."""


class _Requests:
    """Those of one application.

    Attributes:
        num_running: How many run.
        running: The same of each client.
        line: Who waits.
        claims: Who was told when to come again.
        promises: When the next one may come.
        place_s: Seconds between two places; 0 where that is not known.
    """

    def __init__(self) -> None:
        clock = asyncio.get_running_loop().time
        self.num_running = 0
        self.running: dict[str, int] = {}
        self.line = Line(clock)
        self.claims = Claims(clock)
        self.promises = Promises(clock)
        self.place_s = 0.0

    def begin(self, who: Claimant) -> None:
        """Counts a request that runs."""
        if not self.num_running:
            self.line.pace.begin()
        self.num_running += 1
        self.running[who.client] = self.running.get(who.client, 0) + 1

    def end(self, who: Claimant) -> None:
        """Counts one that does not any more."""
        self.num_running -= 1
        if left := self.running[who.client] - 1:
            self.running[who.client] = left
        else:
            del self.running[who.client]


@dataclass(frozen=True, slots=True)
class _Room:
    """What a router may have at a model.

    Attributes:
        entry: The model.
        limit: How many requests.
    """

    entry: ModelEntry
    limit: int

    def full(self, wait_s: int) -> OverloadedError:
        """Returns the refusal of a client that may come again in so many seconds."""
        return queue_full(f"model {self.entry.name!r}", self.limit, wait_s)


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

    @property
    def num_requests(self) -> int:
        """Those that run or wait."""
        return sum(one.num_running + len(one.line) for one in self._requests.values())

    @asynccontextmanager
    async def admit(self, entry: ModelEntry, scope: Scope | None = None) -> AsyncIterator[None]:
        """Counts one request as long as it runs; it may wait a moment for room.

        Args:
            entry: The model.
            scope: The request's; it says whose it is, and its header that it waits less.

        Raises:
            OverloadedError: There is none.
            RequestError: Its header says no time.
        """
        requests, who = self._find(entry), claimant_of(scope)
        limit = self._limit(entry)
        if limit is None or (requests.num_running < limit and not requests.claims):
            requests.begin(who)
        else:
            limit_s = None if scope is None else read_timeout(scope)
            await self._ask(requests, who, _Room(entry, limit), limit_s)
        try:
            yield
        finally:
            self._end(requests, who, entry)

    def _find(self, entry: ModelEntry) -> _Requests:
        requests = self._requests.get(entry.application)
        if requests is None:
            if len(self._requests) >= MAX_APPLICATIONS:
                used = {name: one for name, one in self._requests.items() if one.num_running}
                self._requests = used
            requests = self._requests[entry.application] = _Requests()
        return requests

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
            self._find(entry).place_s = int(place) / 1e6 / max(1, entry.num_replicas)

    async def _ask(
        self, requests: _Requests, who: Claimant, room: _Room, limit_s: float | None
    ) -> None:
        """Has a request begin where a model is full, or was.

        Raises:
            OverloadedError: There is no place for it.
        """
        claim = requests.claims.take(who, room.limit)
        num_free = room.limit - requests.num_running
        has_waited = claim.has_waited
        if num_free > 0 and (has_waited or num_free > self._num_kept(requests, room)):
            requests.begin(who)
            return
        if claim.wait_s is not None:
            raise room.full(whole_seconds(claim.wait_s))
        if claim.is_early or not self._has_room(requests, has_waited=has_waited):
            raise self._refusal(requests, who, room)
        waiting = requests.line.join(who, has_waited=has_waited)
        try:
            may_stay = has_waited or not requests.claims
            limit_s = min(WAIT_S, limit_s or WAIT_S)
            await self._wait(
                requests.line, waiting, limit_s, self._is_quick(requests, room), may_stay
            )
        except BaseException as error:
            requests.line.leave(waiting)
            if waiting.place.done() and not waiting.place.cancelled():
                self._end(requests, who, room.entry)  # it came together with the end of the wait
            if isinstance(error, TimeoutError):
                raise self._refusal(requests, who, room) from None
            raise

    @staticmethod
    async def _wait(
        line: Line, waiting: Waiting, limit_s: float, is_quick: bool, may_stay: bool
    ) -> None:
        """Waits for a place: longer than a moment only where one comes every now and then.

        Raises:
            TimeoutError: None has come.
        """
        began_s = asyncio.get_running_loop().time()
        async with asyncio.timeout(limit_s):
            await asyncio.wait((waiting.place,), timeout=MOMENT_S)
            is_steady = may_stay and line.pace.is_steady(began_s, is_quick=is_quick)
            if not waiting.place.done() and not is_steady:
                raise TimeoutError
            await waiting.place

    @staticmethod
    def _is_quick(requests: _Requests, room: _Room) -> bool:
        """Returns whether a request takes less than a second, as replicas have told it."""
        limits = _limits(room.entry)
        return limits is not None and 0 < requests.place_s * limits[0] <= STEADY_S

    def _num_kept(self, requests: _Requests, room: _Room) -> int:
        """Returns how many free places are kept for clients that were told to come.

        As long as no other place comes before them, and only while the model has enough to do.
        """
        limits = _limits(room.entry)
        if limits is None or requests.num_running * self._num_routers < limits[0]:
            return 0
        return int(requests.claims.num_expected(self._place_s(requests)) + 0.5)

    def _has_room(self, requests: _Requests, *, has_waited: bool) -> bool:
        """Returns whether one more request may wait: what is promised is left to those clients."""
        told = 1 / self._place_s(requests) if requests.place_s else None
        length = requests.line.length(told)
        if has_waited:
            return len(requests.line) < 2 * length
        return len(requests.line) + requests.claims.num_expected(DRAIN_S) < length

    def _place_s(self, requests: _Requests) -> float:
        """Returns the seconds between two places of this router: the others give as many."""
        return requests.place_s * self._num_routers

    def _refusal(self, requests: _Requests, who: Claimant, room: _Room) -> OverloadedError:
        place_s = self._place_s(requests)
        wait_s = whole_seconds(requests.promises.next_s(place_s, room.limit))
        requests.claims.give(who, wait_s)
        return room.full(wait_s)

    def _end(self, requests: _Requests, who: Claimant, entry: ModelEntry) -> None:
        """Gives a request's place up, and has those that wait begin."""
        requests.end(who)
        requests.line.pace.end()
        if not len(requests.line):
            return
        limit = self._limit(entry)
        while limit is None or requests.num_running < limit:
            waiting = requests.line.next(requests.running)
            if waiting is None:
                return
            if not waiting.place.done():  # else its request has given up
                requests.begin(waiting.who)
                waiting.place.set_result(None)
