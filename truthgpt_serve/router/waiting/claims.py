"""Remembers which clients were told when to come again, and who of them comes too early.

A client is a key, or without keys an address; a connection is one of its own. A request comes too
early if its connection was told to wait, and has not. A client that opens a connection for each
request is known by how many of its promises are open: more of them than a model has places for, and
what it sends is too early as well.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from truthgpt_serve.access.identity import identity_of
from truthgpt_serve.http.asgi import Scope, header
from truthgpt_serve.queue_full import CLIENT_HEADER, MAX_QUEUES

_CLIENT_HEADER = CLIENT_HEADER.encode()
MAX_CLIENT = 64
MAX_PROMISES = 1024
"""Of one model: those that are due first are forgotten first."""
EARLY_S = 0.1
"""By how much a client's clock and timers may be early."""
LATE_S = 0.25
"""So long after it was due, a promise may be kept to another connection of the same client."""
KEPT_S = 1.0
"""For how long a place is kept for a client that was told to come now."""
_NEW_SHARE = 0.05
"""How much the newest counts in the share of clients that come as they were told."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who sends a request.

    Attributes:
        client: Its key or address.
        connection: Its connection; empty where that is not known.
        weight: The share of its key.
        priority: Of its key.
    """

    client: str = ""
    connection: str = ""
    weight: float = 1.0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """What a client has waited.

    Attributes:
        has_waited: Whether it was told to come now.
        is_early: Whether it was told to come later.
        wait_s: Seconds until then; None where it gets a promise of its own.
    """

    has_waited: bool = False
    is_early: bool = False
    wait_s: float | None = None


def claimant_of(scope: Scope | None) -> Claimant:
    """Returns who sends a request: as its key says, and the proxy."""
    if scope is None:
        return Claimant()
    identity = identity_of(scope)
    connection = (header(scope["headers"], _CLIENT_HEADER) or b"")[:MAX_CLIENT].decode("latin-1")
    if identity is None:
        return Claimant(connection.rpartition(":")[0], connection)
    return Claimant(f"key {identity.name}", connection, identity.weight, identity.priority)


class Claims:
    """The promises that one model's clients have.

    Args:
        clock: The time in seconds, which only goes forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._order: deque[tuple[float, str, str]] = deque()  # by when they are due
        self._clients: dict[str, dict[str, float]] = {}
        self._number = 0
        self._share = 0.5  # of the clients that were told to come do

    def __bool__(self) -> bool:
        """Returns whether there are any."""
        return bool(self._order)

    def take(self, who: Claimant, most: int) -> Claim:
        """Returns the claim of a client that comes now; a promise that is due is kept by it.

        Args:
            who: The client.
            most: From how many open promises on what it sends by new connections is too early.
        """
        self._drop_old()
        promised = self._clients.get(who.client)
        if promised is None:
            return Claim()
        now_s = self._clock()
        connection, then_s = who.connection, promised.get(who.connection)
        if then_s is None:
            connection, then_s = next(iter(promised.items()))
            if then_s > now_s + EARLY_S - (LATE_S if who.connection else 0):
                is_full = len(promised) >= (MAX_QUEUES if who.connection else 1) * most
                wait_s = next(reversed(promised.values())) - now_s if is_full else None
                return Claim(is_early=len(promised) >= most, wait_s=wait_s)
        if then_s > now_s + EARLY_S:
            return Claim(is_early=True, wait_s=then_s - now_s)
        self._forget(who.client, connection)
        self._share += _NEW_SHARE * (1 - self._share)
        return Claim(has_waited=True)

    def give(self, who: Claimant, wait_s: float) -> None:
        """Notes that a client was told to come again in so many seconds."""
        then_s = self._clock() + wait_s
        promised = self._clients.setdefault(who.client, {})
        self._number += 1
        connection = who.connection or f"#{self._number}"
        promised[connection] = then_s
        insort(self._order, (then_s, who.client, connection))
        if len(self._order) > MAX_PROMISES:
            self._drop(*self._order.popleft())

    def num_expected(self, within_s: float = 0.0) -> float:
        """Returns how many clients will likely come in so many seconds, as they were told to."""
        self._drop_old()
        end_s, number = self._clock() + within_s, 0
        for then_s, client, connection in self._order:
            if then_s > end_s:
                break
            number += self._clients.get(client, {}).get(connection) == then_s
        return number * self._share

    def _forget(self, client: str, connection: str) -> None:
        promised = self._clients[client]
        del promised[connection]
        if not promised:
            del self._clients[client]

    def _drop(self, then_s: float, client: str, connection: str) -> None:
        """Forgets a promise, if it is still open."""
        if self._clients.get(client, {}).get(connection) == then_s:
            self._forget(client, connection)
            self._share -= _NEW_SHARE * self._share

    def _drop_old(self) -> None:
        old_s = self._clock() - KEPT_S
        while self._order and self._order[0][0] < old_s:
            self._drop(*self._order.popleft())
