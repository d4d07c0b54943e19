"""The lines that `make serve` writes itself."""

from __future__ import annotations

from contextlib import suppress

PREFIX = "[serve] "


def say(text: str) -> None:
    """Prints one line at once, also into a pipe."""
    write(f"{PREFIX}{text}")


def write(text: str) -> None:
    """Prints text as it is."""
    with suppress(OSError):  # the terminal is closed; what runs must be ended all the same
        print(text, flush=True)
