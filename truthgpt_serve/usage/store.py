"""Keeps usage in an SQLite file, by hour, key and model, and adds it up for those who ask.

A batch that was taken is on the disk. A file that is damaged is set aside, and a new one begun.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from truthgpt_serve.usage.batch import (
    COUNTS,
    DAY_HOURS,
    HOUR_S,
    KEEP_DAYS,
    MAX_BATCH_ROWS,
    Batch,
    Row,
    UsageQuery,
)
from truthgpt_serve.usage.database import StoreError, UsageFile, transaction

logger = logging.getLogger(__name__)

HOURLY_DAYS = 40
"""Older hours are added up to days."""
MAX_ROWS = 4_000_000
"""Some 400 MB. With more, the oldest days are dropped before their time."""
QUERY_S = 10.0
_TOO_LONG = f"adding it up takes more than {QUERY_S:g} s: ask for less time, or fewer groups"
SOURCE_DAYS = 30
"""How long the number of a process's last batch is remembered."""
_CLOCK = "-clock"
"""Among the sources, the hour that it was when the file was last tended; no process has this name.
From one time to the next it goes on by a day at most, so that a clock that is wrong for a while
does not drop all that is older than its time."""
_FIRST_HOUR = 490_896
"""2026-01-01: a clock before that is one that nobody has set yet."""
_COUNTS = ", ".join(COUNTS)
_ADDED = ", ".join(f"{name} = {name} + excluded.{name}" for name in COUNTS)
_ADD = f"""
INSERT INTO usage (hour, key, model, {_COUNTS}) VALUES ({", ".join("?" * (3 + len(COUNTS)))})
ON CONFLICT DO UPDATE SET {_ADDED}
"""
_NOTE = """
INSERT INTO sources (source, sequence, hour) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET sequence = excluded.sequence, hour = excluded.hour
"""
_ADD_UP = f"""
INSERT INTO usage (hour, key, model, {_COUNTS})
SELECT hour - hour % {DAY_HOURS}, key, model, {", ".join(f"SUM({name})" for name in COUNTS)}
FROM usage WHERE hour % {DAY_HOURS} > 0 AND hour >= ? AND hour < ? GROUP BY 1, 2, 3
ON CONFLICT DO UPDATE SET {_ADDED}
"""
_COLUMNS = {"day": f"hour / {DAY_HOURS}", "key": "key", "model": "model"}


class UsageStore:
    """The usage in one file; its methods block, and may be called from any thread.

    Args:
        path: The file, which is made with its folder if it is not there.
        keep_days: Days after which usage is dropped.
        max_rows: Most rows that are kept.
        clock: The time, as `time.time` gives it.
    """

    def __init__(
        self,
        path: Path,
        keep_days: int = KEEP_DAYS,
        *,
        max_rows: int = MAX_ROWS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.keep_days = keep_days
        self._max_rows = max_rows
        self._clock = clock
        self._file = UsageFile(path, clock)
        self._tended: tuple[sqlite3.Connection, int] | None = None

    def add(self, batch: Batch) -> bool:
        """Adds a batch; returns whether it is new: one that comes again is not counted again.

        Raises:
            StoreError: It cannot be kept now.
        """
        if len(batch.rows) > MAX_BATCH_ROWS:
            raise StoreError(f"a batch has at most {MAX_BATCH_ROWS} rows, not {len(batch.rows)}")
        return self._file.run(lambda database: self._add(database, batch))

    def query(self, query: UsageQuery) -> list[list[object]]:
        """Returns the groups in their order: what they have in common, and `COUNTS`.

        A day is its number since the epoch. Without groups there is one row.

        Raises:
            StoreError: The file cannot be read now, or it took too long.
        """
        return self._file.run(lambda database: _query(database, query))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, database: sqlite3.Connection, batch: Batch) -> bool:
        with transaction(database):
            hour = int(self._clock()) // HOUR_S
            if hour < _FIRST_HOUR:
                hour = _tended_hour(database) or _FIRST_HOUR
            found = database.execute(
                "SELECT sequence FROM sources WHERE source = ?", (batch.source,)
            ).fetchone()
            is_new = found is None or batch.sequence > found[0]
            if is_new:
                oldest = hour - self.keep_days * DAY_HOURS
                database.executemany(_ADD, _in_time(batch.rows, oldest, hour))
                database.execute(_NOTE, (batch.source, batch.sequence, hour))
        if (database, hour) != self._tended:
            self._tended = database, hour
            try:
                self._tend(database, hour)
            except sqlite3.OperationalError as error:  # a full disk: the batch is kept all the same
                logger.warning("the usage file %s is not tended: %s", self._file.path, error)
        return is_new

    def _tend(self, database: sqlite3.Connection, hour: int) -> None:
        """Drops what is too old, and adds the hours of old days up."""
        with transaction(database):
            former = _tended_hour(database)
            now = hour if former is None else min(hour, former + DAY_HOURS)
            database.execute(_NOTE, (_CLOCK, 0, now))
            oldest = now - self.keep_days * DAY_HOURS
            database.execute("DELETE FROM usage WHERE hour < ?", (oldest,))
            database.execute("DELETE FROM sources WHERE hour < ?", (now - SOURCE_DAYS * DAY_HOURS,))
        before = (now // DAY_HOURS - HOURLY_DAYS) * DAY_HOURS
        while day := _first_day_of_hours(database, before):
            with transaction(database):
                database.execute(_ADD_UP, day)
                database.execute(
                    f"DELETE FROM usage WHERE hour % {DAY_HOURS} > 0 AND hour >= ? AND hour < ?",
                    day,
                )
        while database.execute("SELECT COUNT(*) FROM usage").fetchone()[0] > self._max_rows:
            (first,) = database.execute("SELECT MIN(hour) FROM usage").fetchone()
            until = (first // DAY_HOURS + 1) * DAY_HOURS
            logger.error(
                "the usage file %s has more than %d rows: the day %s is dropped",
                self._file.path,
                self._max_rows,
                time.strftime("%Y-%m-%d", time.gmtime(first * HOUR_S)),
            )
            with transaction(database):
                database.execute("DELETE FROM usage WHERE hour < ?", (until,))


def _tended_hour(database: sqlite3.Connection) -> int | None:
    """Returns the hour when the file was last tended, or None."""
    found = database.execute("SELECT hour FROM sources WHERE source = ?", (_CLOCK,)).fetchone()
    return None if found is None else int(found[0])


def _query(database: sqlite3.Connection, query: UsageQuery) -> list[list[object]]:
    columns = [_COLUMNS[name] for name in query.group_by]
    sums = [f"COALESCE(SUM({name}), 0)" for name in COUNTS]
    grouped = f"GROUP BY {', '.join(columns)} ORDER BY {', '.join(columns)}" if columns else ""
    statement = (
        f"SELECT {', '.join([*columns, *sums])} FROM usage WHERE hour >= ? AND hour < ? {grouped} "
        "LIMIT ?"
    )
    until_s = time.monotonic() + QUERY_S
    database.set_progress_handler(lambda: time.monotonic() > until_s, 100_000)
    try:
        found = database.execute(statement, (query.start_hour, query.end_hour, query.limit))
        return [list(row) for row in found]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise StoreError(_TOO_LONG) from error
        raise
    finally:
        database.set_progress_handler(None, 0)


def _in_time(rows: list[Row], oldest: int, hour: int) -> list[tuple[object, ...]]:
    """Counts now what a wrong clock puts into the future, or before the time that is kept."""
    return [(row[0] if oldest <= row[0] <= hour + 1 else hour, *row[1:]) for row in rows]


def _first_day_of_hours(database: sqlite3.Connection, before: int) -> tuple[int, int] | None:
    """Returns the first and last hour but one of the oldest day that still has its hours."""
    (first,) = database.execute(
        f"SELECT MIN(hour) FROM usage WHERE hour < ? AND hour % {DAY_HOURS} > 0", (before,)
    ).fetchone()
    if first is None:
        return None
    start = first // DAY_HOURS * DAY_HOURS
    return start, start + DAY_HOURS
