"""`serve.json` in a folder, by which another shell finds and stops the service."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from pathlib import Path
from typing import Any, TextIO

from truthgpt_serve.cluster.processes import end_run, read_process
from truthgpt_serve.cluster.service.console import say

STOP_S = 45.0
"""How long ending all processes of a run may take."""
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class RunFile:
    """The file and its lock.

    Args:
        folder: Where it lies; made when it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "serve.json"

    def lock(self) -> TextIO | None:
        """Takes the lock that the running service holds; None when it is held."""
        self.path.parent.mkdir(0o755, parents=True, exist_ok=True)
        lock = open(self.path.with_suffix(".lock"), "w")  # noqa: SIM115  the caller closes it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        return lock

    def read(self) -> dict[str, Any] | None:
        """Returns what the last `start` wrote, or None."""
        try:
            state: dict[str, Any] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        return state

    def read_running(self) -> dict[str, Any] | None:
        """Returns what a running service of this user, or of root, wrote, else None.

        Whoever writes the file says where API keys are sent: so it counts only in a folder, and
        as a file, that no other user can write, and for a process of the file's owner.

        Raises:
            KeyError, TypeError, ValueError: The file is not a service's.
        """
        try:
            with open(self.path) as file:
                found = [os.fstat(file.fileno()), self.path.parent.stat()]
                state: dict[str, Any] = json.load(file)
            process = read_process(int(state["pid"]))
            owner = os.stat(f"/proc/{int(state['pid'])}").st_uid
        except OSError:
            return None
        is_ours = all(
            one.st_uid in (0, os.geteuid()) and not one.st_mode & _WRITABLE_BY_OTHERS
            for one in found
        )
        is_same = process is not None and process.started == state["started"]
        return state if is_ours and is_same and owner == found[0].st_uid else None

    def write(self, run_id: str, ports: list[int], address: str) -> None:
        """Says that this process serves.

        Args:
            run_id: The run.
            ports: Those that it takes, the service's own first.
            address: Where clients on this machine reach the service.
        """
        me = read_process(os.getpid())
        state = {
            "run_id": run_id,
            "pid": os.getpid(),
            "started": me.started if me else 0,
            "ports": ports,
            "address": address,
        }
        work = self.path.with_suffix(".new")
        work.write_text(json.dumps(state))
        work.chmod(0o644)  # whatever the umask: see `read_running`
        work.replace(self.path)

    def remove(self) -> None:
        """Says that nothing runs."""
        self.path.unlink(missing_ok=True)

    def end_leftovers(self) -> None:
        """Ends what a killed `start` left behind."""
        state = self.read()
        if state is None:
            return
        if ended := end_run(state["run_id"], timeout_s=STOP_S):
            say(f"ended {ended} processes that an earlier run had left behind")
        self.remove()
