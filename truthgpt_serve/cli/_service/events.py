"""Splits a stream of server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.

By lines as the protocol has them, which are not those of `str.splitlines`: a text may have U+2028.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MAX_EVENT_BYTES = 256 << 20
"""Far above an image in base64; what has no end in it is no stream of events."""


class EventTooLargeError(ValueError):
    """An event has no end within `MAX_EVENT_BYTES`."""


def split_events(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the data of each event as soon as it is complete.

    Args:
        pieces: The body, as it comes.

    Raises:
        EventTooLargeError: An event has no end.
    """
    data: list[bytes] = []
    for line in _lines(pieces):
        if not line:
            if data:
                yield b"\n".join(data)
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    size = 0
    for piece in pieces:
        first, *others = piece.split(b"\n")
        rest.append(first)
        size += len(first)
        if size > MAX_EVENT_BYTES:
            raise EventTooLargeError(f"an event has more than {MAX_EVENT_BYTES} bytes")
        for other in others:
            yield b"".join(rest).removesuffix(b"\r")
            rest, size = [other], len(other)
