"""A row that cannot be used ends the run with its place, or is counted and skipped."""

from __future__ import annotations

from truthgpt_serve.training.data.inventory import shown
from truthgpt_serve.training.errors import TrainingError

MAX_SHOWN = 5
"""Skipped rows whose places are kept for the plan; of the others only the number is."""
MAX_MESSAGE = 1000
"""Characters of a problem that are shown: it may quote the row."""


class BadRow(Exception):
    """A row that cannot be used; its message is the problem."""


class BadRows:
    """Takes reports of bad rows.

    Args:
        on_bad_row: `data.on_bad_row`: `stop` or `skip`.
    """

    def __init__(self, on_bad_row: str) -> None:
        self._stops = on_bad_row == "stop"
        self.count = 0
        self.shown: list[str] = []

    def report(self, place: str, problem: str, *, count: int = 1) -> None:
        """Counts bad rows: one, or as many as cannot be told apart.

        Raises:
            TrainingError: Bad rows stop the run.
        """
        cut = problem if len(problem) <= MAX_MESSAGE else f"{problem[:MAX_MESSAGE]}..."
        message = shown(f"{place}: {cut}")
        if self._stops:
            fix = "correct the row, or set data.on_bad_row: skip"
            raise TrainingError(f"{message} ({fix})")
        self.count += count
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(message)
