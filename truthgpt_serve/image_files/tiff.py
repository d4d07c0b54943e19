"""Adds up what the directories of a TIFF file hold, and of EXIF, which has the same form.

Each entry says where its values are, and all may name the same: 5,000 entries for 60 kB are 300 MB.
The format: https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf
"""

from __future__ import annotations

import struct

MAX_ENTRIES = 2000
"""Most entries of all directories that are read; cameras write some hundreds."""
MAX_NUMBERS = 65536
"""Most numbers of all entries, which become objects of Python: two for each strip of an image."""
_EXIF = b"Exif\0\0"
_MAX_DEPTH = 4
_BYTES_OF = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BYTES_OF |= {16: 8, 17: 8, 18: 8}
_PLAIN = (1, 2, 7)
"""Types that stay bytes, or become one text."""
_POINTERS = {3: 2, 4: 4, 13: 4, 16: 8}
_DIRECTORIES = (0x8769, 0x8825, 0xA005)
"""Entries that say where a further directory is, which is read too: EXIF's own, GPS, and others."""


class _TooMuchError(Exception):
    pass


class _Directories:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._is_big = data[2:3] == b"\x2b"
        self._num_entries = self._num_numbers = self._num_bytes = 0

    def read(self) -> None:
        """Adds up all. Raises _TooMuchError for too much, struct.error at the end of the file."""
        code, at = ("Q", 8) if self._is_big else ("L", 4)
        self._read(self._unpack(code, at)[0], _MAX_DEPTH)

    def _unpack(self, codes: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + codes, self._data, min(at, len(self._data)))

    def _read(self, at: int, depth: int) -> None:
        num_entries = self._unpack("Q" if self._is_big else "H", at)[0]
        at += 8 if self._is_big else 2
        step = 20 if self._is_big else 12
        for start in range(at, at + step * min(num_entries, MAX_ENTRIES + 1), step):
            self._add(start, depth)

    def _add(self, at: int, depth: int) -> None:
        tag, kind, count = self._unpack("HHQ" if self._is_big else "HHL", at)
        inline = 8 if self._is_big else 4
        size = _BYTES_OF.get(kind, 0) * count
        self._num_entries += 1
        if kind in _PLAIN:
            self._num_bytes += min(size, len(self._data))
        else:
            self._num_numbers += count if size <= len(self._data) else 0
        if (
            self._num_entries > MAX_ENTRIES
            or self._num_numbers > MAX_NUMBERS
            or self._num_bytes > 2 * len(self._data)
        ):
            raise _TooMuchError
        if depth and tag in _DIRECTORIES and count == 1 and kind in _POINTERS:
            value = self._data[at + (12 if self._is_big else 8) :][: min(_POINTERS[kind], inline)]
            try:
                self._read(
                    int.from_bytes(value, "little" if self._order == "<" else "big"), depth - 1
                )
            except struct.error:  # it leads to nowhere; the others are read on
                return


def _find_fault(data: bytes, words: str) -> str | None:
    try:
        _Directories(data).read()
    except _TooMuchError:
        return f"{words}: save it anew"
    except struct.error:  # cut off, which its reader finds too
        return None
    return None


def find_tiff_fault(data: bytes) -> str | None:
    """Returns what is at fault with a file that begins as TIFF does, or None."""
    return _find_fault(data, "is a TIFF whose directory has too many entries or numbers")


def find_exif_fault(data: bytes, form: str) -> str | None:
    """Returns what is at fault with EXIF, or None.

    Args:
        data: What the file has of it.
        form: The file's format.
    """
    while data.startswith(_EXIF):
        data = data[len(_EXIF) :]
    return _find_fault(data, f"is a {form} whose EXIF has too many entries or numbers")
