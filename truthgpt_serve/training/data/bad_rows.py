"""What happens at a row that cannot be used: the run ends with its place, or counts and skips it.

Knows no file format and no meaning of a row.
"""

from __future__ import annotations

from truthgpt_serve.training.errors import TrainingError

MAX_SHOWN = 5
"""Skipped rows whose places are kept for the plan; of the others only the number is."""


class BadRows:
    """Takes reports of bad rows.

    Args:
        on_bad_row: `data.on_bad_row`: `stop` or `skip`.
    """

    def __init__(self, on_bad_row: str) -> None:
        self._stops = on_bad_row == "stop"
        self.count = 0
        self.shown: list[str] = []

    def report(self, place: str, problem: str) -> None:
        """Counts a bad row.

        Raises:
            TrainingError: Bad rows stop the run.
        """
        if self._stops:
            fix = "correct the row, or set data.on_bad_row: skip"
            raise TrainingError(f"{place}: {problem} ({fix})")
        self.count += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(f"{place}: {problem}")
