"""Readers of files of rows: text, JSONL, Parquet.

Each keeps the place of every row. Knows no column's meaning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from truthgpt_serve.training.data.bad_rows import BadRows
from truthgpt_serve.training.data.rows import Row, describe
from truthgpt_serve.training.errors import TrainingError

PARQUET_BATCH_ROWS = 1024
"""Rows that are decoded at a time: enough to be quick, few enough for long texts."""


def read_text(file: Path, text_field: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields each line that is not blank as the column `text_field`."""
    for number, text in _lines(file, bad_rows):
        yield Row({text_field: text}, f"{file}:{number}")


def read_jsonl(file: Path, text_field: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the JSON object of each line that is not blank."""
    for number, text in _lines(file, bad_rows):
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


def _lines(file: Path, bad_rows: BadRows) -> Iterator[tuple[int, str]]:
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    bad_rows.report(f"{file}:{number}", f"is not UTF-8 text: {error.reason}")
    except OSError as error:
        raise TrainingError(f"{file}: cannot be read: {error.strerror}") from error


def read_parquet(file: Path, text_field: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the rows of a Parquet file; a place is `file: row n`, from 1.

    Raises:
        TrainingError: It is damaged: its rows cannot be told apart then.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as source:
            for batch in source.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{file}: row {number}")
    except (arrow.ArrowException, OSError) as error:
        where = f" after row {number}" if number else ""
        raise TrainingError(f"{file}: is not readable Parquet{where}: {error}") from error
