"""Counts that all processes of one machine share: of the last minute, and of what runs now.

A file of fixed size, mapped into each process, with one record for each name. A minute is counted
in half seconds, of which one more than a minute's is kept: no minute, wherever it begins, has more
than was let in by its count. What runs is counted for each process, and what a dead process left is
taken back.

A process waits for the others only for moments: one that is stopped while it holds the lock does
not stop them. They then count without it, and two of them may miss each other's count.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import mmap
import os
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

WINDOW_S = 60.0
BUCKET_S = 0.5
NUM_BUCKETS = int(WINDOW_S / BUCKET_S) + 1
NUM_PROCESSES = 64
"""More processes than this count what runs together, and none of it is taken back."""
NUM_RECORDS = 32768
"""For 4,000 keys with three limits each, and some limits for models; the file has holes."""
NUM_PROBES = 16
"""Records that are looked at for a name; of these the one idle for longest is used anew."""
LOCK_S = 0.002
REAP_S = 0.5

_WORD = 8
_NAME, _USED, _LAST, _COUNTS = 0, 2, 3, 4
_RUNNING = _COUNTS + NUM_BUCKETS
_RECORD = _RUNNING + NUM_PROCESSES // 2
"""A record in words of 8 bytes: two of the name's digest, when it was used last, its last bucket,
the buckets, and how many run in each process, two in a word."""
_RECORDS = 2 * NUM_PROCESSES
"""Before the records: of each process its id and when it started."""
SIZE = _WORD * (_RECORDS + NUM_RECORDS * _RECORD)


@dataclass(frozen=True, slots=True)
class Standing:
    """What one name has used of a limit.

    Attributes:
        used: In the last minute, what was asked for now included if it was let in.
        wait_s: Seconds until what was asked for fits; 0 if it was let in.
        reset_s: Seconds until nothing of the minute counts any more.
        running: What runs now, this included; -1 if it was not let in for that.
    """

    used: float
    wait_s: float
    reset_s: float
    running: int

    @property
    def fits(self) -> bool:
        """Whether it was let in, as far as this name goes."""
        return not self.wait_s and self.running >= 0


@dataclass(frozen=True, slots=True)
class Charge:
    """What shall be counted under one name.

    Attributes:
        name: Whose count.
        amount: How much.
        limit: Most in a minute; None for no limit.
        max_running: Most at the same time; None for no limit.
        runs: Whether it also counts as one thing that runs, until `finish`.
    """

    name: str
    amount: float
    limit: float | None
    max_running: int | None = None
    runs: bool = True


class _Lock:
    """Keeps out the other threads of this process, and for moments the other processes.

    A class, as a request takes it up to four times: a generator takes longer.

    Attributes:
        has_file: Whether other processes have to be kept out.
    """

    __slots__ = ("_file", "_is_held", "_threads", "has_file")

    def __init__(self, file: int) -> None:
        self._threads = threading.Lock()
        self._file = file
        self._is_held = False
        self.has_file = file >= 0

    def __enter__(self) -> None:
        self._threads.acquire()
        self._is_held = self.has_file and self._take()

    def __exit__(self, *error: object) -> None:
        if self._is_held and self.has_file:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._threads.release()

    def _take(self) -> bool:
        until_s = 0.0
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                now_s = time.monotonic()
                until_s = until_s or now_s + LOCK_S
                if now_s > until_s:
                    return False
                time.sleep(0)
            else:
                return True


class Counters:
    """The counts of one file.

    Args:
        path: The file, which is made if it is not there; None counts for this process alone.

    Raises:
        OSError: The file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = -1 if path is None else _open(path)
        self._lock = _Lock(self._file)
        self._map = mmap.mmap(self._file, SIZE)
        view = memoryview(self._map)
        self._whole, self._real, self._half = view.cast("q"), view.cast("d"), view.cast("i")
        self._known: dict[str, tuple[int, int, int]] = {}
        self._reaped_s = -math.inf
        self._closed = False
        with self._lock:
            self._own = self._register()

    def take(
        self, name: str, amount: float, limit: float | None, max_running: int | None, now_s: float
    ) -> Standing:
        """Counts an amount and one thing that runs, if both limits allow them; else nothing.

        Args:
            name: Whose count.
            amount: How much.
            limit: Most in a minute; None for no limit.
            max_running: Most at the same time; None for no limit.
            now_s: The time, as `time.time` gives it.
        """
        return self.take_all([Charge(name, amount, limit, max_running)], now_s)[0]

    def take_all(self, charges: Sequence[Charge], now_s: float) -> list[Standing]:
        """Counts all of these, if all limits allow it; else nothing.

        Args:
            charges: What to count, each under another name.
            now_s: The time, as `time.time` gives it.
        """
        with self._lock:
            if self._closed:
                return [Standing(0.0, 0.0, 0.0, 0) for _ in charges]
            places = [self._find(charge.name, now_s) for charge in charges]
            found = [
                self._look(place, charge, now_s)
                for place, charge in zip(places, charges, strict=True)
            ]
            if all(standing.fits for standing in found):
                for place, charge in zip(places, charges, strict=True):
                    self._add(place, charge, now_s)
            return found

    def _look(self, record: int, charge: Charge, now_s: float) -> Standing:
        """Returns how a name will stand if it is counted, or how it stands if it does not fit."""
        bucket = self._advance(record, now_s)
        counts, running = self._counts(record), sum(self._running(record))
        used, most, limit = sum(counts), charge.max_running, charge.limit
        if most is not None and running >= most:
            self._reap()
            running = sum(self._running(record))
        fits = limit is None or used + charge.amount <= limit
        free = most is None or running < most
        if fits and free:
            return Standing(used + charge.amount, 0.0, WINDOW_S, running + charge.runs)
        spare = 0.0 if limit is None else limit - charge.amount
        wait_s = 0.0 if fits else _time_until(counts, bucket, spare, now_s)
        reset_s = _time_until(counts, bucket, 0.0, now_s)
        return Standing(used, wait_s, reset_s, running if free else -1)

    def _add(self, record: int, charge: Charge, now_s: float) -> None:
        bucket = self._advance(record, now_s)
        self._real[record + _COUNTS + bucket] += charge.amount
        if charge.runs:
            self._half[2 * (record + _RUNNING) + self._own] += 1

    def correct(self, name: str, amount: float, then_s: float, now_s: float) -> None:
        """Corrects what was counted at an earlier time.

        What is more counts now, so that a long request counts for a minute from its end; what is
        less is taken back where it was counted, if that is still of this minute.

        Args:
            name: Whose count.
            amount: How much more, or less.
            then_s: When it was counted.
            now_s: The time.
        """
        with self._lock:
            if self._closed:
                return
            record = self._find(name, now_s)
            bucket = self._advance(record, now_s)
            age = max(0, self._whole[record + _LAST] - int(then_s / BUCKET_S))
            if amount > 0:
                age = 0
            if age < NUM_BUCKETS:
                at = record + _COUNTS + (bucket - age) % NUM_BUCKETS
                self._real[at] = max(0.0, self._real[at] + amount)

    def finish(self, name: str, now_s: float) -> None:
        """Takes back one thing that ran."""
        with self._lock:
            if self._closed:
                return
            at = 2 * (self._find(name, now_s) + _RUNNING) + self._own
            self._half[at] = max(0, self._half[at] - 1)

    def close(self) -> None:
        """Takes back what of this process runs, and leaves the file to the others.

        What is counted afterwards is let in uncounted.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._forget(self._own)
            self._lock.has_file = False
        for view in (self._whole, self._real, self._half):
            view.release()
        self._map.close()
        if self._file >= 0:
            os.close(self._file)

    def _register(self) -> int:
        """Returns this process's column: a free one, or that of a dead process."""
        for at in range(NUM_PROCESSES):
            if not self._is_alive(at):
                if self._whole[2 * at]:
                    self._forget(at)
                self._whole[2 * at] = os.getpid()
                self._real[2 * at + 1] = psutil.Process().create_time()
                return at
        return NUM_PROCESSES - 1

    def _reap(self) -> None:
        """Takes back what dead processes left, once in a while."""
        now_s = time.monotonic()
        if now_s - self._reaped_s < REAP_S:
            return
        self._reaped_s = now_s
        for at in range(NUM_PROCESSES):
            if self._whole[2 * at] and not self._is_alive(at):
                self._forget(at)

    def _is_alive(self, at: int) -> bool:
        pid, started = self._whole[2 * at], self._real[2 * at + 1]
        if not pid:
            return False
        try:
            return bool(abs(psutil.Process(pid).create_time() - started) < 1.0)
        except psutil.Error:
            return False

    def _forget(self, at: int) -> None:
        for number in range(NUM_RECORDS):
            place = 2 * (_RECORDS + number * _RECORD + _RUNNING) + at
            if self._half[place]:
                self._half[place] = 0
        self._whole[2 * at] = 0

    def _counts(self, record: int) -> Sequence[float]:
        return self._real[record + _COUNTS : record + _RUNNING].tolist()

    def _running(self, record: int) -> list[int]:
        return self._half[2 * (record + _RUNNING) : 2 * (record + _RECORD)].tolist()

    def _find(self, name: str, now_s: float) -> int:
        """Returns where a name's record begins, in words; one that is used anew is empty."""
        known = self._known.get(name)
        if known is None:
            digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
            known = (-1, *struct.unpack("qq", digest))
        record, first, second = known
        whole = self._whole
        if record < 0 or whole[record] != first or whole[record + 1] != second:
            record = self._search(first, second)
            if len(self._known) >= NUM_RECORDS:
                self._known.clear()
            self._known[name] = (record, first, second)
        self._real[record + _USED] = now_s
        return record

    def _search(self, first: int, second: int) -> int:
        places = [_RECORDS + (first + step) % NUM_RECORDS * _RECORD for step in range(NUM_PROBES)]
        for record in places:
            if self._whole[record] == first and self._whole[record + 1] == second:
                return record
        idle = [record for record in places if not any(self._running(record))]
        record = min(idle or places, key=lambda place: self._real[place + _USED])
        self._map[_WORD * record : _WORD * (record + _RECORD)] = bytes(_WORD * _RECORD)
        self._whole[record], self._whole[record + 1] = first, second
        return record

    def _advance(self, record: int, now_s: float) -> int:
        """Empties the buckets whose time has come again; returns the present one."""
        now, last = int(now_s / BUCKET_S), self._whole[record + _LAST]
        passed = now - last
        if -NUM_BUCKETS < passed <= 0:  # the clock may have been set back a little
            return int(last) % NUM_BUCKETS
        for step in range(1, min(abs(passed), NUM_BUCKETS) + 1):
            self._real[record + _COUNTS + (last + step) % NUM_BUCKETS] = 0.0
        self._whole[record + _LAST] = now
        return now % NUM_BUCKETS


def _time_until(counts: Sequence[float], bucket: int, limit: float, now_s: float) -> float:
    """Returns in how many seconds no more than `limit` of the counts is left."""
    left = sum(counts)
    if left <= limit:
        return 0.0
    into_s = now_s % BUCKET_S
    for step in range(1, NUM_BUCKETS):  # the oldest first: it is emptied next
        left -= counts[(bucket + step) % NUM_BUCKETS]
        if left <= limit + 1e-9:
            return step * BUCKET_S - into_s
    return NUM_BUCKETS * BUCKET_S - into_s


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    try:
        if os.fstat(file).st_size != SIZE:
            os.ftruncate(file, SIZE)
    except OSError:
        os.close(file)
        raise
    return file
