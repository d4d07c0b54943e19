"""The lines that `make serve` writes itself, between those of Ray."""

from __future__ import annotations

from contextlib import suppress


def say(text: str) -> None:
    """Prints one line at once, also into a pipe."""
    with suppress(OSError):  # nobody reads it any more; what runs must be ended all the same
        print(f"[serve] {text}", flush=True)
