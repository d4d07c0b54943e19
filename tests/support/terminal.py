"""A program on a real pseudo-terminal: types what a user types, and reads what a user sees."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

LIMIT_S = 120.0
INTERRUPT_S = 5.0
"""Between two Ctrl-C."""


class Terminal:
    """One program on a terminal of its own.

    Args:
        command: The program with its arguments.
        env: Its environment.
        cwd: Its working directory.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str], cwd: Any = None) -> None:
        self._master, slave = pty.openpty()
        # A session of its own, whose terminal it is: else Ctrl-C would reach nobody.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**env, "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "40"},
            cwd=cwd,
        )
        os.close(slave)
        self.seen = ""
        self._from = 0

    def type(self, text: str) -> None:
        """Types a text; end it with a line break to send it."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str, limit_s: float = LIMIT_S) -> str:
        """Waits until a text is seen after what was waited for before; returns what was seen."""
        deadline = time.monotonic() + limit_s
        while (at := self.seen.find(text, self._from)) < 0:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.seen[-2000:]!r}"
            if not self._read(0.2) and self.process.poll() is not None:
                raise AssertionError(f"it ended; {text!r} is not in {self.seen[-2000:]!r}")
        start, self._from = self._from, at + len(text)
        return self.seen[start : self._from]

    def interrupt(self, text: str) -> None:
        """Types Ctrl-C until a text is seen: Python may miss one that comes between two waits."""
        deadline = time.monotonic() + LIMIT_S
        while self.seen.find(text, self._from) < 0:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.seen[-2000:]!r}"
            self.type("\x03")
            again_s = time.monotonic() + INTERRUPT_S
            while time.monotonic() < again_s and self.seen.find(text, self._from) < 0:
                self._read(0.1)
        self.wait_for(text)

    def _read(self, limit_s: float) -> bool:
        if not select.select([self._master], [], [], limit_s)[0]:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # its other end is closed
            return False
        self.seen += piece.decode(errors="replace")
        return bool(piece)

    def end(self) -> int:
        """Waits for its end; returns its exit status."""
        deadline = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.seen[-2000:]!r}"
            self._read(0.1)
        while self._read(0.0):
            pass
        return self.process.returncode

    def close(self) -> None:
        """Ends it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self._master)


@contextlib.contextmanager
def on_terminal(*command: str, env: dict[str, str], cwd: Any = None) -> Iterator[Terminal]:
    """Runs a program on a terminal while the block runs."""
    terminal = Terminal(command, env, cwd)
    try:
        yield terminal
    finally:
        terminal.close()
