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
FAILED = "failed"
"""The event by which a worker of any rank says why it ends."""


def events_file(folder: Path) -> Path:
    """Returns the log of a run."""
    return folder / LOGS / FILE


class EventWriter:
    """Appends events; each is on disk, for other processes to see, when the call returns."""

    def __init__(self, folder: Path) -> None:
        file = events_file(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("a", encoding="utf-8", buffering=1)
        if _is_cut(file):
            self._stream.write("\n")

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
        yield from filter(None, map(_parse, lines))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Returns all events of a run; a line that a kill or a full disk cut short is left out."""
    return list(_events(folder))


def has_steps(folder: Path) -> bool:
    """Returns whether a run has done a step."""
    return any(event["event"] == "step" for event in _events(folder))


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        stream = events_file(folder).open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    with stream:
        for line in stream:
            if line.endswith("\n") and (event := _parse(line)) is not None:
                yield event


def _parse(line: str | bytes) -> dict[str, Any] | None:
    """Returns the event of a line, or None where it was cut short."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _is_cut(file: Path) -> bool:
    """Returns whether a kill or a full disk has cut the last line short."""
    with file.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def forget_after(folder: Path, step: int) -> None:
    """Removes the events of steps after `step`, which a resumed run will do again.

    With `step` 0 nothing is left: the run begins anew.
    """
    file = events_file(folder)
    kept = [event for event in _events(folder) if step and event.get("step", 0) <= step]
    if file.exists():
        unfinished = file.with_name(f".{file.name}.part")
        unfinished.write_text("".join(json.dumps(event) + "\n" for event in kept))
        os.replace(unfinished, file)
