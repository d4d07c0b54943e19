"""Counts what stands in a GIF file before its first image, as Pillow reads it."""

from __future__ import annotations

MAX_BLOCKS = 16384
"""Most blocks of up to 255 bytes: XMP is in some hundreds."""
MAX_COMMENT_BYTES = 65536
"""Most bytes of comments, which Pillow copies anew for each block."""
_EXTENSION, _IMAGE, _END = 0x21, 0x2C, 0x3B
_COMMENT, _APPLICATION = 0xFE, 0xFF


class _Blocks:
    """Reads blocks behind their lengths."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at
        self.number = 0

    def byte(self) -> int | None:
        """Returns the next byte, or None at the end."""
        self.at += 1
        return self._data[self.at - 1] if self.at <= len(self._data) else None

    def skip(self) -> int:
        """Passes a block, and returns its length; the one of none ends a row of blocks."""
        self.number += 1
        size = self.byte() or 0
        self.at += size
        return size

    def skip_all(self) -> int:
        """Passes a row of blocks, as far as there may be any, and returns their bytes."""
        num_bytes = 0
        while self.number <= MAX_BLOCKS and (size := self.skip()):
            num_bytes += size
        return num_bytes


def find_gif_fault(data: bytes) -> str | None:
    """Returns what is at fault with a GIF file, or None."""
    flags = data[10] if len(data) > 10 else 0
    blocks = _Blocks(data, 13 + (3 << (flags % 8 + 1) if flags & 128 else 0))
    num_comment_bytes = 0
    while (mark := blocks.byte()) not in (None, _IMAGE, _END):
        blocks.number += 1
        if mark == _EXTENSION:
            kind = blocks.byte()
            first = blocks.skip()
            if kind != _COMMENT:
                if kind == _APPLICATION and data.startswith(b"NETSCAPE2.0", blocks.at - first):
                    blocks.skip()
                blocks.skip_all()
            elif first:
                num_comment_bytes += first + blocks.skip_all()
        if blocks.number > MAX_BLOCKS:
            return f"is a GIF of more than {MAX_BLOCKS} blocks before its image: save it anew"
        if num_comment_bytes > MAX_COMMENT_BYTES:
            return f"is a GIF with more than {MAX_COMMENT_BYTES} bytes of comments: save it anew"
    return None
