"""Keeps usage in an SQLite file, by hour, key and model, and adds it up for those who ask.

A batch that was taken is on the disk. A file that is damaged is set aside, and a new one begun.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

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

logger = logging.getLogger(__name__)

APPLICATION_ID = 0x74675573
"""In the file's head, so that another program's database is not taken for one of ours."""
VERSION = 1
HOURLY_DAYS = 40
"""Older hours are added up to days."""
MAX_ROWS = 4_000_000
"""Some 400 MB. With more, the oldest days are dropped before their time."""
BUSY_S = 2.0
"""How long another process may hold the file."""
QUERY_S = 10.0
SOURCE_DAYS = 30
"""How long the number of a process's last batch is remembered."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_INTERRUPT)
"""Errors after which the open file is as good as before."""
_FILES = ("", "-wal", "-shm")
_COUNTS = ", ".join(COUNTS)
_TABLES = f"""
CREATE TABLE usage (
    hour INTEGER NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    {", ".join(f"{name} NOT NULL" for name in COUNTS)},
    PRIMARY KEY (hour, key, model)
) WITHOUT ROWID;
CREATE TABLE sources (
    source TEXT PRIMARY KEY, sequence INTEGER NOT NULL, hour INTEGER NOT NULL
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""
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

T = TypeVar("T")


class StoreError(Exception):
    """The file cannot be used now; nothing was changed."""


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
        self.path = path
        self.keep_days = keep_days
        self._max_rows = max_rows
        self._clock = clock
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._tended_hour = -1

    def add(self, batch: Batch) -> bool:
        """Adds a batch; returns whether it is new: one that comes again is not counted again.

        Raises:
            StoreError: It cannot be kept now.
        """
        if len(batch.rows) > MAX_BATCH_ROWS:
            raise StoreError(f"a batch has at most {MAX_BATCH_ROWS} rows, not {len(batch.rows)}")
        return self._run(lambda database: self._add(database, batch))

    def query(self, query: UsageQuery) -> list[list[object]]:
        """Returns the groups in their order: what they have in common, and `COUNTS`.

        A day is its number since the epoch. Without groups there is one row.

        Raises:
            StoreError: The file cannot be read now, or it took too long.
        """
        return self._run(lambda database: _query(database, query))

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._disconnect()

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                try:
                    return work(self._connect())
                except sqlite3.DatabaseError as error:
                    if _code(error) not in _DAMAGE:
                        raise
                    self._disconnect()
                    self._set_aside(error)
                    return work(self._connect())
            except (sqlite3.Error, OSError) as error:
                if _code(error) not in _PASSING:
                    self._disconnect()
                reason = error.strerror if isinstance(error, OSError) else error
                raise StoreError(f"{self.path} cannot be used now: {reason}") from error

    def _connect(self) -> sqlite3.Connection:
        """Returns the open file; one that was taken away or replaced is opened anew."""
        if self._database is not None and _identity(self.path) != self._identity:
            logger.error("the usage file %s was taken away or replaced", self.path)
            self._disconnect()
        if self._database is None:
            self._database = _open(self.path)
            self._identity = _identity(self.path)
            self._tended_hour = -1
        return self._database

    def _disconnect(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _set_aside(self, error: sqlite3.Error) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self._clock()))
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{os.getpid()}")
        for suffix in _FILES:
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        logger.error(
            "the usage file %s is damaged (%s): it is set aside as %s, and a new one begins",
            self.path,
            error,
            aside.name,
        )

    def _add(self, database: sqlite3.Connection, batch: Batch) -> bool:
        hour = int(self._clock()) // HOUR_S
        with _transaction(database):
            found = database.execute(
                "SELECT sequence FROM sources WHERE source = ?", (batch.source,)
            ).fetchone()
            is_new = found is None or batch.sequence > found[0]
            if is_new:
                oldest = hour - self.keep_days * DAY_HOURS
                database.executemany(_ADD, _in_time(batch.rows, oldest, hour))
                database.execute(_NOTE, (batch.source, batch.sequence, hour))
        if hour != self._tended_hour:
            self._tended_hour = hour
            try:
                self._tend(database, hour)
            except sqlite3.OperationalError as error:  # a full disk: the batch is kept all the same
                logger.warning("the usage file %s is not tended: %s", self.path, error)
        return is_new

    def _tend(self, database: sqlite3.Connection, hour: int) -> None:
        """Drops what is too old, and adds the hours of old days up."""
        oldest = hour - self.keep_days * DAY_HOURS
        with _transaction(database):
            database.execute("DELETE FROM usage WHERE hour < ?", (oldest,))
            database.execute(
                "DELETE FROM sources WHERE hour < ?", (hour - SOURCE_DAYS * DAY_HOURS,)
            )
        before = (hour // DAY_HOURS - HOURLY_DAYS) * DAY_HOURS
        while day := _first_day_of_hours(database, before):
            with _transaction(database):
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
                self.path,
                self._max_rows,
                time.strftime("%Y-%m-%d", time.gmtime(first * HOUR_S)),
            )
            with _transaction(database):
                database.execute("DELETE FROM usage WHERE hour < ?", (until,))


def _open(path: Path) -> sqlite3.Connection:
    """Opens a file of ours, or makes one that only this user can read.

    Raises:
        sqlite3.Error: It cannot be opened, is damaged, or is not ours.
    """
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL").fetchone()
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA cache_size = -2000")  # 2 MB
        database.execute("PRAGMA journal_size_limit = 16777216")
        _prepare(database)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection) -> None:
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _damaged(found.splitlines()[-1])
    with _transaction(database):
        (own,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
        if not tables:
            for statement in filter(str.strip, _TABLES.split(";")):
                database.execute(statement)
        elif own != APPLICATION_ID:
            raise sqlite3.OperationalError("it is another program's database; name another file")
        elif version != VERSION:
            message = f"it has the form {version}, which this version does not know"
            raise sqlite3.OperationalError(f"{message}; name another file")


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")
        raise


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


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _damaged(message: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(message)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _code(error: Exception) -> int:
    """Returns SQLite's primary code of an error; -1 for one that has none."""
    code: int = getattr(error, "sqlite_errorcode", -1)
    return code if code < 0 else code & 0xFF
