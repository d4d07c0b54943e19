"""Splits server-sent events that arrive in any pieces, and reads their data; a stream's headers.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import Iterator

EVENT_ENDS = (b"\n\n", b"\n\r\n")
MAX_HELD_BYTES = 65536
"""The longest beginning of an event that is held until its end is there."""

CONTENT_TYPE = b"text/event-stream"
STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""What every event stream has: caches keep none of it, and proxies like nginx hold nothing back."""


def with_stream_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Returns an answer's headers, names in lower case; those of an event stream are completed.

    A stricter `cache-control` stays.
    """
    values = dict(headers)
    if not values.get(b"content-type", b"").lower().startswith(CONTENT_TYPE):
        return headers
    strict = any(word in values.get(b"cache-control", b"") for word in (b"no-cache", b"no-store"))
    added = STREAM_HEADERS[1:] if strict else STREAM_HEADERS
    replaced = {name for name, _ in added}
    return [*(header for header in headers if header[0] not in replaced), *added]


def whole_events(data: bytes, max_held_bytes: int = MAX_HELD_BYTES) -> tuple[bytes, bytes]:
    """Splits what arrived of an event stream behind its last whole event.

    The rest is held back: after a cut in the middle, half an event would become one that clients
    cannot read. What is too long for an event, or ends its lines otherwise, passes as it is.
    """
    end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in EVENT_ENDS)
    if not end and (len(data) > max_held_bytes or data.endswith(b"\r\r")):
        end = len(data)
    return data[:end], data[end:]


class WholeEvents:
    """Holds back the beginning of an event, so that half of one never goes out.

    What is too long for that passes as it comes, as images do.

    Args:
        max_held_bytes: The longest beginning of an event that is held.

    Attributes:
        between: Whether all that was returned ends with an event, so that another may follow.
    """

    def __init__(self, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self.between = True
        self._max_held_bytes = max_held_bytes
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Returns the events that are whole now."""
        whole, self._held = whole_events(self._held + data, self._max_held_bytes)
        return self._note(whole)

    def finish(self) -> bytes:
        """Returns the rest, after the last piece."""
        data, self._held = self._held, b""
        return self._note(data)

    def _note(self, data: bytes) -> bytes:
        if data:
            self.between = data.endswith(EVENT_ENDS)
        return data


def read_data(events: bytes) -> Iterator[bytes]:
    """Yields the data of whole events."""
    for event in events.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines)
