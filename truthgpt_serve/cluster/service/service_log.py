"""The file that takes what Ray, Ray Serve and the engines print; it is bounded and kept private."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

NAME = "service.log"
MAX_BYTES = 32 << 20
"""A longer file becomes the one before it, `service.log.1`."""
TAIL_BYTES = 256 << 10
MAX_LINE_BYTES = 64 << 10
READ_BYTES = 1 << 20
"""Most that is read at a time."""


class ServiceLog:
    """The file, written by the service and read by the process that watches it.

    The processes append to the file, so it can be truncated while they write.

    Args:
        folder: Where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._position = 0
        self._rest = b""

    @contextmanager
    def open_for_writing(self, *, fresh: bool) -> Iterator[BinaryIO]:
        """Opens it for a process that appends to it.

        Args:
            fresh: Whether to begin a new file and to keep the one before.
        """
        if fresh:
            self._keep()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        with os.fdopen(os.open(self.path, flags, 0o600), "ab", buffering=0) as file:
            yield file

    def _keep(self) -> None:
        if self.path.exists():
            self.path.replace(self.path.with_name(f"{NAME}.1"))
        self._position, self._rest = 0, b""

    def read_new(self) -> list[str]:
        """Returns the lines that were written since the last call; begins a new file if it is long.

        What is written while the file is truncated may be lost.
        """
        try:
            with self.path.open("rb+") as file:
                file.seek(self._position)
                data = file.read(READ_BYTES)
                self._position = file.tell()
                if not data and self._position > MAX_BYTES:
                    shutil.copyfile(self.path, self.path.with_name(f"{NAME}.1"))
                    file.truncate(0)
                    self._position = 0
        except OSError:  # the disk is full, or somebody removed it: the service goes on
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-MAX_LINE_BYTES:]
        return [line.decode(errors="replace") for line in lines]

    def tail(self) -> list[str]:
        """Returns the last lines that are not empty."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()]
