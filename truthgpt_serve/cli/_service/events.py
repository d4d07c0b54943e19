"""The events of a stream, each as soon as it is whole, however large an image makes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from truthgpt_serve.http.sse import EVENT_ENDS, read_data, whole_events

MAX_EVENT_BYTES = 256 << 20
"""Far above an image in base64; what has no end in it is no stream of events."""
_OVERLAP = max(map(len, EVENT_ENDS)) - 1


class EventTooLargeError(ValueError):
    """An event has no end within `MAX_EVENT_BYTES`."""


def split_events(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the data of each event.

    Args:
        pieces: The body, as it comes.

    Raises:
        EventTooLargeError: An event has no end.
    """
    held: list[bytes] = []
    size = 0
    last = b""
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size > MAX_EVENT_BYTES:
            raise EventTooLargeError(f"an event has more than {MAX_EVENT_BYTES} bytes")
        near, last = last + piece, (last + piece)[-_OVERLAP:]
        if any(mark in near for mark in EVENT_ENDS):  # only then are the pieces put together
            whole, rest = whole_events(b"".join(held), MAX_EVENT_BYTES)
            yield from read_data(whole)
            held, size = [rest], len(rest)
