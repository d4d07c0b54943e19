"""What a data set reads and what it leaves out, in words for the plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

MAX_NAMES = 5
"""Names of files that one line of the plan or of an error shows; of the others only the number."""


def shown(text: object) -> str:
    """Returns text that any terminal can print: file names and bad rows may hold anything."""
    cleaned = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cleaned)


def listed(names: Collection[str]) -> str:
    """Returns the first names, and how many more there are."""
    first = ", ".join(shown(name) for name in list(names)[:MAX_NAMES])
    more = len(names) - MAX_NAMES
    return f"{first} and {more:,} more" if more > 0 else first


@dataclass
class _Some:
    """The first few of many names, and how many there are."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < MAX_NAMES:
            self.names.append(shown(name))

    def __str__(self) -> str:
        more = self.count - len(self.names)
        return ", ".join(self.names) + (f" and {more:,} more" if more else "")


class Inventory:
    """Files that are read, and those that are not, by reason."""

    def __init__(self) -> None:
        self._read = _Some()
        self._left_out: dict[str, _Some] = {}

    def read(self, names: Iterable[str]) -> None:
        """Notes what is read."""
        for name in names:
            self._read.add(name)

    def leave_out(self, name: str, reason: str) -> None:
        """Notes what is not read, and why, such as `is hidden`."""
        self._left_out.setdefault(reason, _Some()).add(name)

    def describe_left_out(self) -> list[str]:
        """Returns a line for each reason."""
        return [f"{some} ({reason})" for reason, some in self._left_out.items()]

    def lines(self) -> list[str]:
        """Returns the lines of the plan."""
        found = [f"reads    {self._read}"] if self._read.count else []
        return [*found, *(f"left out {line}" for line in self.describe_left_out())]
