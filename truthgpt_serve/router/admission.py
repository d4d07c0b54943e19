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
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.asgi import Scope
from truthgpt_serve.http.client_limits import MAX_DIGITS, read_turn_limit
from truthgpt_serve.queue_full import whole_seconds
from truthgpt_serve.router.model_entry import ModelEntry
from truthgpt_serve.router.room import Room, is_keyed, room_at
from truthgpt_serve.router.waiting.claims import Claimant, claimant_of
from truthgpt_serve.router.waiting.line import DRAIN_S, MOMENT_S, WAIT_S, Waiting
from truthgpt_serve.router.waiting.pace import STEADY_S
from truthgpt_serve.router.waiting.requests import Requests

TOLD_LENGTH = 16
"""Requests whose clients came as they were told, and that may wait however slow the model is."""
MAX_WAIT_S = 10.0
"""How long they wait at most, for a batch to end."""
MAX_APPLICATIONS = 1024
"""From which on those without requests are forgotten: models come and go."""


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
        room = room_at(entry, self._num_routers)
        if room is None or (room.num_free(requests, who) > 0 and not requests.claims):
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
        self, requests: Requests, who: Claimant, room: Room, limit_s: float | None
    ) -> None:
        """Has a request begin where a model is full, or was.

        Raises:
            OverloadedError: There is no place for it.
        """
        claim = requests.claims.take(who, room.limit)
        num_free = room.num_free(requests, who)
        has_waited = claim.has_waited
        if num_free > 0 and (has_waited or num_free > self._num_kept(requests, room, who)):
            requests.begin(who)
            return
        if claim.wait_s is not None:
            raise room.full(requests, who, whole_seconds(claim.wait_s))
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
        requests: Requests, waiting: Waiting, room: Room, limit_s: float | None
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
    def _num_kept(requests: Requests, room: Room, who: Claimant) -> int:
        """Returns how many free places are kept for clients that were told to come.

        As long as no other place comes before them, and only while the model has enough to do. A
        key's clients keep those of their key from its places, of which each one takes two: it is
        one more, and one less is left.
        """
        if requests.num_running < room.num_places:
            return 0
        within_s = requests.next_s(room.num_places)
        if is_keyed(room.entry):
            return 2 * int(requests.claims.num_expected_of(who.client, within_s) + 0.5)
        return int(requests.claims.num_expected(within_s, who.priority) + 0.5)

    @staticmethod
    def _has_room(requests: Requests, room: Room, who: Claimant, *, has_waited: bool) -> bool:
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

    def _refusal(self, requests: Requests, who: Claimant, room: Room) -> OverloadedError:
        wait_s = whole_seconds(requests.promise_s(room.num_places, room.limit))
        requests.claims.give(who, wait_s)
        return room.full(requests, who, wait_s)

    def _end(
        self, requests: Requests, who: Claimant, entry: ModelEntry, took_s: float = 0.0
    ) -> None:
        """Gives a request's place up, and has those that wait begin."""
        requests.end(who, took_s)
        if not len(requests.line):
            return
        room = room_at(entry, self._num_routers)

        def may_begin(who: Claimant) -> bool:
            return room is None or room.num_free(requests, who) > 0

        while room is None or requests.num_running < room.limit:
            waiting = requests.line.next(requests.running, may_begin)
            if waiting is None:
                return
            if not waiting.place.done():  # else its request has given up
                requests.begin(waiting.who)
                waiting.place.set_result(True)
