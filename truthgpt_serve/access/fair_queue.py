"""Says which waiting request comes next: a key with many requests does not hold up the others.

Requests with a higher priority come first. Among those of one priority each key gets a share of the
time that requests take, by its weight: start-time fair queueing (Goyal et al., SIGCOMM 1996), with
the mean time of the key's requests charged when one begins, and corrected when it ends. In a full
queue a request takes the place of the newest one of the key that has the most there. Without keys
all requests are those of one.

A key that has its share of the places does not take the last ones that are free while another one,
which was here in the last seconds, has less than its own: that one's next request begins at once
instead of waiting for some request to end (`access/reserve.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from truthgpt_serve.access.queued import Key, Ticket, who_yields
from truthgpt_serve.access.reserve import Reserve
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.queue_full import Promises, queue_full, whole_seconds

_NEW_SHARE = 0.2
"""How much the newest request counts in a mean."""
_MAX_TIMES = 4
"""How many times the mean one request may count as."""
_MAX_IDLE_KEYS = 4096
LOOK_S = 1.0
"""After which it is looked whether places that are kept free are still wanted."""


class FairQueue:
    """The places of one replica, and who waits for them. For one event loop.

    Args:
        num_places: Requests that run at the same time.
        max_waiting: Requests that wait for a place.
        owner: Whose queue it is, for messages, such as `model 'story'`.
        clock: The time in seconds, which only goes forward.
    """

    def __init__(
        self,
        num_places: int,
        max_waiting: int,
        owner: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_places = num_places
        self._max_waiting = max_waiting
        self._owner = owner
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._reserve = Reserve(num_places if max_waiting else 0, clock)  # none waits for them
        self._timer: asyncio.TimerHandle | None = None
        self._share_s = 0.0
        self._mean_s = 0.0
        self._quiet_s = clock()  # since when none has ended
        self.num_running = 0
        self.num_waiting = 0

    def enter(self, name: str, weight: float = 1.0, priority: int = 0) -> Ticket:
        """Takes a place, or a place in the queue; the ticket's future says when its turn comes.

        Whoever has entered leaves by `leave`, whatever happened.

        Args:
            name: Of the key.
            weight: Its share.
            priority: The higher, the earlier.

        Raises:
            OverloadedError: The queue is full.
        """
        key = self._find(name)
        key.weight, key.priority = weight, priority
        self._reserve.see(key)
        ticket = Ticket(key)
        if self._may_begin(key):
            self._begin(key, ticket)
            return ticket
        if self.num_waiting >= self._max_waiting:
            try:
                self._make_room(key)
            except OverloadedError:
                self._forget(key)
                raise
        self._awake(key)
        ticket.future = asyncio.get_running_loop().create_future()
        key.waiting.append(ticket)
        self.num_waiting += 1
        self._look_again()
        return ticket

    def check(self, name: str, weight: float = 1.0, priority: int = 0) -> None:
        """Raises `OverloadedError` where `enter` would now."""
        if self.num_waiting < self._max_waiting:
            return
        key = self._keys.get(name) or Key(name, 0.0, 0.0, weight, priority)
        if not self._may_begin(key) and who_yields(self._keys.values(), key) is None:
            raise self._overloaded(key)

    def leave(self, ticket: Ticket, *, is_done: bool = True) -> None:
        """Gives a place back, or the place in the queue; the next one's turn comes.

        Args:
            ticket: What `enter` gave.
            is_done: Whether it took as long as such requests take: not if it failed.
        """
        key, future = ticket.key, ticket.future
        if ticket.begun_s:
            taken_s = self._clock() - ticket.begun_s
            ticket.begun_s = 0.0
            key.running -= 1
            self.num_running -= 1
            self._quiet_s = self._clock()
            key.ready_s += (taken_s - ticket.charged_s) / key.weight
            if is_done:
                key.mean_s = _mean(key.mean_s, taken_s)
                self._mean_s = _mean(self._mean_s, taken_s)
        elif ticket in key.waiting:
            key.waiting.remove(ticket)
            self.num_waiting -= 1
        elif future is not None and future.done() and not future.cancelled():
            future.exception()  # whoever waited may have left before it was told
        self._forget(key)
        self._fill()

    def expected_s(self, name: str, weight: float = 1.0, priority: int = 0) -> float:
        """Returns how long a request that comes now may wait, as requests have been lately.

        Args:
            name: Of its key.
            weight: Its share.
            priority: The higher, the earlier.
        """
        own = self._keys.get(name)
        if self._may_begin(own or Key(name, 0.0, 0.0, weight, priority)):
            return 0.0
        num_own = 0 if own is None else len(own.waiting)
        before = float(num_own)
        for key in self._keys.values():
            if key is own:
                continue
            if key.priority > priority:
                before += len(key.waiting)
            elif key.priority == priority:
                before += min(len(key.waiting), (num_own + 1) * key.weight / weight)
        return (before + 1) * self._mean_s / self._num_places

    @property
    def longest_s(self) -> float:
        """No request that comes now waits longer, as requests have been lately."""
        return (self.num_waiting + 1) * self.place_s

    @property
    def mean_s(self) -> float:
        """Seconds that a request takes, as they have been lately; 0 where that is not known."""
        return self._mean_s

    @property
    def place_s(self) -> float:
        """Seconds between two places, as requests have been lately; 0 where that is not known."""
        return self._mean_s / self._num_places

    def _may_begin(self, key: Key) -> bool:
        """Returns whether there is a place for a key's request: others then wait for their own."""
        num_free = self._num_places - self.num_running
        return num_free > 0 and not key.waiting and not self._reserve.keeps(key, num_free)

    def _fill(self) -> None:
        """Has requests begin as long as there are places for them."""
        while self.num_waiting and (num_free := self._num_places - self.num_running) > 0:
            key = self._next(num_free)
            if key is None:
                self._look_again()
                return
            ticket = key.waiting.popleft()
            self.num_waiting -= 1
            self._begin(key, ticket)

    def _next(self, num_free: int) -> Key | None:
        """Returns the key whose request comes next; None if the free places are kept from all."""
        waiting = [key for key in self._keys.values() if key.waiting]
        if len(waiting) > 1:
            waiting.sort(key=_order)
        # The reserve looks at all keys: it is asked only as far as the first that may begin.
        for key in waiting:
            if not self._reserve.keeps(key, num_free):
                return key
        return None

    def _look_again(self) -> None:
        """Looks in a while whether free places are still kept, in case that no request ends."""
        if self._timer is None and self.num_running < self._num_places:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        self._fill()

    def _awake(self, key: Key) -> None:
        """Has a key that was idle begin where the others of its priority are: not before them."""
        if key.waiting or key.running:
            return
        if not self.num_running and not self.num_waiting:  # as most requests find it
            key.ready_s = max(key.ready_s, self._share_s)
            return
        active = [
            other.ready_s
            for other in self._keys.values()
            if (other.waiting or other.running) and other.priority == key.priority
        ]
        key.ready_s = max(key.ready_s, min(active, default=self._share_s))

    def _begin(self, key: Key, ticket: Ticket) -> None:
        self._awake(key)
        self._share_s = max(self._share_s, key.ready_s)
        if not self.num_running:
            self._quiet_s = self._clock()
        key.running += 1
        self.num_running += 1
        # At least 1 us, as it also says that the request runs.
        ticket.begun_s = self._clock() or 1e-6
        ticket.charged_s = key.mean_s
        key.ready_s += key.mean_s / key.weight
        if ticket.future is not None and not ticket.future.done():
            ticket.future.set_result(True)

    def _make_room(self, arriving: Key) -> None:
        """Puts the newest request of the key with the most waiting out of the queue.

        Raises:
            OverloadedError: That key is the arriving one, or has no more than it.
        """
        longest = who_yields(self._keys.values(), arriving)
        if longest is None:
            raise self._overloaded(arriving)
        ticket = longest.waiting.pop()
        self.num_waiting -= 1
        if ticket.future is not None and not ticket.future.done():
            ticket.future.set_exception(self._overloaded(longest))
        self._forget(longest)

    def _overloaded(self, key: Key) -> OverloadedError:
        """Returns the refusal of a request: its key has its share of the places that come.

        Before any has ended, a request is thought to take as long again as it has taken by now.
        """
        quiet_s = 0.0 if self._mean_s else self._clock() - self._quiet_s
        place_s = self.place_s or quiet_s / self._num_places
        first, weights = 0, 0.0
        for other in self._keys.values():
            if other.priority > key.priority:
                first += len(other.waiting)
            elif other.priority == key.priority and (other.waiting or other is key):
                weights += other.weight
        if key.promises is None:
            key.promises = Promises(self._clock)
        held = self._num_places + self._max_waiting
        own_s = key.promises.next_s(place_s * weights / key.weight, held)
        number = self.num_running + self.num_waiting
        return queue_full(self._owner, number, whole_seconds(quiet_s + first * place_s + own_s))

    def _find(self, name: str) -> Key:
        key = self._keys.get(name)
        if key is None:
            if len(self._keys) >= _MAX_IDLE_KEYS:
                self._drop_idle()
            key = self._keys[name] = Key(name, self._share_s, self._mean_s)
        return key

    def _forget(self, key: Key) -> None:
        """Drops a key of which nothing is left to be known."""
        is_idle = not key.waiting and not key.running and key.ready_s <= self._share_s
        is_owed = key.promises is not None and not key.promises.is_over()
        # A ticket may outlive its key.
        if is_idle and not is_owed and self._keys.get(key.name) is key:
            del self._keys[key.name]

    def _drop_idle(self) -> None:
        for key in [key for key in self._keys.values() if not key.waiting and not key.running]:
            del self._keys[key.name]


def _order(key: Key) -> tuple[int, float]:
    return -key.priority, key.ready_s


def _mean(mean_s: float, new_s: float) -> float:
    """Returns a mean with one more time; one that is far longer, as of a slow reader, is cut."""
    if not mean_s:
        return new_s
    return mean_s + _NEW_SHARE * (min(new_s, _MAX_TIMES * mean_s) - mean_s)
