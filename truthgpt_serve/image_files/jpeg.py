"""Counts the segments and the scans of a JPEG file before it is decoded.

A progressive JPEG is refined scan by scan, and each passes over all pixels: a file of 10 kB can
take as long as 300 whole images.
"""

from __future__ import annotations

import re

from truthgpt_serve.image_files.tiff import find_exif_fault

MAX_SCANS = 100
"""Most scans of a small image. Usual encoders write about ten."""
USUAL_SCANS = 20
"""What an image of any size may have."""
MAX_SCANNED_PIXELS = 50_000_000
"""What all scans together may pass over, if they are more than usual."""
MAX_SEGMENTS = 4096
"""Most segments, of up to 64 kB each, restart markers aside."""
MAX_SKIPPED_BYTES = 65536
"""Most bytes between segments before the first scan, which Pillow looks at one by one."""
MAX_EXIF_BYTES = 1 << 20
MAX_TABLE_BYTES = 65536
"""Most bytes of quantization tables before the first scan: four tables take 300."""
MAX_RESOURCES = 4096
"""Most resources of Photoshop's; it writes some dozens."""
_MANY_SEGMENTS = f"is a JPEG of more than {MAX_SEGMENTS} segments: save it anew"
_START_OF_SCAN, _END, _TABLES = 0xDA, 0xD9, 0xDB
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))
"""Markers that no length follows."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APP1, _APP2, _APP13 = 0xE1, 0xE2, 0xED
_EXIF, _SEVERAL_IMAGES = b"Exif\0\0", b"MPF\0"
_find_marker = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL).search
"""In a scan, 0xff stands before a zero byte or a restart marker, or it ends the scan."""


def find_jpeg_fault(data: bytes) -> str | None:
    """Returns what is at fault with the first image of a JPEG file, or None."""
    head, at, num_segments = _Head(), 2, 0
    while True:
        found = _find_marker(data, at, at + MAX_SKIPPED_BYTES + 2)
        marker, start = (found[1][0], found.start()) if found else (_START_OF_SCAN, len(data))
        head.skip(start - at)
        if found is None or marker == _START_OF_SCAN:
            break
        num_segments += 1
        if num_segments > MAX_SEGMENTS:
            return _MANY_SEGMENTS
        at = start + 2
        length = 0 if marker in _ALONE else max(2, int.from_bytes(data[at : at + 2]))
        head.add(marker, data[at + 2 : at + length])
        at += length
    return head.find_fault() or _find_scan_fault(data, at, head.max_scans, num_segments)


def _find_scan_fault(data: bytes, at: int, max_scans: int, num_segments: int) -> str | None:
    """Returns what is at fault from the first scan on; in it are no other markers than its own."""
    num_scans = 0
    while (found := _find_marker(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == _END:
            return None
        num_segments += 1
        num_scans += marker == _START_OF_SCAN
        if num_segments > MAX_SEGMENTS:
            return _MANY_SEGMENTS
        if num_scans > max_scans:
            return f"is a JPEG of more than {max_scans} scans: save it anew"
        if marker not in _ALONE:
            at += max(2, int.from_bytes(data[at : at + 2]))
    return None


class _Head:
    """What stands before the first scan, which Pillow reads in Python.

    Attributes:
        max_scans: Most scans of an image of this size.
    """

    def __init__(self) -> None:
        self.max_scans = MAX_SCANS
        self._num_skipped = self._num_table_bytes = self._num_resources = 0
        self._exif: list[bytes] = []
        self._several_images = b""

    def skip(self, num_bytes: int) -> None:
        """Counts bytes of no segment."""
        self._num_skipped += num_bytes

    def add(self, marker: int, body: bytes) -> None:
        """Counts a segment."""
        if marker in _FRAMES:
            pixels = int.from_bytes(body[1:3]) * int.from_bytes(body[3:5])
            most = max(USUAL_SCANS, MAX_SCANNED_PIXELS // max(1, pixels))
            self.max_scans = min(self.max_scans, most)
        elif marker == _TABLES:
            self._num_table_bytes += len(body)
        elif marker == _APP1 and body.startswith(_EXIF):
            self._exif.append(body[len(_EXIF) :])
        elif marker == _APP2 and body.startswith(_SEVERAL_IMAGES):
            self._several_images = body[len(_SEVERAL_IMAGES) :]
        elif marker == _APP13:
            self._num_resources += body.count(b"8BIM")

    def find_fault(self) -> str | None:
        """Returns what is at fault with all of it, or None."""
        for number, most, what in (
            (self._num_skipped, MAX_SKIPPED_BYTES, "bytes between segments"),
            (self._num_table_bytes, MAX_TABLE_BYTES, "bytes of tables"),
            (self._num_resources, MAX_RESOURCES, "resources"),
            (sum(map(len, self._exif)), MAX_EXIF_BYTES, "bytes of EXIF"),
        ):
            if number > most:
                return f"is a JPEG of more than {most} {what}: save it anew"
        exif = b"".join(self._exif)
        return find_exif_fault(exif, "JPEG") or find_exif_fault(self._several_images, "JPEG")
