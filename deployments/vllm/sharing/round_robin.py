"""Whose turn it is: one item of each request, then the next one of each."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

from truthgpt_serve.usage.shares import Owner, Shares

T = TypeVar("T")

_request: ContextVar[OneRequest | None] = ContextVar("vllm_request", default=None)


class OneRequest:
    """One request, as something to compare, and how much it and its answer hold.

    Args:
        max_values: Most numbers of the vectors in its answer.
    """

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._num_answers = 0
        self._num_values = 0
        self._num_pixels = 0
        self._samples_bytes = 0
        self._lock = threading.Lock()

    def begin_answers(self, number: int) -> int:
        """Counts answers that it asks the engine for; returns how many these make so far."""
        self._num_answers += number
        return self._num_answers

    def add_values(self, number: int) -> None:
        """Counts numbers of its answer.

        Raises:
            ValueError: They are more than may be; vLLM answers it with 400.
        """
        self._num_values += number
        if self._num_values > self._max_values:
            raise ValueError(
                f"the vectors of the answer have more than {self._max_values} numbers: send fewer "
                "or shorter texts at a time, or ask for `encoding_format` base64"
            )

    def add_pixels(self, number: int, limit: int) -> int:
        """Counts pixels of its images, which several threads read.

        Args:
            number: Those of one image, before it is decoded.
            limit: Most pixels of all of them together.

        Returns:
            Those of all of them so far.

        Raises:
            ValueError: They are more than may be; what was too much is not counted.
        """
        with self._lock:
            if self._num_pixels + number > limit:
                raise ValueError(
                    f"the images of the request have more than {limit} pixels together: send "
                    "smaller or fewer ones"
                )
            self._num_pixels += number
            return self._num_pixels

    def add_samples(self, size: int, limit: int) -> None:
        """Counts bytes of samples of its recordings, which several threads read.

        Args:
            size: Those of one recording; 0 asks before it is decoded whether more may come.
            limit: Most bytes of all of them together.

        Raises:
            ValueError: They are more than may be.
        """
        with self._lock:
            self._samples_bytes += size
            if self._samples_bytes > limit:
                raise ValueError(
                    f"the recordings of the request have more than {limit} bytes of samples "
                    "together: send shorter or fewer ones"
                )


@contextmanager
def one_request(max_values: int = sys.maxsize) -> Iterator[None]:
    """Has what is begun in this block, and in the tasks that it starts, be of one request."""
    token = _request.set(OneRequest(max_values))
    try:
        yield
    finally:
        _request.reset(token)


def current_request() -> OneRequest | None:
    """Returns the request of this task; None outside of any."""
    return _request.get()


class RoundRobin(Generic[T]):
    """Items of several requests, in turn. Not for several threads at once."""

    def __init__(self) -> None:
        self._items: dict[object, deque[T]] = {}  # in the order in which it is their turn

    def __bool__(self) -> bool:
        return bool(self._items)

    def push(self, request: object, item: T) -> None:
        """Adds an item of a request."""
        self._items.setdefault(request, deque()).append(item)

    def peek(self) -> T:
        """Returns the next item; there must be one."""
        return next(iter(self._items.values()))[0]

    def pop(self) -> T:
        """Removes and returns the next item; there must be one."""
        request = next(iter(self._items))
        items = self._items.pop(request)
        item = items.popleft()
        if items:
            self._items[request] = items  # behind the others
        return item


class FairLine(Generic[T]):
    """Items of several keys by their priorities and shares, and those of each key in turn.

    Not for several threads at once.
    """

    def __init__(self) -> None:
        self._lines: dict[Owner, RoundRobin[T]] = {}
        self._shares = Shares()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def push(self, owner: Owner, request: object, item: T) -> None:
        """Adds an item of a request, and of whose that is."""
        line = self._lines.get(owner)
        if line is None:
            line = self._lines[owner] = RoundRobin()
        line.push(request, item)
        self._shares.enter(owner)

    def peek(self) -> T:
        """Returns the next item; there must be one."""
        return self._lines[self._shares.first(self._lines)].peek()

    def pop(self, amount: float) -> T:
        """Removes and returns the next item; there must be one.

        Args:
            amount: How much it takes of what the keys share.
        """
        owner = self._shares.first(self._lines)
        line = self._lines[owner]
        item = line.pop()
        if not line:
            del self._lines[owner]
        self._shares.leave(owner)
        if amount:
            self._shares.charge(owner, amount)
        return item
