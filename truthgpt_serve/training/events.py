"""The run's own log, one JSON object a line: written by rank 0, followed by the command.

A file in the run's folder works alike for a worker here and on another node, and outlives both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from truthgpt_serve.training.run_folder import LOGS

FILE = "events.jsonl"


def events_file(folder: Path) -> Path:
    """Returns the log of a run."""
    return folder / LOGS / FILE


class EventWriter:
    """Appends events; each is on disk, for other processes to see, when the call returns."""

    def __init__(self, folder: Path) -> None:
        file = events_file(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("a", encoding="utf-8", buffering=1)

    def write(self, event: str, **values: Any) -> None:
        """Appends one event."""
        self._stream.write(json.dumps({"event": event, **values}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()


class EventReader:
    """Yields events as they come, from where the file ended when the reader was made."""

    def __init__(self, folder: Path) -> None:
        self._file = events_file(folder)
        self._offset = self._file.stat().st_size if self._file.exists() else 0
        self._rest = b""

    def read(self) -> Iterator[dict[str, Any]]:
        """Yields what has been added since the last call."""
        try:
            with self._file.open("rb") as stream:
                stream.seek(self._offset)
                added = stream.read()
        except FileNotFoundError:
            return
        self._offset += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        for line in lines:
            yield json.loads(line)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Returns all events of a run; a last line that a kill cut short is left out."""
    file = events_file(folder)
    if not file.exists():
        return []
    *lines, _ = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def forget_after(folder: Path, step: int) -> None:
    """Removes the events of steps after `step`, which a resumed run will do again."""
    file = events_file(folder)
    kept = [event for event in read_events(folder) if event.get("step", 0) <= step]
    if file.exists():
        unfinished = file.with_name(f".{file.name}.part")
        unfinished.write_text("".join(json.dumps(event) + "\n" for event in kept))
        os.replace(unfinished, file)
