"""Files of results: opened before a measurement, and whole or not there after it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from truthgpt_serve.bench.target import BenchError


class ResultFile:
    """A file that is written once, at the end; what is there before stays until then.

    Args:
        path: The file. One that is no regular file, such as a pipe, is written as it is.

    Raises:
        BenchError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = self._target = path
        self._work: Path | None = None
        try:
            before = path.stat() if path.exists() else None
            if before is not None and stat.S_ISDIR(before.st_mode):  # as `.` is, for ""
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if before is None or stat.S_ISREG(before.st_mode):
                self._target = path.resolve()  # a link stays a link
                self._open(before)
        except OSError as error:
            raise self._fault(error) from error

    def _open(self, before: os.stat_result | None) -> None:
        if before is not None:
            with open(self._target, "ab"):  # raises where it may not be written
                pass
        work = self._target.with_name(f".truthgpt-bench-{uuid4().hex}.new")
        try:
            os.close(os.open(work, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except PermissionError:
            if before is None:
                raise
            return  # the file may be written, although its folder may not
        self._work = work
        if before is not None:
            work.chmod(stat.S_IMODE(before.st_mode))

    def write(self, text: str) -> None:
        """Writes the file.

        Raises:
            BenchError: It cannot be written; what was there before is there still, unless the
                folder takes no other files.
        """
        try:
            if self._work is None:
                self._target.write_text(text, encoding="utf-8")
                return
            with open(self._work, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            self._work.replace(self._target)
            self._work = None
        except OSError as error:
            raise self._fault(error) from error

    def close(self) -> None:
        """Removes what is left where nothing was written."""
        work, self._work = self._work, None
        if work is not None:
            with suppress(OSError):
                work.unlink(missing_ok=True)

    def _fault(self, error: OSError) -> BenchError:
        return BenchError(f"{self.path} cannot be written: {error.strerror or error}")


@contextmanager
def result_file(path: Path) -> Iterator[ResultFile]:
    """Opens a file of results for the body, which may write it.

    Raises:
        BenchError: It cannot be written.
    """
    file = ResultFile(path)
    try:
        yield file
    finally:
        file.close()
