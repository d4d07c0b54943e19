"""Bounds what clients have not read of a server's answers.

An answer that is whole holds no place any more, neither at its model nor in HAProxy
(`haproxy/queues.py`). Its client may take its time, as long as there are not too many of that kind:
then those are cut of which nothing is read, and that have waited the longest. Clients that read are
cut where four times as much waits. One alone is never too many, however long it is.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from enum import IntEnum
from typing import Protocol
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

MAX_ANSWERS = 512
MAX_BYTES = 256 * 2**20
LOOK_S = 0.05
"""How long after a client has stopped reading all of them are counted."""
SETTLE_S = 1.0
"""How long buffers on the way may go on taking of an answer that nobody reads; also how long a
client that reads may pause, where too much waits."""
FACTOR_OF_READERS = 4
"""As much more may wait in all before a client is cut that reads, or may be about to."""
REPORT_S = 60.0
"""Between two lines about what was cut."""


class Unread(Protocol):
    """A connection whose client does not read."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing follows what waits for its client."""

    @property
    def num_unread(self) -> int:
        """Bytes that wait for its client."""

    def cut(self) -> None:
        """Ends it, and drops what waits."""


class _Reads(IntEnum):
    """Whether a client reads; who is cut first is first."""

    NOTHING = 0
    UNKNOWN = 1
    SOMETHING = 2


class _Waiting:
    """What waits on one connection.

    Attributes:
        num_bytes: How much, as its client stopped reading.
    """

    __slots__ = ("_least", "_read_s", "_timer", "num_bytes")

    def __init__(self, connection: Unread) -> None:
        self.num_bytes = connection.num_unread
        self._least: int | None = None  # of what has waited since only its client can make it less
        self._read_s = -math.inf
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SETTLE_S, self._settle, connection)

    def _settle(self, connection: Unread) -> None:
        self._least = connection.num_unread

    def judge(self, num_bytes: int, now_s: float) -> _Reads:
        """Returns whether its client reads, as so much waits now."""
        if self._least is None:
            return _Reads.UNKNOWN
        if num_bytes < self._least:
            self._least, self._read_s = num_bytes, now_s
        return _Reads.SOMETHING if now_s - self._read_s <= 2 * SETTLE_S else _Reads.NOTHING

    def forget(self) -> None:
        """Ends its timer."""
        self._timer.cancel()


class UnreadAnswers:
    """The connections of one event loop whose clients do not read.

    Only whole answers count: what a model works on is bounded by its places. What the system's
    buffers take of an answer, some MiB for each connection, is not seen here.

    Args:
        max_answers: Most whole answers.
        max_bytes: Most bytes of all of them.
    """

    def __init__(self, max_answers: int, max_bytes: int) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._connections: dict[Unread, _Waiting] = {}
        self._num_bytes = 0
        self._looking: asyncio.TimerHandle | None = None
        self._num_cut = 0
        self._reported_s = -REPORT_S

    def add(self, connection: Unread) -> None:
        """Takes a connection whose client has stopped reading; call it on the event loop.

        They are counted a moment later: this one may just write the end of its answer.
        """
        self.discard(connection)
        waiting = self._connections[connection] = _Waiting(connection)
        self._num_bytes += waiting.num_bytes
        if self._may_be_too_many():
            self._look_in(LOOK_S)

    def discard(self, connection: Unread) -> None:
        """Forgets a connection whose client reads again, or has left."""
        waiting = self._connections.pop(connection, None)
        if waiting is not None:
            waiting.forget()
            self._num_bytes -= waiting.num_bytes

    def _may_be_too_many(self) -> bool:
        """Returns whether it is worth a look; whole answers become only shorter."""
        return len(self._connections) > self._max_answers or self._num_bytes > self._max_bytes

    def _look_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._looking is not None:
            if self._looking.when() <= loop.time() + seconds:
                return
            self._looking.cancel()
        self._looking = loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Cuts whole answers until they are not too many, those that have waited longest first.

        One is left in any case: a single long answer, whose client may just begin to read.
        """
        self._looking = None
        now_s = time.monotonic()
        whole = [(each, each.num_unread) for each in self._connections if each.is_whole]
        number, num_bytes = len(whole), sum(size for _, size in whole)
        judged = [(self._connections[each].judge(size, now_s), each, size) for each, size in whole]
        judged.sort(key=lambda item: item[0])
        for reads, connection, size in judged[:-1]:
            if not self._are_too_many(number, num_bytes, reads):
                break
            number, num_bytes = number - 1, num_bytes - size
            self.discard(connection)
            connection.cut()
            self._num_cut += 1
        if self._are_too_many(number, num_bytes, _Reads.NOTHING):
            self._look_in(SETTLE_S)
        self._report()

    def _are_too_many(self, number: int, num_bytes: int, reads: _Reads) -> bool:
        factor = 1 if reads is _Reads.NOTHING else FACTOR_OF_READERS
        return number > factor * self._max_answers or num_bytes > factor * self._max_bytes

    def _report(self) -> None:
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
