"""Frames of bytes on a socket: four bytes of length, big-endian, and the content."""

from __future__ import annotations

from collections.abc import Iterator

_LENGTH_BYTES = 4


def frame(content: bytes) -> bytes:
    """Returns a content as a frame."""
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content


class FrameReader:
    """Cuts what comes from a socket into contents."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes what came; yields the contents that are whole."""
        self._data += data
        while len(self._data) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._data[:_LENGTH_BYTES], "big")
            if len(self._data) < end:
                return
            content = bytes(self._data[_LENGTH_BYTES:end])
            del self._data[:end]
            yield content
