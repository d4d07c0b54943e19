"""Whose request comes next: by priority, then each key's share of what is taken, by its weight."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from truthgpt_serve.usage.counted import current_usage

_MAX_IDLE = 1024


class Owner(NamedTuple):
    """Whose a request is.

    Attributes:
        name: Of the key; empty without keys.
        weight: Its share, in proportion to those of others.
        priority: The higher, the earlier.
    """

    name: str = ""
    weight: float = 1.0
    priority: int = 0


NOBODY = Owner()
"""Whose all requests are without keys."""


def current_owner() -> Owner:
    """Returns whose the request of this task is."""
    usage = current_usage()
    return NOBODY if usage is None else Owner(usage.key, usage.weight, usage.priority or 0)


class Owned(Protocol):
    """What belongs to an owner."""

    @property
    def owner(self) -> Owner:
        """Whose it is."""


T = TypeVar("T", bound=Owned)


class Shares:
    """Start-time fair queueing (Goyal et al., SIGCOMM 1996). Not for several threads at once.

    While a single owner has requests waiting nothing need be charged.
    """

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._starts: dict[str, float] = {}
        self._now: dict[int, float] = {}

    @property
    def are_shared(self) -> bool:
        """Whether several owners have requests waiting."""
        return len(self._waiting) > 1

    def enter(self, owner: Owner) -> None:
        """Notes a request that waits: its owner begins where the others of its priority are."""
        if not self._waiting[owner.name]:
            now = self._now.get(owner.priority, 0.0)
            self._starts[owner.name] = max(now, self._starts.get(owner.name, 0.0))
        self._waiting[owner.name] += 1

    def leave(self, owner: Owner) -> None:
        """Notes that a request waits no longer."""
        self._waiting[owner.name] -= 1
        if not self._waiting[owner.name]:
            del self._waiting[owner.name]
            if len(self._starts) > max(_MAX_IDLE, 2 * len(self._waiting)):
                self._starts = {name: self._starts[name] for name in self._waiting}

    def charge(self, owner: Owner, amount: float = 1.0) -> None:
        """Counts a request that is taken, of which others take so much too."""
        start = self._starts.get(owner.name, 0.0)
        self._now[owner.priority] = max(start, self._now.get(owner.priority, 0.0))
        self._starts[owner.name] = start + amount / owner.weight

    def first(self, owners: Iterable[Owner]) -> Owner:
        """Returns the one whose turn it is."""
        return min(owners, key=self._rank)

    def in_order(self, waiting: Iterable[T]) -> Iterator[T]:
        """Yields requests in the order in which they come; charge each one that is taken.

        Args:
            waiting: Of any owners, oldest first.
        """
        by_owner: dict[Owner, deque[T]] = {}
        for one in waiting:
            by_owner.setdefault(one.owner, deque()).append(one)
        while by_owner:
            owner = self.first(by_owner)
            yield by_owner[owner].popleft()
            if not by_owner[owner]:
                del by_owner[owner]

    def clear(self) -> None:
        """Forgets all, as nothing waits."""
        self._waiting.clear()
        self._starts.clear()
        self._now.clear()

    def _rank(self, owner: Owner) -> tuple[int, float]:
        return -owner.priority, self._starts.get(owner.name, 0.0)
