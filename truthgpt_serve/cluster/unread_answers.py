"""Bounds what clients have not read of a server's answers.

An answer that is whole holds no place any more, neither at its model nor in HAProxy
(`haproxy/queues.py`). Its client may take its time, as long as there are not too many of that kind:
then those that have waited the longest are cut.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

MAX_ANSWERS = 512
MAX_BYTES = 256 * 2**20
REPORT_S = 60.0
"""Between two lines about what was cut."""


class Unread(Protocol):
    """A connection whose client does not read."""

    @property
    def is_whole(self) -> bool:
        """Whether its answer is whole: nobody works on it any more."""

    @property
    def num_unread(self) -> int:
        """Bytes that wait for its client."""

    def cut(self) -> None:
        """Ends it, and drops what waits."""


class UnreadAnswers:
    """The connections of one event loop whose clients do not read.

    Args:
        max_answers: Most of them.
        max_bytes: Most bytes of all of them.
    """

    def __init__(self, max_answers: int, max_bytes: int) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._connections: dict[Unread, int] = {}
        self._num_bytes = 0
        self._num_cut = 0
        self._reported_s = -REPORT_S

    def add(self, connection: Unread) -> None:
        """Takes a connection whose client has stopped reading; cuts others if they are too many."""
        self.discard(connection)
        num_bytes = self._connections[connection] = connection.num_unread
        self._num_bytes += num_bytes
        if self._is_too_much():
            self._cut()

    def discard(self, connection: Unread) -> None:
        """Forgets a connection whose client reads again, or has left."""
        self._num_bytes -= self._connections.pop(connection, 0)

    def _is_too_much(self) -> bool:
        return len(self._connections) > self._max_answers or self._num_bytes > self._max_bytes

    def _cut(self) -> None:
        """Cuts the oldest whole answers. What a model works on is bounded by its places."""
        for connection in [each for each in self._connections if each.is_whole]:
            self.discard(connection)
            connection.cut()
            self._num_cut += 1
            if not self._is_too_much():
                break
        now_s = time.monotonic()
        if self._num_cut and now_s - self._reported_s >= REPORT_S:
            logger.warning(
                "%d answers were cut that their clients did not read: at most %d wait, and %d MiB",
                self._num_cut,
                self._max_answers,
                self._max_bytes >> 20,
            )
            self._reported_s, self._num_cut = now_s, 0


_answers: WeakKeyDictionary[asyncio.AbstractEventLoop, UnreadAnswers] = WeakKeyDictionary()


def unread_answers_of(loop: asyncio.AbstractEventLoop) -> UnreadAnswers:
    """Returns those of an event loop."""
    answers = _answers.get(loop)
    if answers is None:
        answers = _answers[loop] = UnreadAnswers(MAX_ANSWERS, MAX_BYTES)
    return answers
