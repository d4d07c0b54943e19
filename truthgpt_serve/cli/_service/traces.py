"""Finds the traceback of a failure in the output of a process."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_LINES = 60
_PREFIX = re.compile(
    r"^(?:\(\w+ pid=\d+\) ?)*"  # vLLM's processes
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:"
    r"\d{4}-\d\d-\d\d [\d:,]+ \S+ \S+ -- |"  # Ray Serve's
    r"\d\d-\d\d [\d:]+ \[[^\]]*\] ?))?"  # vLLM's
)
_START = "Traceback (most recent call last)"
_FATAL = "Fatal Python error:"
_FATAL_END = "Extension modules:"


def find_traceback(lines: Sequence[str]) -> list[str]:
    """Returns the last traceback in the lines, or the stack of a crash; empty where there is none.

    Args:
        lines: The output, with or without the prefixes of loggers.
    """
    plain = [_PREFIX.sub("", line) for line in lines]
    for at in reversed(range(len(plain))):
        if plain[at].startswith(_FATAL):
            return _cut(_until(plain[at:], _FATAL_END))
        if plain[at].startswith(_START):
            return _cut(_traceback(plain[at:]))
    return []


def is_crash(trace: Sequence[str]) -> bool:
    """Returns whether what `find_traceback` found is the stack of a crash."""
    return bool(trace) and trace[0].startswith(_FATAL)


def _traceback(lines: Sequence[str]) -> list[str]:
    """Returns a traceback: its frames are indented, and its end is not."""
    for at in range(1, len(lines)):
        if lines[at] and not lines[at][0].isspace():
            return list(lines[: at + 1])
    return list(lines)


def _until(lines: Sequence[str], mark: str) -> list[str]:
    found = []
    for line in lines:
        if line.startswith(mark):
            break
        found.append(line)
    return found


def _cut(lines: list[str]) -> list[str]:
    """Returns the beginning and the end of what is too long."""
    if len(lines) <= MAX_LINES:
        return lines
    half = MAX_LINES // 2
    return [*lines[:half], f"  ... {len(lines) - 2 * half} lines", *lines[-half:]]
