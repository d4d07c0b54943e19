"""Finds and ends every process of one run, however Ray, HAProxy and the engines were started.

A run is whatever inherited one environment variable, and its descendants.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

RUN_ID_VARIABLE = "TRUTHGPT_RUN_ID"
"""Set it before Ray starts: Ray, its workers, HAProxy and the engines hand it down."""

POLL_S = 0.05
SCAN_S = 0.5
"""How often a run that ends is looked for among all processes."""
TERMINATE_S = 3.0
"""How long a process may take to leave after SIGTERM before it is killed."""


@dataclass(frozen=True, slots=True)
class Process:
    """A live process; `started` (clock ticks after boot) tells it from a later one with its pid."""

    pid: int
    parent: int
    started: int
    command: str


def create_run_environment(run_id: str) -> dict[str, str]:
    """Returns the variables that a process must have for its run to be found again.

    `SPT_NOENV` keeps `setproctitle`, which Ray and vLLM call, from overwriting the memory that
    `/proc/<pid>/environ` shows.
    """
    return {RUN_ID_VARIABLE: run_id, "SPT_NOENV": "1"}


def create_run_id() -> str:
    """Returns a new run id."""
    return uuid.uuid4().hex


def read_process(pid: int) -> Process | None:
    """Returns the process, or None when it is gone or a zombie that holds no files any more.

    Read here and not by psutil, for two reasons. psutil calls a process a zombie, and shows no more
    of it, while threads of it still hold its ports. And its time of a start changes with the
    system's clock, so that one written to a file would later not be the same.
    """
    stat = _read_stat(pid)
    if stat is None:
        return None
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    title = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, stat.parent, stat.started, title or stat.name)


class _Stat(NamedTuple):
    name: str
    parent: int
    started: int


def _read_stat(pid: int) -> _Stat | None:
    """Reads what tells one process from another, without Python's files: it is asked often."""
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        stat = os.read(file, 4096).decode(errors="replace")
    except OSError:  # it ended meanwhile
        return None
    finally:
        os.close(file)
    # The second field is the program's name in brackets, and may itself hold brackets and spaces.
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    # A zombie with threads left is a process whose first thread ended first: its files are open.
    if fields[0] in "ZX" and int(fields[17]) <= 1:
        return None
    return _Stat(name, int(fields[1]), int(fields[19]))


def _processes() -> list[Process]:
    return [process for process in map(read_process, psutil.pids()) if process is not None]


def read_arguments(pid: int) -> list[str]:
    """Returns the arguments or the title of a process; empty when it is gone."""
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def read_environment(pid: int) -> dict[str, str]:
    """Returns what a process was started with; empty when it is gone or another user's."""
    try:
        return psutil.Process(pid).environ()
    except psutil.Error:
        return {}


def _read_marks(pid: int) -> list[bytes]:
    """Returns the environment unread: what asks all processes must not take long."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def is_set_anywhere(name: str, value: str) -> bool:
    """Returns whether another live process was started with this variable."""
    own = os.getpid()
    return any(pid != own and read_environment(pid).get(name) == value for pid in psutil.pids())


def find_run(run_id: str, known: Iterable[Process] = ()) -> list[Process]:
    """Returns the live processes of a run, without the calling one.

    `known` were found before: a dying process gives up its memory, and the marker in it, before
    its files, so that its ports are open while nothing shows whose it was.
    """
    processes = _processes()
    same = {(process.pid, process.started) for process in known}
    found = {process.pid for process in processes if (process.pid, process.started) in same}
    mark = f"{RUN_ID_VARIABLE}={run_id}".encode()
    found |= {process.pid for process in processes if mark in _read_marks(process.pid)}
    size = -1
    while size != len(found):
        size = len(found)
        found |= {process.pid for process in processes if process.parent in found}
    found.discard(os.getpid())
    return [process for process in processes if process.pid in found]


def send_signal(process: Process, number: signal.Signals) -> bool:
    """Signals a process if it is still the same one; returns whether it was there."""
    if not is_alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_for_end(run_id: str, timeout_s: float, known: Iterable[Process] = ()) -> list[Process]:
    """Waits until a run has no process; returns those that are left when the time is over.

    Looks at the known ones often, and for others, which takes 15 times as long, now and then.
    """
    deadline = time.monotonic() + timeout_s
    left = find_run(run_id, known)
    scanned_s = time.monotonic()
    while left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        alive = [process for process in left if is_alive(process)]
        if not alive or time.monotonic() - scanned_s > SCAN_S:
            left = find_run(run_id, left)
            scanned_s = time.monotonic()
        else:
            left = alive
    return left


def is_alive(process: Process) -> bool:
    """Returns whether a process is still there, and may have its ports open.

    Compare no `Process` for that: the title changes, and one that dies has none any more.
    """
    present = _read_stat(process.pid)
    return present is not None and present.started == process.started


def end_run(
    run_id: str,
    *,
    timeout_s: float = 30.0,
    leader: Process | None = None,
    grace_s: float = 0.0,
    known: Iterable[Process] = (),
) -> int:
    """Ends all processes of a run.

    Args:
        run_id: The value of `TRUTHGPT_RUN_ID` that they inherited.
        timeout_s: Limit for the whole call.
        leader: The process that knows how to end the run in good order on SIGINT (`serve run`).
        grace_s: How long it has for that; then all get SIGTERM, and SIGKILL 3 s later.
        known: Processes of the run that were found before; see `find_run`.

    Returns:
        How many processes the run had when the call began.

    Raises:
        TimeoutError: Some are left, which the message names.
    """
    deadline = time.monotonic() + timeout_s
    present = find_run(run_id, known)
    left = present
    if left and leader is not None and grace_s > 0 and send_signal(leader, signal.SIGINT):
        left = wait_for_end(run_id, min(grace_s, timeout_s), left)
    if left:
        _signal_all(left, signal.SIGTERM)
        left = wait_for_end(run_id, min(TERMINATE_S, max(0.0, deadline - time.monotonic())), left)
    while left:
        # Again and again, because a supervisor may start another child before it dies itself.
        _signal_all(left, signal.SIGKILL)
        left = wait_for_end(run_id, 0.5, left)
        if left and time.monotonic() > deadline:
            names = ", ".join(f"{process.pid} ({process.command[:60]})" for process in left)
            raise TimeoutError(f"still alive {timeout_s:g} s after the run was ended: {names}")
    return len(present)


def _signal_all(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(PermissionError):  # reported by the caller's time limit
            send_signal(process, number)
