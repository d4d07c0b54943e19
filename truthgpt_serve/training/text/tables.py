"""Prepared examples on disk: written once, then read by every worker as memory that is mapped.

A table is there whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import pyarrow as arrow

from truthgpt_serve.training.data import BadRow
from truthgpt_serve.training.errors import TrainingError

BATCH_ROWS = 1000
JSON = datasets.Json()
_IDS = arrow.list_(arrow.int32())
TOKENS = arrow.schema([("input_ids", _IDS), ("labels", _IDS)])
SCHEMAS = {
    "tokens": TOKENS,
    "comparisons": arrow.schema([("chosen_ids", _IDS), ("rejected_ids", _IDS)]),
    "classes": arrow.schema([("input_ids", _IDS), ("label", arrow.string())]),
    "sentences": arrow.schema(
        [
            ("first_ids", _IDS),
            ("second_ids", _IDS),
            ("third_ids", _IDS),
            ("score", arrow.float64()),
        ]
    ),
}
"""The columns of a table by `Method.rows`; those of others hold JSON."""


class TableWriter:
    """Writes rows as an Arrow stream; a context manager, after which the table is in its place.

    Args:
        file: Where to.
        schema: The columns; by default those that the first thousand rows have, each value as JSON:
            those of one column may be of several kinds.
    """

    def __init__(self, file: Path, schema: arrow.Schema | None = None) -> None:
        self.num_rows = 0
        self._file = file
        self._unfinished = file.with_name(f".{file.name}.part")
        self._schema = schema
        self._is_typed = schema is not None
        self._rows: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._stream: Any = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds one row.

        Raises:
            TrainingError: The disk is full.
            BadRow: The row has a column that the first ones do not have, or a value that cannot be
                kept.
        """
        self._rows.append(dict(row) if self._is_typed else self._as_json(row))
        self.num_rows += 1
        if len(self._rows) == BATCH_ROWS:
            self._write()

    def _as_json(self, row: Mapping[str, Any]) -> dict[str, str]:
        new = [name for name in row if self._schema is not None and name not in self._schema.names]
        if new:
            raise BadRow(f"has a column {new[0]!r} that the first {BATCH_ROWS} rows do not have")
        found = {}
        for name, value in row.items():
            try:
                found[name] = json.dumps(value, default=_plain)
                JSON.decode_example(found[name])  # it takes no number beyond 64 bits
            except (TypeError, ValueError, RecursionError) as error:
                raise BadRow(f"{name!r} cannot be kept: {error}") from error
        return found

    def _write(self) -> None:
        try:
            if self._stream is None:
                self._schema = self._schema or _json_schema(self._rows)
                self._file.parent.mkdir(parents=True, exist_ok=True)
                sink = self._stack.enter_context(arrow.OSFile(str(self._unfinished), "wb"))
                self._stream = self._stack.enter_context(arrow.ipc.new_stream(sink, self._schema))
            self._stream.write_table(arrow.Table.from_pylist(self._rows, schema=self._schema))
        except (OSError, arrow.ArrowException) as error:
            raise TrainingError(f"{self._file}: cannot be written: {error}") from error
        self._rows = []

    def __enter__(self) -> TableWriter:
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Puts the table into its place, or removes it after an error."""
        try:
            if kind is None:
                self._write()
        finally:
            self._stack.close()
            if kind is not None:
                self._unfinished.unlink(missing_ok=True)
        if kind is None:
            self._unfinished.replace(self._file)


def _json_schema(rows: list[dict[str, Any]]) -> arrow.Schema:
    names = dict.fromkeys(name for row in rows for name in row)
    return datasets.Features({name: JSON for name in names}).arrow_schema


def _plain(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("it holds bytes")
    return str(value)  # a date, a decimal number


def read_table(file: Path) -> datasets.Dataset:
    """Returns the rows of a table without reading them into memory."""
    return datasets.Dataset.from_file(str(file))
