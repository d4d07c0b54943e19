"""A file of counts that all processes of one machine share, mapped into each of them.

It is of fixed size, with one record for each name: the buckets of a minute, and how many things run
in each process. What a dead process left is taken back.

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
import time
from collections.abc import Sequence
from pathlib import Path

from truthgpt_serve.access.counting.charges import BUCKET_S, NUM_BUCKETS
from truthgpt_serve.cluster.processes import Process, is_alive, read_process

NUM_PROCESSES = 64
"""More processes than this count what runs together, and none of it is taken back."""
NUM_RECORDS = 32768
"""For 4,000 keys with three limits each, and some limits for models."""
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
"""Before the records: of each process its id and when it started, in clock ticks after boot."""
SIZE = _WORD * (_RECORDS + NUM_RECORDS * _RECORD)


class _Lock:
    """Keeps out the other processes, for moments. A class: a generator takes longer."""

    __slots__ = ("_file", "_is_held")

    def __init__(self, file: int) -> None:
        self._file = file
        self._is_held = False

    def __enter__(self) -> None:
        self._is_held = self._file >= 0 and self._take()

    def __exit__(self, *error: object) -> None:
        if self._is_held:
            fcntl.flock(self._file, fcntl.LOCK_UN)

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


class CounterFile:
    """The records of one file. Threads of one process keep each other out.

    Args:
        path: The file, which is made if it is not there; None counts for this process alone.

    Attributes:
        lock: Keeps out the other processes; whoever writes amounts holds it.

    Raises:
        OSError: The file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = -1 if path is None else _open(path)
        self.lock = _Lock(self._file)
        self._map = mmap.mmap(self._file, SIZE)
        view = memoryview(self._map)
        self._whole, self._real, self._half = view.cast("q"), view.cast("d"), view.cast("i")
        self._known: dict[str, tuple[int, int, int]] = {}
        self._reaped_s = -math.inf
        with self.lock:
            self._own = self._register()

    @property
    def is_own_column(self) -> bool:
        """Whether no other process writes what runs in this one."""
        return self._own < NUM_PROCESSES - 1

    def known(self, name: str) -> int:
        """Returns where a name's record begins, in words; -1 if `find` has to look for it."""
        record, first, second = self._known.get(name, (-1, 0, 0))
        whole = self._whole
        is_there = record >= 0 and whole[record] == first and whole[record + 1] == second
        return record if is_there else -1

    def find(self, name: str, now_s: float) -> int:
        """Returns where a name's record begins; one that is used anew is empty."""
        record = self.known(name)
        if record < 0:
            digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
            first, second = struct.unpack("qq", digest)
            record = self._search(first, second)
            if len(self._known) >= NUM_RECORDS:
                self._known.clear()
            self._known[name] = (record, first, second)
        self._real[record + _USED] = now_s
        return record

    def counts(self, record: int) -> Sequence[float]:
        """Returns the buckets of a minute, in a ring."""
        return self._real[record + _COUNTS : record + _RUNNING].tolist()

    def running(self, record: int) -> list[int]:
        """Returns how many things run in each process."""
        return self._half[2 * (record + _RUNNING) : 2 * (record + _RECORD)].tolist()

    def add(self, record: int, amount: float, at: int) -> None:
        """Counts an amount, or takes it back, if it is of this minute.

        Args:
            record: Where.
            amount: How much.
            at: The bucket since the epoch; a later one than the present is the present.
        """
        last = self._whole[record + _LAST]
        if last - at < NUM_BUCKETS:
            place = record + _COUNTS + min(last, at) % NUM_BUCKETS
            self._real[place] = max(0.0, self._real[place] + amount)

    def run(self, record: int, number: int) -> None:
        """Counts things that run in this process, or takes them back."""
        place = 2 * (record + _RUNNING) + self._own
        self._half[place] = max(0, self._half[place] + number)

    def num_processes(self) -> int:
        """Returns how many processes have a column, dead ones included."""
        return sum(1 for at in range(NUM_PROCESSES) if self._whole[2 * at])

    def close(self) -> None:
        """Takes back what of this process runs, and leaves the file to the others."""
        with self.lock:
            self._forget(self._own)
        for view in (self._whole, self._real, self._half):
            view.release()
        self._map.close()
        if self._file >= 0:
            os.close(self._file)

    def _register(self) -> int:
        """Returns this process's column: a free one, or that of a dead process."""
        own = read_process(os.getpid())
        if own is None:  # without /proc none can tell whether this one lives
            return NUM_PROCESSES - 1
        for at in range(NUM_PROCESSES):
            if not self._is_alive(at):
                if self._whole[2 * at]:
                    self._forget(at)
                self._whole[2 * at], self._whole[2 * at + 1] = own.pid, own.started
                return at
        return NUM_PROCESSES - 1

    def reap(self) -> None:
        """Takes back what dead processes left, once in a while."""
        now_s = time.monotonic()
        if now_s - self._reaped_s < REAP_S:
            return
        self._reaped_s = now_s
        for at in range(NUM_PROCESSES):
            if self._whole[2 * at] and not self._is_alive(at):
                self._forget(at)

    def _is_alive(self, at: int) -> bool:
        pid, started = self._whole[2 * at], self._whole[2 * at + 1]
        return pid > 0 and is_alive(Process(pid, 0, started, ""))

    def _forget(self, at: int) -> None:
        for number in range(NUM_RECORDS):
            place = 2 * (_RECORDS + number * _RECORD + _RUNNING) + at
            if self._half[place]:
                self._half[place] = 0
        self._whole[2 * at] = 0

    def _search(self, first: int, second: int) -> int:
        places = [_RECORDS + (first + step) % NUM_RECORDS * _RECORD for step in range(NUM_PROBES)]
        for record in places:
            if self._whole[record] == first and self._whole[record + 1] == second:
                return record
        idle = [record for record in places if not any(self.running(record))]
        record = min(idle or places, key=lambda place: self._real[place + _USED])
        self._map[_WORD * record : _WORD * (record + _RECORD)] = bytes(_WORD * _RECORD)
        self._whole[record], self._whole[record + 1] = first, second
        return record

    def advance(self, record: int, now_s: float) -> int:
        """Empties the buckets whose time has come again; returns the present one."""
        now, last = int(now_s / BUCKET_S), self._whole[record + _LAST]
        passed = now - last
        if -NUM_BUCKETS < passed <= 0:  # the clock may have been set back a little
            return int(last) % NUM_BUCKETS
        for step in range(1, min(abs(passed), NUM_BUCKETS) + 1):
            self._real[record + _COUNTS + (last + step) % NUM_BUCKETS] = 0.0
        self._whole[record + _LAST] = now
        return now % NUM_BUCKETS


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    try:
        if os.fstat(file).st_size != SIZE:
            os.ftruncate(file, SIZE)
        # All of it: on a full disk the first look at a hole would end the process by SIGBUS.
        os.posix_fallocate(file, 0, SIZE)
    except OSError as error:
        os.close(file)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return file
