"""Writes events, splits streams of them that arrive in any pieces, and completes their headers.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

DONE = b"[DONE]"
"""The data of the event that ends a stream of OpenAI's APIs."""
EVENT_ENDS = (b"\n\n", b"\n\r\n")
MAX_HELD_BYTES = 65536
"""The longest beginning of an event that is held until its end is there."""
MAX_EVENT_BYTES = 256 << 20
"""The longest event that is read: far above an image in base64."""

_EVENT_END = re.compile(rb"\n\r?\n|\r\r")

CONTENT_TYPE = b"text/event-stream"
STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""What every event stream has: caches keep none of it, and proxies like nginx hold nothing back."""


def format_event(data: bytes, name: str = "") -> bytes:
    """Returns an event.

    Args:
        data: Its data, in one line.
        name: Its name, for APIs whose events have one.
    """
    event = b"data: " + data + b"\n\n"
    return b"event: " + name.encode() + b"\n" + event if name else event


DONE_EVENT = format_event(DONE)


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Returns whether an answer with these headers is an event stream."""
    for name, value in headers:
        if name.lower() == b"content-type" and value.lower().startswith(CONTENT_TYPE):
            return True
    return False


def with_stream_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Returns an answer's headers, names in lower case; those of an event stream are completed.

    A stricter `cache-control` stays.
    """
    if not is_event_stream(headers):
        return headers
    control = dict(headers).get(b"cache-control", b"")
    strict = b"no-cache" in control or b"no-store" in control
    added = STREAM_HEADERS[1:] if strict else STREAM_HEADERS
    replaced = {name for name, _ in added}
    return [*(header for header in headers if header[0] not in replaced), *added]


class EventTooLargeError(ValueError):
    """An event has no end within the bytes that it may have."""


class WholeEvents:
    """Splits a stream behind its last whole event: half of one, cut off, is none that can be read.

    What is too long for an event, as images are, or ends its lines otherwise, passes as it comes.

    Args:
        max_held_bytes: The longest beginning of an event that is held.

    Attributes:
        between: Whether all that was returned ends with an event, so that another may follow.
    """

    def __init__(self, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self.between = True
        self._max_held_bytes = max_held_bytes
        self._held: list[bytes] = []
        self._num_held_bytes = 0
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Returns the events that are whole now."""
        held = self._held
        if not held and data.endswith(b"\n\n"):
            self.between = True
            return data
        near = self._tail + data if held else data  # an end may have begun in the last piece
        self._tail = near[-2:]
        held.append(data)
        self._num_held_bytes += len(data)
        too_long = self._num_held_bytes > self._max_held_bytes
        if not (too_long or b"\n\n" in near or b"\n\r\n" in near or near.endswith(b"\r\r")):
            return b""
        data = b"".join(held)
        end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in EVENT_ENDS)
        end = end or len(data)
        self._hold(data[end:])
        return self._note(data[:end])

    def finish(self) -> bytes:
        """Returns the rest, after the last piece."""
        data = b"".join(self._held)
        self._hold(b"")
        return self._note(data)

    def _hold(self, data: bytes) -> None:
        self._held = [data] if data else []
        self._num_held_bytes = len(data)
        self._tail = data[-2:]

    def _note(self, data: bytes) -> bytes:
        if data:
            self.between = data.endswith(EVENT_ENDS)
        return data


class EventSplitter:
    """Reads the data of a stream's events, each as soon as it is whole.

    Args:
        max_event_bytes: The longest event.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._events = WholeEvents(max_event_bytes)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Returns the data of the events that are whole now.

        Raises:
            EventTooLargeError: An event has no end.
        """
        whole = self._events.feed(data)
        if not self._events.between and len(whole) > self._max_event_bytes:
            raise EventTooLargeError(f"an event has more than {self._max_event_bytes} bytes")
        return read_data(whole)

    def finish(self) -> Iterator[bytes]:
        """Returns the data of a last event whose end the sender left out."""
        return read_data(self._events.finish())


def split_events(events: bytes) -> list[bytes]:
    """Returns some whole events one by one, each with the empty line that ends it."""
    ends = [0, *(found.end() for found in _EVENT_END.finditer(events)), len(events)]
    return [events[start:end] for start, end in itertools.pairwise(ends) if start < end]


def read_data(events: bytes) -> Iterator[bytes]:
    """Yields the data of whole events."""
    if b"\r" in events:
        events = events.replace(b"\r\n", b"\n")
    for event in events.split(b"\n\n"):
        lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines)
