"""The SQLite file that usage is kept in: opened, checked, and set aside where it is damaged."""

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

from truthgpt_serve.usage.batch import COUNTS

logger = logging.getLogger(__name__)

APPLICATION_ID = 0x74675573
"""In the file's head, so that another program's database is not taken for one of ours."""
VERSION = 1
BUSY_S = 2.0
"""How long another process may hold the file."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_INTERRUPT)
"""Errors after which the open file is as good as before."""
_FILES = ("", "-wal", "-shm")
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

_COUNT_OURS = "SELECT COUNT(*) FROM sqlite_schema WHERE name IN ('usage', 'sources')"

Identity = tuple[int, int]
T = TypeVar("T")


class StoreError(Exception):
    """The file cannot be used now; nothing was changed."""


class UsageFile:
    """One file; its methods block, and may be called from any thread.

    Args:
        path: The file, which is made with its folder if it is not there.
        clock: The time, as `time.time` gives it.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._paths = [path.with_name(f"{path.name}{suffix}") for suffix in _FILES]
        self._database: sqlite3.Connection | None = None
        self._opened: dict[Path, Identity | None] = {}

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Returns what some work with the open file returns; one that is damaged is begun anew.

        Raises:
            StoreError: The file cannot be used now.
        """
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
        """Returns the open file; one that was taken away, emptied or replaced is opened anew."""
        if self._database is not None and (changed := self._find_changed()) is not None:
            logger.error("the usage file %s was taken away, emptied or replaced", changed)
            self._leave(self._database)
            self._disconnect()
        if self._database is None:
            self._database = _open(self.path)
            self._opened = {path: _identity(path) for path in self._paths}
        return self._database

    def _find_changed(self) -> Path | None:
        """Returns which of the open files is not at its path any more, or has nothing in it.

        Its journal counts too: SQLite writes on into one that was removed, where nobody finds it.
        """
        for path, identity in self._opened.items():
            if identity is not None and _identity(path) != identity:
                return path
        return self.path if self.path.stat().st_size == 0 else None

    def _leave(self, database: sqlite3.Connection) -> None:
        """Makes a file whole that was moved away or lost its journal, and removes its journal.

        SQLite would take that for the journal of the file that has come in its place.
        """
        with suppress(sqlite3.Error):
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for path in self._paths[1:]:
            identity = self._opened[path]
            if identity is not None and _identity(path) == identity:
                with suppress(OSError):
                    path.unlink()

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

    def close(self) -> None:
        """Closes the file; the next work opens it again."""
        with self._lock:
            self._disconnect()


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Keeps what the block does, or nothing of it where it raises."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")
        raise


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
    with transaction(database):
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
        elif database.execute(_COUNT_OURS).fetchone() != (2,):
            raise _damaged("it lacks a table")


def _identity(path: Path) -> Identity | None:
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
