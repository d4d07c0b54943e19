"""Remembers which clients were told when to come again, and who of them comes too early.

A client is a key, or without keys an address; a connection is one of its own. A request comes too
early if its connection was told to wait, and has not. A client that opens a connection for each
request is known by how many of its promises are open: more of them than a model has places for, and
what it sends is too early as well.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

from truthgpt_serve.access.identity import identity_of
from truthgpt_serve.http.asgi import Scope, header
from truthgpt_serve.queue_full import CLIENT_HEADER, MAX_QUEUES

_CLIENT_HEADER = CLIENT_HEADER.encode()
MAX_CLIENT = 64
MAX_PROMISES = 8192
"""Of one model, some 4 MB: as many as it refuses in 10 s at 800 a second. What is more is forgotten
at once: the last ones of the lowest priority. Clients that come soon count on theirs."""
EARLY_S = 0.1
"""By how much a client's clock and timers may be early."""
FEW_PROMISES = 8
"""A client that has no more may come again by any connection."""
LATE_S = 0.25
"""Else a promise is its connection's alone until so long after it was due, as most clients of an
address may be others."""
KEPT_S = 1.0
"""For how long a place is kept for a client that was told to come now."""
_NEW_SHARE = 0.05
"""How much the newest counts in the share of clients that come as they were told."""


_Promise = tuple[float, str, str]
"""When it is due, and the client and connection that have it."""


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


def claimant_of(
    scope: Scope | None,
    is_proxy: Callable[[str], bool] = lambda host: True,
    client_header: bytes | None = None,
) -> Claimant:
    """Returns who sends a request: as its key says, and the proxy.

    Args:
        scope: The request's.
        is_proxy: Returns whether a host is one of the service's own proxies. What others say of
            their clients does not count: they are the clients.
        client_header: Which header of a proxy in front of the service says who its clients are:
            the last one in it. Its connections are of many clients.
    """
    if scope is None:
        return Claimant()
    identity = identity_of(scope)
    connection = _connection(scope, is_proxy)
    client = connection.rpartition(":")[0]
    if client_header and (said := _said(scope, client_header)):
        client, connection = said, ""
    if identity is None:
        return Claimant(client, connection)
    return Claimant(f"key {identity.name}", connection, identity.weight, identity.priority)


def _connection(scope: Scope, is_proxy: Callable[[str], bool]) -> str:
    """Returns address and port of a client; empty where that is not known."""
    host, port = scope.get("client") or ("", 0)
    if is_proxy(host):
        said = header(scope["headers"], _CLIENT_HEADER)
        return (said or b"")[:MAX_CLIENT].decode("latin-1")
    return f"{host}:{port}" if host else ""


def _said(scope: Scope, name: bytes) -> str:
    """Returns the last address in a header; of several headers of a name, in the last one."""
    values = [value for each, value in scope["headers"] if each == name]
    return values[-1].rpartition(b",")[2].strip()[:MAX_CLIENT].decode("latin-1") if values else ""


class Claims:
    """The promises that one model's clients have.

    Args:
        clock: The time in seconds, which only goes forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._bands: dict[int, list[_Promise]] = {}  # by priority, each by when they are due
        self._clients: dict[str, dict[str, tuple[float, int]]] = {}
        self._due: dict[str, list[float]] = {}  # of each client, in their order
        self._number = 0
        self._share = 0.5  # of the clients that were told to come do

    def __bool__(self) -> bool:
        """Returns whether there are any."""
        return bool(self._bands)

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
        connection = who.connection
        if connection in promised:
            then_s, _ = promised[connection]
        else:
            connection, (then_s, _) = next(iter(promised.items()))
            is_own = not who.connection or len(promised) <= FEW_PROMISES
            if then_s > now_s + EARLY_S - (0 if is_own else LATE_S):
                is_full = len(promised) >= (MAX_QUEUES if who.connection else 1) * most
                wait_s = next(reversed(promised.values()))[0] - now_s if is_full else None
                return Claim(is_early=len(promised) >= most, wait_s=wait_s)
        if then_s > now_s + EARLY_S:
            return Claim(is_early=True, wait_s=then_s - now_s)
        self._forget(who.client, connection)
        self._share += _NEW_SHARE * (1 - self._share)
        return Claim(has_waited=True)

    def give(self, who: Claimant, wait_s: float) -> None:
        """Notes that a client was told to come again in so many seconds."""
        self._number += 1
        connection = who.connection or f"#{self._number}"
        if connection in self._clients.get(who.client, ()):
            self._forget(who.client, connection)
        then_s = self._clock() + wait_s
        self._clients.setdefault(who.client, {})[connection] = (then_s, who.priority)
        insort(self._bands.setdefault(who.priority, []), (then_s, who.client, connection))
        insort(self._due.setdefault(who.client, []), then_s)
        if sum(map(len, self._bands.values())) > MAX_PROMISES:
            self._forget(*self._bands[min(self._bands)][-1][1:])

    def num_expected(self, within_s: float = 0.0, priority: int | None = None) -> float:
        """Returns how many clients will likely come in so many seconds, as they were told to.

        Args:
            within_s: The seconds.
            priority: Those of a lower one do not count; None for all.
        """
        self._drop_old()
        end_s = self._clock() + within_s
        return self._share * sum(
            bisect_right(band, end_s, key=itemgetter(0))
            for of_band, band in self._bands.items()
            if priority is None or of_band >= priority
        )

    def num_expected_of(self, client: str, within_s: float) -> float:
        """Returns how many of them are of one client.

        Args:
            client: The client.
            within_s: The seconds.
        """
        self._drop_old()
        return self._share * bisect_right(self._due.get(client, []), self._clock() + within_s)

    def _forget(self, client: str, connection: str) -> None:
        promised, due = self._clients[client], self._due[client]
        then_s, priority = promised.pop(connection)
        del due[bisect_left(due, then_s)]
        if not promised:
            del self._clients[client], self._due[client]
        band = self._bands[priority]
        del band[bisect_left(band, (then_s, client, connection))]
        if not band:
            del self._bands[priority]

    def _drop(self, promise: _Promise) -> None:
        """Forgets a promise whose client has not come."""
        self._forget(*promise[1:])
        self._share -= _NEW_SHARE * self._share

    def _drop_old(self) -> None:
        old_s = self._clock() - KEPT_S
        for band in list(self._bands.values()):
            while band and band[0][0] < old_s:
                self._drop(band[0])
