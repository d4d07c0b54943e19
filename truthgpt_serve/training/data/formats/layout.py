"""A recognized format: which columns are read, and what each row becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from truthgpt_serve.training.data.inventory import listed, shown
from truthgpt_serve.training.data.rows import Row, without_nulls

Values = Mapping[str, Any]
"""The columns of a row."""
Columns = Mapping[str, str]
"""For each part of an example, such as `messages` or `system`, the column that holds it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One example in its method's form.

    Attributes:
        values: Its parts: `text`, `messages`, `prompt`, `completion`, `label`, ... and `tools`.
        names: The column that each of them comes from, for messages of errors.
    """

    values: dict[str, Any]
    names: Columns = field(default_factory=dict)

    def name(self, part: str) -> str:
        """Returns the column that a part comes from."""
        return self.names.get(part, part)


Find = Callable[[Values, Columns], Columns | None]
Convert = Callable[[Values, Columns, bool], Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write examples.

    Attributes:
        name: As `data.format` writes it.
        needs: Its columns in words.
        find: Takes a row and the columns that the configuration names; returns the columns that
            the format reads, or None if the row has not got them.
        convert: Takes a row, the columns and whether the model has a chat template; returns the
            examples of the row. Raises `BadRow` for a row that is none.
        reads_all: Whether the columns that are no part of it are kept too.
    """

    name: str
    needs: str
    find: Find
    convert: Convert
    reads_all: bool = False


MAX_SHAPES = 1000
"""Sets of columns that are remembered: a data set has few, a broken one as many as rows."""


class Layout:
    """How the rows of one data set are read.

    Args:
        chosen: What was recognized, or named by `data.format`.
        columns: See `Columns`.
        given: The columns that the configuration names.
        is_given: Whether `data.format` names the format.
        others: Names of other formats that would fit the columns too.
        has_template: Whether the model renders chats.
    """

    def __init__(
        self,
        chosen: Format,
        columns: Columns,
        given: Columns,
        *,
        is_given: bool,
        others: Sequence[str],
        has_template: bool,
    ) -> None:
        self.format = chosen
        self.columns = columns
        self._given = given
        self._is_given = is_given
        self._others = others
        self._has_template = has_template
        self._shapes: dict[tuple[str, ...], Columns] = {}
        self._unread: dict[str, None] = {}

    def samples(self, row: Row) -> Sequence[Sample]:
        """Returns the examples of a row.

        Raises:
            BadRow: It is none of this format.
        """
        values, columns = row.values, self._columns_of(row.values)
        if row.fills_nulls:
            # A template may take a key that is null for one that is given.
            used = {c: without_nulls(values[c]) for c in columns.values() if c in values}
            values = {**values, **used}
        return self.format.convert(values, columns, self._has_template)

    def _columns_of(self, values: Values) -> Columns:
        """Returns the columns to read: a row may have optional ones that the first had not."""
        shape = tuple(values)
        if shape not in self._shapes:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            more = self.format.find(values, self._given) or {}
            self._shapes[shape] = columns = {**more, **self.columns}
            if not self.format.reads_all and len(self._unread) < MAX_SHAPES:
                used = set(columns.values())
                self._unread.update(dict.fromkeys(name for name in shape if name not in used))
        return self._shapes[shape]

    def lines(self) -> list[str]:
        """Returns the lines of the plan that say what is read, and why."""
        columns = listed([repr(column) for column in dict.fromkeys(self.columns.values())])
        why = "as data.format says, from" if self._is_given else "recognized by"
        line = f"format   {self.format.name}: {why} the columns {columns}"
        if self._others:
            line += f" (data.format: {' or '.join(self._others)} would fit too)"
        if self._unread:
            line += f"; not read: {listed([repr(name) for name in self._unread])}"
        return [shown(line)]
