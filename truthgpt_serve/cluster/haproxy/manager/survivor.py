"""The HAProxy that a manager of Ray Serve's left running when it died.

Ray ends the process group of a worker that died. HAProxy has one of its own here, and goes on with
the routes that it knows: the next manager takes it over instead of starting another beside it, and
its connections last.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

UNKNOWN_STATUS = 255
"""The exit status of a process that is nobody's child here; nothing tells the real one."""

_logger = logging.getLogger("ray.serve")


class Survivor:
    """A process that another one started, with what Ray uses of `asyncio.subprocess.Process`.

    Args:
        pid: The process; it must live.
        log: Where its output would be; Ray deletes such files when there are too many.

    Raises:
        OSError: It has ended, or the kernel is older than Linux 5.3.
    """

    def __init__(self, pid: int, log: str) -> None:
        self.pid = pid
        self._stdout_path = f"{log}.stdout.log"
        self._stderr_path = f"{log}.stderr.log"
        self._fd = os.pidfd_open(pid)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._fd)

    @property
    def returncode(self) -> int | None:
        """None while it lives."""
        return UNKNOWN_STATUS if select.select([self._fd], [], [], 0)[0] else None

    def kill(self) -> None:
        """Ends it at once; nothing happens if it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    async def wait(self) -> int:
        """Waits for its end."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        fd = os.dup(self._fd)  # a loop knows one reader for each, and several may wait
        loop.add_reader(fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        return UNKNOWN_STATUS


async def find_survivor(api: Any) -> Survivor | None:
    """Returns the HAProxy that serves already, if it answers.

    Args:
        api: Ray's `HAProxyApi`, before it has started one.
    """
    pid = await api._get_running_pid()
    if pid is None or not api._is_our_haproxy(pid):
        return None
    try:
        return Survivor(pid, f"{api.cfg.socket_path}.{api._log_id}.0")
    except OSError:  # it has ended, or this kernel has no such handle
        return None


def end_silent(api: Any) -> None:
    """Kills each HAProxy of this manager's files: none answers, and they hold the service's port.

    One that hangs would otherwise be given every second connection.

    Args:
        api: Ray's `HAProxyApi`, before it has started one.
    """
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        if api._is_our_haproxy(pid) and _is_haproxy(pid):
            _logger.warning("HAProxy (process %d) does not answer: it is killed", pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _is_haproxy(pid: int) -> bool:
    """Whether it runs HAProxy, or will in a moment: others may only read its file."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(argument.endswith(b"haproxy") for argument in arguments[:2])
