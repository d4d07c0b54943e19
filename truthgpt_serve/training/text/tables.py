"""Prepared examples on disk: written once, then read by every worker as memory that is mapped.

Knows no tokenizer; a table is there whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import pyarrow as arrow

from truthgpt_serve.training.errors import TrainingError

BATCH_ROWS = 1000
TOKENS = arrow.schema(
    [("input_ids", arrow.list_(arrow.int32())), ("labels", arrow.list_(arrow.int32()))]
)


class TableWriter:
    """Writes rows as an Arrow stream; a context manager, after which the table is in its place.

    Args:
        file: Where to.
        schema: The columns; by default those that the first thousand rows have.
    """

    def __init__(self, file: Path, schema: arrow.Schema | None = None) -> None:
        self.num_rows = 0
        self._file = file
        self._unfinished = file.with_name(f".{file.name}.part")
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._stream: Any = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds one row.

        Raises:
            TrainingError: The disk is full, or a column changes its type after the first rows.
        """
        self._rows.append(dict(row))
        self.num_rows += 1
        if len(self._rows) == BATCH_ROWS:
            self._write()

    def _write(self) -> None:
        try:
            if self._stream is None:
                self._schema = self._schema or arrow.Table.from_pylist(self._rows).schema
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


def read_table(file: Path) -> datasets.Dataset:
    """Returns the rows of a table without reading them into memory."""
    return datasets.Dataset.from_file(str(file))
