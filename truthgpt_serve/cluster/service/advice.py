"""Finds in a log the lines that say why something failed, and what the user can do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_LINES = 12
LOOKED_AT = 400
"""Lines from the end."""

_ERROR = re.compile(r"\b(\w*(Error|Exception)\b: |FATAL\b|fatal error|[Cc]annot |No space left)")
_AFTER = 3
_DISK_FULL = "the disk is full: free some space; `df -h` shows"
_ADVICE = (
    (r"No space left on device|OutOfDiskError", _DISK_FULL),
    (r"Address already in use|EADDRINUSE", "another program has taken a port: end it"),
    (r"Too many open files|EMFILE", "too many open files: raise the limit with `ulimit -n 65536`"),
    (
        r"pthread_create failed|can't start new thread|Resource temporarily unavailable",
        "no more processes or threads may start: raise the limit with `ulimit -u`",
    ),
    (
        r"Cannot allocate memory|MemoryError|OutOfMemoryError|"
        r"(?<!system |kernel |by the )(?<!by )OOM(?!, etc)",
        # Of any death Ray guesses "(OOM, etc.)", or "by the user or system OOM killer", or
        # "by the OOM killer", and has a hint at the "kernel OOM killer".
        "there is too little memory: leave out a model, or end other programs",
    ),
    (
        r"timed out during startup|failed to start within|Timed out waiting for",
        "Ray took too long to start: end what keeps this machine busy, and try again",
    ),
    (r"Read-only file system", "a folder cannot be written: see the path above"),
)


_FULL_PLACE = re.compile(
    r"(/[^\s'\":]+)[^\s/]*: No space left|No space left on device: '?(/[^\s'\":]+)"
)


def find_full_disk(lines: Sequence[str]) -> str | None:
    """Returns where a disk is full, as a log says it, and what helps; or None.

    Ray goes on with a full disk, and starts its processes again for ever.
    """
    for line in reversed(lines[-LOOKED_AT:]):
        if "No space left on device" in line:
            found = _FULL_PLACE.search(line)
            place = next(filter(None, found.groups()), "") if found else ""
            return f"{place}: {_DISK_FULL}" if place else _DISK_FULL
    return None


def find_cause(lines: Sequence[str]) -> list[str]:
    """Returns the lines around the last error, or the last lines when none looks like one."""
    lines = [line for line in lines[-LOOKED_AT:] if not line.startswith("[serve] ")]
    last = next((at for at in reversed(range(len(lines))) if _ERROR.search(lines[at])), None)
    end = len(lines) if last is None else min(len(lines), last + 1 + _AFTER)
    return lines[max(0, end - MAX_LINES) : end]


def find_advice(lines: Sequence[str]) -> str | None:
    """Returns what helps against the last known failure in a log, or None.

    A full disk comes first: what Ray says of processes that die of it are guesses.
    """
    if full := find_full_disk(lines):
        return full
    for line in reversed(lines[-LOOKED_AT:]):
        for pattern, advice in _ADVICE:
            if re.search(pattern, line):
                return advice
    return None
