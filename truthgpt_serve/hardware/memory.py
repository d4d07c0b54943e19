"""How much memory this machine, or the container, has."""

from __future__ import annotations

from pathlib import Path

import psutil

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def total_memory() -> int:
    """Returns how many bytes of memory its processes may have together."""
    limits = [int(text) for text in map(_read, _LIMITS) if text.isdigit()]
    return min([psutil.virtual_memory().total, *limits])


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
