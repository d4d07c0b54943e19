"""Brings the error that ends an engine's process to the process in front of it.

vLLM says there only that the engine failed, and leaves the cause in its child's log.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "TRUTHGPT_ENGINE_ERROR_FILE"
"""Environment variable by which the engine's processes learn where to write."""

MAX_ERROR = 500
FOLLOWS_WITHIN_S = 10.0


class ErrorNote:
    """The file in which the engine's processes write the error that ends them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="truthgpt-engine-")
        self._path = Path(self._folder.name) / "error"
        os.environ[VARIABLE] = str(self._path)

    def read(self) -> str | None:
        """Returns the error in one line, or None."""
        with suppress(OSError):
            return self._path.read_text(errors="replace").strip() or None
        return None

    def close(self) -> None:
        """Removes the file."""
        self._folder.cleanup()


def note_errors() -> None:
    """Has this process write the exceptions that vLLM logs, if it is one of an engine's."""
    path = os.environ.get(VARIABLE)
    if path and multiprocessing.parent_process() is not None:
        logging.getLogger("vllm").addHandler(_LastError(Path(path)))


class _LastError(logging.Handler):
    def __init__(self, path: Path) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record's exception, unless it follows from one before it."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0][:MAX_ERROR]
        with suppress(OSError):
            if not self._follows():
                self._path.write_text(text)

    def _follows(self) -> bool:
        """Whether another exception was written just now: that is the cause of this one."""
        return self._path.exists() and time.time() - self._path.stat().st_mtime < FOLLOWS_WITHIN_S
