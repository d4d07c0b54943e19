"""Readers of files of rows, by their format: text, JSON, tables, Parquet.

Each keeps the place of every row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from truthgpt_serve.training.data.bad_rows import BadRows
from truthgpt_serve.training.data.inventory import shown
from truthgpt_serve.training.data.json_array import read_json
from truthgpt_serve.training.data.kinds import format_of
from truthgpt_serve.training.data.rows import Row, describe
from truthgpt_serve.training.data.streams import check_pointer, numbered_lines
from truthgpt_serve.training.data.tables import read_csv, read_tsv
from truthgpt_serve.training.errors import TrainingError

PARQUET_BATCH_ROWS = 1024
"""Rows that are decoded at a time: enough to be quick, few enough for long texts."""


def read_text(file: Path, text_field: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields each line that is not blank as the column `text_field`."""
    for number, text in _texts(file, bad_rows):
        yield Row({text_field: text}, f"{file}:{number}")


def read_jsonl(file: Path, text_field: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the JSON object of each line that is not blank."""
    for number, text in _texts(file, bad_rows):
        place = f"{file}:{number}"
        try:
            values = json.loads(text)
        except ValueError as error:
            bad_rows.report(place, f"is not JSON: {error}")
            continue
        except RecursionError:
            bad_rows.report(place, "is nested too deeply")
            continue
        if not isinstance(values, dict):
            bad_rows.report(place, f"must be a JSON object, found {describe(values)}")
            continue
        yield Row(values, place)


def _texts(file: Path, bad_rows: BadRows) -> Iterator[tuple[int, str]]:
    for number, line in numbered_lines(file, bad_rows):
        if text := line.strip():
            yield number, text


def read_parquet(file: Path, text_field: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the rows of a Parquet file; a place is `file: row n`, from 1.

    Raises:
        TrainingError: Its index is damaged, without which nothing can be read.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    check_pointer(file)
    try:
        with parquet.ParquetFile(file) as source:
            first = 1
            for group in range(source.num_row_groups):
                size = source.metadata.row_group(group).num_rows
                yield from _row_group(file, source, group, (first, size), bad_rows)
                first += size
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise TrainingError(f"{shown(file)}: is not readable Parquet: {shown(error)}") from error


def _row_group(
    file: Path, source: Any, group: int, rows: tuple[int, int], bad_rows: BadRows
) -> Iterator[Row]:
    """Yields the rows of a group; where its pages are damaged, the rest of them is bad."""
    import pyarrow as arrow

    first, size = rows
    number = first
    try:
        for batch in source.iter_batches(batch_size=PARQUET_BATCH_ROWS, row_groups=[group]):
            for values in _values(batch):
                place = f"{file}: row {number}"
                number += 1
                if isinstance(values, Exception):
                    bad_rows.report(place, f"cannot be decoded: {values}")
                else:
                    yield Row(values, place, fills_nulls=True)
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        place = f"{file}: rows {number} to {first + size - 1}"
        bad_rows.report(place, f"cannot be decoded: {error}", count=first + size - number)


def _values(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """Yields the rows of a batch; in place of one with text that is not UTF-8, the error."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = None
    if rows is not None:
        yield from rows
        return
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield error


READERS: dict[str, Callable[[Path, str, BadRows], Iterator[Row]]] = {
    ".txt": read_text,
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
"""The reader of each format: file, column of plain text, bad rows."""


def read_file(file: Path, text_field: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the rows of a file of one of `kinds.ROW_SUFFIXES`, compressed or not.

    Args:
        file: The file.
        text_field: Column that a line of a `.txt` file becomes.
        bad_rows: Takes the rows that cannot be read.
    """
    yield from READERS[format_of(file)](file, text_field, bad_rows)
