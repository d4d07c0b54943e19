"""Says in one line why a process ended, from what it left: its record, its stderr, OOM counters."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_CAUSE = 500
_TAIL_BYTES = 65536
_SIGNALS = {
    "Segmentation fault": "SIGSEGV (signal 11, a segmentation fault)",
    "Aborted": "SIGABRT (signal 6, aborted)",
    "Bus error": "SIGBUS (signal 7, a bus error)",
    "Floating-point exception": "SIGFPE (signal 8, a floating-point exception)",
    "Floating point exception": "SIGFPE (signal 8, a floating-point exception)",
    "Illegal instruction": "SIGILL (signal 4, an illegal instruction)",
}
_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_RECEIVED = re.compile(r"^\*\*\* (SIG[A-Z]+) received", re.MULTILINE)
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)


def stderr_file() -> Path | None:
    """Returns the file that this process's stderr goes to, as Ray sets it up, or None."""
    try:
        path = Path(os.readlink("/proc/self/fd/2"))
    except OSError:
        return None
    return path if path.is_file() else None


def count_oom_kills() -> int:
    """Returns how many processes the kernel has killed for want of memory, here since its start."""
    total = 0
    for path in (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total


def find_cause(head: Mapping[str, Any]) -> str:
    """Returns why the process of a record ended.

    Args:
        head: The record's head: `cause` if the process knew it, `stderr` and `oom_kills`.
    """
    if known := head.get("cause"):
        return str(known)[:MAX_CAUSE]
    if crash := _find_crash(_read_tail(head.get("stderr"))):
        return crash[:MAX_CAUSE]
    kills = head.get("oom_kills")
    if isinstance(kills, int) and count_oom_kills() > kills:
        return (
            "it was killed with SIGKILL (signal 9): the machine or the container ran out of memory"
        )
    return (
        "it was killed from outside, as with SIGKILL (signal 9), or left without a word; when "
        "memory runs short, Ray and the kernel end processes so: see raylet.out and `dmesg`"
    )


def _find_crash(text: str) -> str | None:
    """Returns the signal, and where it hit, from what Python's fault handler wrote."""
    found = list(_FATAL.finditer(text))
    if not found:
        received = _RECEIVED.findall(text)
        return f"it was ended by {received[-1]}" if received else None
    what = found[-1][1].strip()
    frame = _FRAME.search(text, found[-1].end())
    where = f", in {frame[3]} ({Path(frame[1]).name}, line {frame[2]})" if frame else ""
    return f"it was ended by {_SIGNALS.get(what, what)}{where}"


def _read_tail(path: Any) -> str:
    try:
        with open(str(path), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
