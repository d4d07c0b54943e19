"""A replica's record of what it is doing: a small mapped file, whole even after SIGKILL.

    head     JSON: process, phase, and the cause of the end where the process knows it itself
    slots    fingerprints of the requests in flight, 16 bytes each; zeros are a free slot

The process holds a lock on its file as long as it lives: who gets the lock reads of a dead one.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD_BYTES = 4096
FINGERPRINT_BYTES = 16
NUM_SLOTS = 4096
"""Requests beyond these are served and not recorded."""
SUFFIX = ".record"

_SIZE = HEAD_BYTES + NUM_SLOTS * FINGERPRINT_BYTES
_FREE = bytes(FINGERPRINT_BYTES)


class Record:
    """The record of this process.

    Args:
        folder: Where it lies, with those of the other replicas of the model on this node.
        head: What the head says from the start.

    Raises:
        OSError: It cannot be written there.
    """

    def __init__(self, folder: Path, **head: Any) -> None:
        self.path = folder / f"{os.getpid()}-{time.time_ns()}{SUFFIX}"
        self._head = {"pid": os.getpid(), "started_at": time.time(), **head}
        self._file = self.path.open("x+b")
        try:
            # On a full disk the first look at a hole of the file would end the process by SIGBUS.
            os.posix_fallocate(self._file.fileno(), 0, _SIZE)
        except OSError:
            self._file.close()
            self.path.unlink()
            raise
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        self._map = mmap.mmap(self._file.fileno(), _SIZE)
        self._free = list(range(NUM_SLOTS))
        self.note()

    def note(self, **head: Any) -> None:
        """Adds to the head, or changes it; does nothing after `close`."""
        if self._map.closed:
            return
        self._head |= head
        data = json.dumps(self._head).encode()[: HEAD_BYTES - 1]
        self._map[: len(data) + 1] = data + b"\0"

    def begin(self, fingerprint: bytes) -> int | None:
        """Puts a request into a free slot; returns the slot, or None when there is none."""
        if not self._free or self._map.closed:
            return None
        slot = self._free.pop()
        self._write(slot, fingerprint)
        return slot

    def end(self, slot: int | None) -> None:
        """Frees a slot."""
        if slot is not None and not self._map.closed:
            self._write(slot, _FREE)
            self._free.append(slot)

    def _write(self, slot: int, fingerprint: bytes) -> None:
        start = HEAD_BYTES + slot * FINGERPRINT_BYTES
        self._map[start : start + FINGERPRINT_BYTES] = fingerprint

    def in_flight(self) -> list[bytes]:
        """Returns the fingerprints of the requests in flight."""
        return [] if self._map.closed else _fingerprints(self._map[HEAD_BYTES:])

    def close(self) -> None:
        """Removes the file: this process ends in good order. Safe to call twice."""
        if not self._map.closed:
            self.path.unlink(missing_ok=True)
            self._map.close()
            self._file.close()


@dataclass(frozen=True, slots=True)
class Remains:
    """What a dead process left.

    Attributes:
        head: The head.
        in_flight: Fingerprints of the requests that it was serving.
    """

    head: dict[str, Any]
    in_flight: list[bytes]


def take_remains(path: Path) -> Remains | None:
    """Reads and removes the record of a dead process; None while it lives."""
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = file.read(_SIZE)
            path.unlink(missing_ok=True)
    except OSError:  # it lives, or another process was faster
        return None
    try:
        head = json.loads(data[:HEAD_BYTES].split(b"\0", 1)[0])
    except ValueError:  # it died while it wrote
        head = {}
    return Remains(head if isinstance(head, dict) else {}, _fingerprints(data[HEAD_BYTES:]))


def _fingerprints(data: bytes) -> list[bytes]:
    pieces = (
        data[start : start + FINGERPRINT_BYTES]
        for start in range(0, len(data) - FINGERPRINT_BYTES + 1, FINGERPRINT_BYTES)
    )
    return [piece for piece in pieces if piece != _FREE]
