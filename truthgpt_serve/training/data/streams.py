"""Opens files of rows, compressed or not, and yields their lines; nothing is read whole."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from truthgpt_serve.training.data.bad_rows import BadRows
from truthgpt_serve.training.data.inventory import shown
from truthgpt_serve.training.errors import TrainingError

MAX_LINE_BYTES = 64 << 20
"""Bytes of one line; a longer one is no example but a file without line breaks."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_NO_TEXT = {
    rb"\x1f\x8b": "is compressed by gzip (let its name end with .gz)",
    rb"\x28\xb5\x2f\xfd": "is compressed by Zstandard (let its name end with .zst)",
    rb"PK\x03\x04": "is a ZIP archive (unpack it)",
    rb"BZh[1-9]1AY&": "is compressed by bzip2 (unpack it)",
    rb"\xfd7zXZ\x00": "is compressed by xz (unpack it)",
    rb"PAR1\x15": "is Parquet (let its name end with .parquet)",
    rb"\xff\xfe|\xfe\xff": "is UTF-16 text (save it as UTF-8)",
}
"""How what is no text in UTF-8 begins, and what it is."""
_DAMAGES = (EOFError, zlib.error, gzip.BadGzipFile)
_CHUNK_BYTES = 1 << 20


class DamagedStream(Exception):
    """Compressed data ends too early, or is none."""


@contextmanager
def open_rows(file: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading; `.gz` and `.zst` are decompressed on the way.

    Raises:
        TrainingError: It cannot be read, or begins as no text in UTF-8 does.
        DamagedStream: What is compressed is damaged, from where the reading was.
    """
    check_pointer(file)
    try:
        with _decompressed(file) as stream:
            _check_start(file, stream.peek(8))
            yield stream
    except _DAMAGES as error:
        raise DamagedStream(str(error) or "it ends too early") from error
    except OSError as error:
        if error.errno is None:  # pyarrow's decompressor
            raise DamagedStream(str(error)) from error
        raise _unreadable(file, error) from error


@contextmanager
def _decompressed(file: Path) -> Iterator[io.BufferedReader]:
    suffix = file.suffix.lower()
    if suffix == ".gz":
        with gzip.open(file, "rb") as stream:
            yield stream  # type: ignore[misc] # has what is asked of it
    elif suffix == ".zst":
        import pyarrow  # Python 3.11 knows no Zstandard

        with (
            pyarrow.input_stream(str(file), compression="zstd") as packed,
            io.BufferedReader(packed, _CHUNK_BYTES) as stream,
        ):
            yield stream
    else:
        with file.open("rb") as stream:
            yield stream


def numbered_lines(
    file: Path, bad_rows: BadRows, *, errors: str = "strict"
) -> Iterator[tuple[int, str]]:
    """Yields each line with its number from 1, without the byte order mark of a file.

    A line that is not UTF-8 or too long is a bad row, and so is what follows damage.

    Args:
        file: The file.
        bad_rows: Takes the lines that cannot be read.
        errors: How what is not UTF-8 is decoded; `strict` makes it a bad row.
    """
    number = 0
    try:
        with open_rows(file) as stream:
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                place = f"{file}:{number}"
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := stream.readline(MAX_LINE_BYTES)) and rest[-1:] != b"\n":
                        pass
                    bad_rows.report(place, f"is a line of more than {MAX_LINE_BYTES >> 20} MiB")
                    continue
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors)
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                    bad_rows.report(place, f"is not UTF-8 text: {byte}")
                    continue
                yield number, text
    except DamagedStream as error:
        report_damage(f"{file}:{number + 1}", error, bad_rows)


def report_damage(place: str, error: DamagedStream, bad_rows: BadRows) -> None:
    """Reports the row at which compressed data is damaged; those behind it cannot be counted."""
    bad_rows.report(place, f"is lost with all behind it: compressed data is damaged: {error}")


def check_pointer(file: Path) -> None:
    """Raises TrainingError where a file stands for one that has not been fetched."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise _unreadable(file, error) from error
    if start == _POINTER:
        fix = "fetch it: git lfs pull"
        raise TrainingError(f"{shown(file)}: is a Git LFS pointer, not the data itself ({fix})")


def _check_start(file: Path, start: bytes) -> None:
    """Raises TrainingError where all of a file would be rows that are not UTF-8."""
    for mark, what in _NO_TEXT.items():
        if re.match(mark, start):
            raise TrainingError(f"{shown(file)}: {what}")


def _unreadable(file: Path, error: OSError) -> TrainingError:
    reason = error.strerror or str(error)
    return TrainingError(f"{shown(file)}: cannot be read: {reason} (make it readable)")
