"""What the tables of the commands have in common."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

DASH = "-"
"""Stands for what is not known."""


def open_console() -> Console:
    """Returns a console that does not cut off columns where no terminal has an edge."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)
