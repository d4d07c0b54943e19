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
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.asgi import Scope
from truthgpt_serve.http.client_limits import MAX_DIGITS, read_turn_limit
from truthgpt_serve.queue_full import queue_full, whole_seconds
from truthgpt_serve.router.model_entry import ModelEntry
from truthgpt_serve.router.waiting.claims import Claimant, claimant_of
from truthgpt_serve.router.waiting.line import DRAIN_S, MOMENT_S, WAIT_S, Waiting
from truthgpt_serve.router.waiting.pace import STEADY_S
from truthgpt_serve.router.waiting.requests import Requests

FAIR_QUEUE = "fair"
"""What `limits.queue` of a model's card says if requests wait in an order of their keys."""
RESERVE = 32
"""Requests beyond what the models hold: those that a router answers by itself, or has wait."""
TOLD_LENGTH = 16
"""Requests whose clients came as they were told, and that may wait however slow the model is."""
MAX_WAIT_S = 10.0
"""How long they wait at most, for a batch to end."""
MAX_APPLICATIONS = 1024
"""From which on those without requests are forgotten: models come and go."""


@dataclass(frozen=True, slots=True)
class _Room:
    """What a router may have at a model.

    Attributes:
        entry: The model.
        limit: How many requests.
        num_places: How many of them the model works on.
    """

    entry: ModelEntry
    limit: int
    num_places: float

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


def keyed_models(entries: Iterable[ModelEntry]) -> list[str]:
    """Returns the names of the models whose requests wait in an order of their keys."""
    return [entry.name for entry in entries if entry.is_model and _is_keyed(entry)]


def _is_keyed(entry: ModelEntry) -> bool:
    return (entry.card.get("limits") or {}).get("queue") == FAIR_QUEUE


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
    if _is_keyed(entry):
        queued = ongoing + 2 * queued
    return ongoing * num_replicas, queued * num_replicas


class Admission:
    """The requests that this router has at each application.

    Args:
        num_routers: Routers that share a model's queue.
        find_claimant: Returns who sends a request.
    """

    def __init__(
        self,
        num_routers: int,
        find_claimant: Callable[[Scope | None], Claimant] = claimant_of,
    ) -> None:
        self._num_routers = num_routers
        self._find_claimant = find_claimant
        self._requests: dict[str, Requests] = {}

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
        requests, who = self._find(entry), self._find_claimant(scope)
        room = self._room(entry)
        if room is None or (requests.num_running < room.limit and not requests.claims):
            requests.begin(who)
        else:
            limit_s = None if scope is None else read_turn_limit(scope)
            await self._ask(requests, who, room, limit_s)
        began_s, is_done = requests.clock(), False
        try:
            yield
            is_done = True
        finally:
            self._end(requests, who, entry, requests.clock() - began_s if is_done else 0.0)

    def _find(self, entry: ModelEntry) -> Requests:
        requests = self._requests.get(entry.application)
        if requests is None:
            if len(self._requests) >= MAX_APPLICATIONS:
                used = {name: one for name, one in self._requests.items() if one.num_running}
                self._requests = used
            clock = asyncio.get_running_loop().time
            requests = self._requests[entry.application] = Requests(clock)
        return requests

    def _room(self, entry: ModelEntry) -> _Room | None:
        """Returns what this router may have at a model; None where that is not bounded.

        Alone it can use all replicas; together the routers fill no more than their queues.
        """
        limits = _limits(entry)
        if limits is None:
            return None
        ongoing, queued = limits
        limit = max(1, ongoing, (ongoing + queued) // self._num_routers)
        return _Room(entry, limit, ongoing / self._num_routers)

    def note_place(self, entry: ModelEntry, place: bytes) -> None:
        """Notes how fast places come, as a replica's answer told it.

        Args:
            entry: Its model.
            place: Microseconds between two places of one replica, in digits. All replicas give
                them, and other routers get as many.
        """
        if place.isdigit() and len(place) <= MAX_DIGITS:
            share = self._num_routers / max(1, entry.num_replicas)
            self._find(entry).line.pace.tell(int(place) / 1e6 * share)

    async def _ask(
        self, requests: Requests, who: Claimant, room: _Room, limit_s: float | None
    ) -> None:
        """Has a request begin where a model is full, or was.

        Raises:
            OverloadedError: There is no place for it.
        """
        claim = requests.claims.take(who, room.limit)
        num_free = room.limit - requests.num_running
        has_waited = claim.has_waited
        if num_free > 0 and (has_waited or num_free > self._num_kept(requests, room, who)):
            requests.begin(who)
            return
        if claim.wait_s is not None:
            raise room.full(whole_seconds(claim.wait_s))
        if claim.is_early or not self._has_room(requests, room, who, has_waited=has_waited):
            raise self._refusal(requests, who, room)
        waiting = requests.line.join(who, has_waited=has_waited)
        try:
            await self._wait(requests, waiting, room, limit_s)
        except BaseException as error:
            requests.line.leave(waiting)
            if waiting.has_place:  # it came together with the end of the wait
                self._end(requests, who, room.entry)
            if isinstance(error, TimeoutError):
                raise self._refusal(requests, who, room) from None
            raise

    @staticmethod
    async def _wait(
        requests: Requests, waiting: Waiting, room: _Room, limit_s: float | None
    ) -> None:
        """Waits for a place: longer than a moment only where one comes every now and then.

        Whoever comes as it was told waits for the next batch too.

        Raises:
            TimeoutError: None has come, or another request waits in its stead.
        """
        began_s, pace = requests.clock(), requests.line.pace
        most_s = WAIT_S
        if waiting.has_waited:
            most_s = max(WAIT_S, min(MAX_WAIT_S, requests.next_s(room.num_places)))
        async with asyncio.timeout(min(most_s, limit_s or most_s)):
            if not waiting.has_waited:
                may_stay = not requests.claims
                is_quick = 0 < pace.told_s * room.num_places <= STEADY_S
                await asyncio.wait((waiting.place,), timeout=MOMENT_S)
                is_steady = may_stay and pace.is_steady(began_s, is_quick=is_quick)
                if not waiting.place.done() and not is_steady:
                    raise TimeoutError
            if not await waiting.place:
                raise TimeoutError

    @staticmethod
    def _num_kept(requests: Requests, room: _Room, who: Claimant) -> int:
        """Returns how many free places are kept for clients that were told to come.

        As long as no other place comes before them, and only while the model has enough to do.
        """
        if requests.num_running < room.num_places:
            return 0
        within_s = requests.next_s(room.num_places)
        return int(requests.claims.num_expected(within_s, who.priority) + 0.5)

    @staticmethod
    def _has_room(requests: Requests, room: _Room, who: Claimant, *, has_waited: bool) -> bool:
        """Returns whether one more request may wait: what is promised is left to those clients.

        Where there is none, it may take that of one of a lower priority.
        """
        line = requests.line
        told_s = line.pace.told_s
        most = float(line.length(1 / told_s if told_s else None))
        if has_waited:
            most = max(2 * most, min(room.num_places, TOLD_LENGTH))
        else:
            most -= requests.claims.num_expected(DRAIN_S, who.priority)
        return len(line) < most or line.make_room(who.priority)

    def _refusal(self, requests: Requests, who: Claimant, room: _Room) -> OverloadedError:
        wait_s = whole_seconds(requests.promise_s(room.num_places, room.limit))
        requests.claims.give(who, wait_s)
        return room.full(wait_s)

    def _end(
        self, requests: Requests, who: Claimant, entry: ModelEntry, took_s: float = 0.0
    ) -> None:
        """Gives a request's place up, and has those that wait begin."""
        requests.end(who, took_s)
        if not len(requests.line):
            return
        room = self._room(entry)
        while room is None or requests.num_running < room.limit:
            waiting = requests.line.next(requests.running)
            if waiting is None:
                return
            if not waiting.place.done():  # else its request has given up
                requests.begin(waiting.who)
                waiting.place.set_result(True)
