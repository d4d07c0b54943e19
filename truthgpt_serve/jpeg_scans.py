"""Counts the scans of a JPEG file before it is decoded.

A progressive JPEG is refined scan by scan, and each passes over all pixels: a file of 10 kB can
take as long as 300 whole images.
"""

from __future__ import annotations

import re

MAX_SCANS = 100
"""Most scans. Usual encoders write about ten, and refining every bit of every band takes fewer."""
_START_OF_SCAN, _END = 0xDA, 0xD9
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers that no length follows."""
_find_marker = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL).search
"""In a scan, 0xff stands before a zero byte or a restart marker, or it ends the scan."""


def has_too_many_scans(data: bytes) -> bool:
    """Returns whether the first image of a file is a JPEG with more scans than `MAX_SCANS`."""
    if data[:2] != b"\xff\xd8":
        return False
    at, num_scans = 2, 0
    while (found := _find_marker(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == _END:
            return False
        if marker == _START_OF_SCAN:
            num_scans += 1
            if num_scans > MAX_SCANS:
                return True
        if marker not in _ALONE:
            at += max(2, int.from_bytes(data[at : at + 2]))
    return False
