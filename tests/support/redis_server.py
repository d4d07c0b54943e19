"""A real Redis server on a port of its own."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

START_S = 20


class RedisServer:
    """A server that can be killed, stopped and started again at the same address.

    Args:
        folder: Where its socket stands.
        password: What clients must send; none if empty.
    """

    def __init__(self, folder: Path, password: str = "") -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("needs redis-server (Debian: apt-get install redis-server)")
        self.socket = folder / "redis.sock"
        user = f":{password}@" if password else ""
        self.url = f"unix://{user}{self.socket}"
        command = [program, "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self._command = [*command, *(["--requirepass", password] if password else [])]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it listens."""
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self.socket.exists():
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.01)

    def kill(self) -> None:
        """Kills it, also where it is stopped."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(START_S)
            self.process = None
