"""The requests that wait for a batch: bounded, in fair order, in turn by what may share a batch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from enum import Enum
from itertools import islice
from typing import Any

from truthgpt_serve.errors import UnavailableError
from truthgpt_serve.queue_full import queue_full
from truthgpt_serve.server.execution.codec import RequestCodec
from truthgpt_serve.usage.shares import NOBODY, Owner, Shares


class State(Enum):
    """Where a request is."""

    WAITS = "waits"
    RUNS = "runs"
    LEFT = "left"


class Entry:
    """One request that waits for a batch or runs in one.

    Attributes:
        codec: Its own steps.
        future: What its caller waits for.
        since_s: When it came, by the monotonic clock.
        expires_s: Its deadline, by the same clock.
        inputs: What the model gets, once prepared.
        owner: Whose it is.
        is_charged: Whether it has been counted into its owner's share.
        state: Changed by its queue only.
        line: The requests among which it waits; None on its way from one line to the next.
    """

    __slots__ = (
        *("codec", "expires_s", "future", "inputs", "is_charged", "line", "owner", "since_s"),
        "state",
    )

    def __init__(
        self,
        codec: RequestCodec,
        future: asyncio.Future[Any],
        limit_s: float | None,
        owner: Owner = NOBODY,
    ) -> None:
        self.codec = codec
        self.future = future
        self.since_s = time.monotonic()
        self.expires_s = float("inf") if limit_s is None else self.since_s + limit_s
        self.inputs: Any = None
        self.owner = owner
        self.is_charged = False
        self.state = State.WAITS
        self.line: Line | None = None

    @property
    def in_time(self) -> bool:
        """Whether its time is not over."""
        return time.monotonic() < self.expires_s

    @property
    def wanted(self) -> bool:
        """Whether the caller still waits."""
        return not self.future.done() and self.in_time


Line = OrderedDict[Entry, None]
"""Requests in their order; any of them leaves it at the cost of one look-up."""


class RequestQueue:
    """Takes requests from event loops and hands them, batch by batch, to one runner in any thread.

    The runner sorts the arrivals into one line for each batch key and takes a batch from each line
    in turn, so a request is overtaken by at most one batch of each other batch key for every batch
    of its own that stands before it. Where several owners have requests waiting, the next batch is
    one with the owner whose turn it is, and its places are given in the order of their shares.

    Args:
        label: `Class.infer_batch`, for messages.
        max_requests: Requests that may wait and run.
    """

    def __init__(self, label: str, max_requests: int) -> None:
        self._label = label
        self._max_requests = max_requests
        self._lock = threading.Lock()
        self._arrived: Line = OrderedDict()
        self._lines: OrderedDict[Hashable, Line] = OrderedDict()
        self._shares = Shares()
        self._entries: set[Entry] = set()
        self._num_running = 0
        self._num_waiting = 0
        self._has_runner = False
        self._closed = False

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a batch."""
        return self._num_waiting

    @property
    def ongoing(self) -> int:
        """Requests that wait or run, those that run for a caller who left included."""
        return self._num_waiting + self._num_running

    def add(self, entry: Entry) -> bool:
        """Lets a request wait; returns whether a runner must be started.

        Raises:
            OverloadedError: The queue is full.
            UnavailableError: The queue is closed.
        """
        with self._lock:
            if self._closed:
                raise shutting_down()
            if self.ongoing >= self._max_requests:
                raise queue_full(self._label, self.ongoing)
            self._entries.add(entry)
            entry.line = self._arrived
            self._arrived[entry] = None
            self._shares.enter(entry.owner)
            self._num_waiting += 1
            idle = not self._has_runner
            self._has_runner = True
            return idle

    def abandon(self, entry: Entry) -> bool:
        """Forgets a request whose caller has an answer or left.

        Returns:
            Whether its batch runs and none of that batch's callers waits any more.
        """
        with self._lock:
            self._entries.discard(entry)
            if entry.state is State.WAITS:
                self._remove(entry)
                return False
            return entry.state is State.RUNS and not any(
                other.state is State.RUNS for other in self._entries
            )

    def release_runner(self) -> bool:
        """Lets the runner end if nothing waits; returns whether it may."""
        with self._lock:
            if self._num_waiting:
                return False
            self._lines.clear()
            self._shares.clear()
            self._has_runner = False
            return True

    def pop_arrivals(self, max_entries: int | None) -> list[Entry]:
        """Takes requests that are not sorted yet, those whose turn it is first; None takes all."""
        with self._lock:
            if max_entries is None:
                taken = [*self._arrived]
            else:
                taken = [*islice(self._charged(self._arrived), max_entries)]
            for entry in taken:
                del self._arrived[entry]
                entry.line = None
            return taken

    def sort(self, entry: Entry, key: Hashable) -> None:
        """Puts a request at the end of its key's line, unless its caller has left.

        Raises:
            TypeError: The key has no hash.
        """
        with self._lock:
            line = self._lines.setdefault(key, OrderedDict())
            if entry.state is State.WAITS:
                entry.line = line
                line[entry] = None

    def first_line_size(self) -> int:
        """Returns the number of requests in the line whose turn it is."""
        with self._lock:
            return len(next(iter(self._lines.values()), ()))

    def take(self, max_entries: int) -> list[Entry]:
        """Takes a batch from the line whose turn it is and puts that line last."""
        with self._lock:
            while self._lines:
                key = self._next_line()
                line = self._lines.pop(key)
                batch = self._take(line, max_entries)
                if line:
                    self._lines[key] = line
                if batch:
                    return batch
            return []

    def _next_line(self) -> Hashable:
        """Returns the key of the first line, or of the first one of the owner whose turn it is."""
        if not self._shares.are_shared:
            return next(iter(self._lines))
        first_lines: dict[Owner, Hashable] = {}
        for key, line in self._lines.items():
            for entry in line:
                first_lines.setdefault(entry.owner, key)
        if not first_lines:  # all that waited there have left
            return next(iter(self._lines))
        return first_lines[self._shares.first(first_lines)]

    def _charged(self, line: Line) -> Iterator[Entry]:
        """Yields a line's requests in the order of their owners' shares, to which each counts."""
        if not self._shares.are_shared:
            yield from line
            return
        for entry in self._shares.in_order(line):
            if not entry.is_charged:
                entry.is_charged = True
                self._shares.charge(entry.owner)
            yield entry

    def _take(self, line: Line, max_entries: int) -> list[Entry]:
        batch: list[Entry] = []
        passed: list[Entry] = []
        for entry in self._charged(line):
            passed.append(entry)
            if entry.wanted:
                batch.append(entry)
            if len(batch) == max_entries:
                break
        for entry in passed:
            self._remove(entry)
        for entry in batch:
            entry.state = State.RUNS
        self._num_running += len(batch)
        return batch

    def finish(self, entries: list[Entry]) -> None:
        """Gives the places of requests free: they have run, or failed before they could."""
        with self._lock:
            for entry in entries:
                if entry.state is State.RUNS:
                    self._num_running -= 1
                    entry.state = State.LEFT
                elif entry.state is State.WAITS:
                    self._remove(entry)

    def _remove(self, entry: Entry) -> None:
        entry.state = State.LEFT
        self._shares.leave(entry.owner)
        self._num_waiting -= 1
        if entry.line is not None:
            del entry.line[entry]
            entry.line = None

    def close(self) -> list[Entry]:
        """Takes nothing more, forgets what waits and returns it."""
        with self._lock:
            self._closed = True
            waiting = [entry for entry in self._entries if entry.state is State.WAITS]
            for entry in waiting:
                self._remove(entry)
            return waiting

    def reset(self) -> list[Entry]:
        """Forgets everything, because the runner has died; returns all whose callers wait."""
        with self._lock:
            entries = list(self._entries)
            for entry in entries:
                entry.state, entry.line = State.LEFT, None
            self._arrived.clear()
            self._lines.clear()
            self._shares.clear()
            self._num_waiting = self._num_running = 0
            self._has_runner = False
            return entries


def shutting_down() -> UnavailableError:
    """Returns the error of a request that comes too late, ready to raise."""
    return UnavailableError("the model is shutting down")
