"""Reads CSV and TSV: the first line names the columns, and every cell is text.

In a TSV file a quote is text like any other: such files are written without quoting, and a cell
that begins with a quote would take the lines behind it.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from truthgpt_serve.training.data.bad_rows import BadRows
from truthgpt_serve.training.data.inventory import shown
from truthgpt_serve.training.data.rows import Row
from truthgpt_serve.training.data.streams import MAX_LINE_BYTES, numbered_lines
from truthgpt_serve.training.errors import TrainingError

_DELIMITERS = ",;\t"
_MAX_HEADER = 10_000
"""Characters of a first line in which a delimiter is looked for."""
MAX_COLUMNS = 10_000
MAX_LINES = 10_000
"""Lines of one row, in quoted cells: more is a quote that is not closed."""


def read_csv(file: Path, text_field: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the rows behind the header; a place is the line that a row begins on.

    The delimiter is the comma, semicolon or tab that the header has the most of.

    Raises:
        TrainingError: The header does not name columns.
    """
    yield from _read(file, None, bad_rows)


def read_tsv(file: Path, text_field: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the rows behind the header, whose cells are between tabs; see `read_csv`."""
    yield from _read(file, "\t", bad_rows)


class _Lines:
    """Hands lines to `csv.reader`, and remembers which one was the last.

    A byte that is not UTF-8 becomes half a surrogate pair, which the row then shows.
    """

    def __init__(self, file: Path, bad_rows: BadRows) -> None:
        self._lines = numbered_lines(file, bad_rows, errors="surrogateescape")
        self.number = 0
        self._first: str | None = None
        self._first_of_row = self._row_size = 0

    def peek(self) -> str:
        """Returns the first line that is not blank, which is read again after."""
        for number, text in self._lines:
            if text.strip():
                self.number, self._first = number, text
                return text
        return ""

    def begin_row(self) -> None:
        """Has lines and their characters count from the next one on."""
        self._first_of_row, self._row_size = self.number + 1, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        self.number, text = next(self._lines)
        self._row_size += len(text)
        if self.number - self._first_of_row >= MAX_LINES or self._row_size > MAX_LINE_BYTES:
            raise csv.Error("a quoted cell goes over too many lines")
        return text


def _read(file: Path, delimiter: str | None, bad_rows: BadRows) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)  # of the process: the default is 128 KiB
    lines = _Lines(file, bad_rows)
    start = lines.peek()[:_MAX_HEADER]
    if not start:
        return
    found = delimiter or max(_DELIMITERS, key=start.count)
    if delimiter is None:
        rows = csv.reader(lines, delimiter=found, strict=True)
    else:
        rows = csv.reader(lines, delimiter=found, strict=True, quoting=csv.QUOTE_NONE)
    lines.begin_row()
    names = _header(file, rows)
    while True:
        before = lines.number
        lines.begin_row()
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            _report_lost(file, before + 1, lines.number, error, bad_rows)
            continue
        if not cells:
            continue
        place = f"{file}:{before + 1}"
        if problem := _problem(cells, names):
            bad_rows.report(place, problem)
            continue
        values = {name: cell or None for name, cell in zip(names, cells, strict=True)}
        yield Row(values, place, fills_nulls=True)


def _report_lost(file: Path, first: int, last: int, error: csv.Error, bad_rows: BadRows) -> None:
    """Reports the lines that were read when a row turned out to be none."""
    lost = f"; lines {first} to {last} are lost" if last > first else ""
    bad_rows.report(f"{file}:{first}", f"is not CSV: {error}{lost}", count=max(1, last - first + 1))


def _header(file: Path, rows: Iterator[list[str]]) -> list[str]:
    try:
        names = [name.strip() for name in next(rows)]
    except csv.Error as error:
        raise TrainingError(f"{shown(file)}:1: the header is not CSV: {error} (mend it)") from error
    fix = "write a first line with a name for each column"
    if problem := _not_utf8(names):
        raise TrainingError(f"{shown(file)}:1: the header {problem} (save the file as UTF-8)")
    if "" in names:
        raise TrainingError(f"{shown(file)}:1: column {names.index('') + 1} has no name ({fix})")
    if len(names) > MAX_COLUMNS:
        raise TrainingError(f"{shown(file)}:1: has over {MAX_COLUMNS:,} columns ({fix})")
    (most, number), *_ = Counter(names).most_common(1)
    if number > 1:
        raise TrainingError(f"{shown(file)}:1: two columns are named {most!r} ({fix})")
    return names


def _problem(cells: list[str], names: list[str]) -> str:
    if len(cells) != len(names):
        return f"has {len(cells)} cells, the header has {len(names)}"
    return _not_utf8(cells)


def _not_utf8(cells: list[str]) -> str:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return ""
