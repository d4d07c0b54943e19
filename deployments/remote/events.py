"""Splits server-sent events that arrive in any pieces; knows nothing of what they say."""

from __future__ import annotations

from collections.abc import Iterator

MAX_HELD_BYTES = 65536
"""The longest beginning of an event that is held until its end is there."""
_ENDS = (b"\n\n", b"\n\r\n")


class WholeEvents:
    """Holds back the beginning of an event, so that half of one never goes out.

    What is too long for that passes as it comes, as images do.

    Attributes:
        between: Whether all that was returned ends with an event, so that another may follow.
    """

    def __init__(self) -> None:
        self.between = True
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Returns the events that are whole now."""
        data = self._held + data
        end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in _ENDS)
        if not end and len(data) > MAX_HELD_BYTES:
            end = len(data)
        self._held = data[end:]
        return self._note(data[:end])

    def finish(self) -> bytes:
        """Returns the rest, after the last piece."""
        data, self._held = self._held, b""
        return self._note(data)

    def _note(self, data: bytes) -> bytes:
        if data:
            self.between = data.endswith(_ENDS)
        return data


def read_data(events: bytes) -> Iterator[bytes]:
    """Yields the data of whole events."""
    for event in events.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines)
