"""Tries families in processes of their own: a library that crashes or hangs ends only its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from truthgpt_serve.contract import Probe

TIME_LIMIT_S = 240.0
"""Longest time for one family: its imports, a compiler that runs, a tiny model that starts."""
END_TIMEOUT_S = 10.0
Target = Mapping[str, Any] | None
"""A configuration as a nested dict, or None for all that the family offers."""


class Children:
    """The processes that run now, of whatever threads started them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_over = False

    @contextlib.contextmanager
    def running(self, command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Runs a process in a session of its own, which ends with the block.

        Raises:
            RuntimeError: None is to run any more.
        """
        with self._lock:
            if self._is_over:
                raise RuntimeError("the examination was ended")
            process = subprocess.Popen(command, start_new_session=True, **options)
            self._running.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._running.remove(process)
            _end(process)

    def end(self) -> None:
        """Ends them all, and has none start any more."""
        with self._lock:
            self._is_over = True
            for process in self._running:
                _kill(process)


def examine(
    family: str,
    targets: Sequence[Target],
    *,
    time_limit_s: float = TIME_LIMIT_S,
    children: Children | None = None,
) -> list[list[Probe]]:
    """Returns the probes of a family for each target, those before a crash included.

    Args:
        family: Its name in the registry.
        targets: What to try.
        time_limit_s: Longest time for one target.
        children: Gets the processes, to end them from elsewhere.
    """
    children = children or Children()
    found: list[list[Probe]] = []
    while len(found) < len(targets):
        rest = targets[len(found) :]
        ended, problem = _run(family, rest, time_limit_s * len(rest), children)
        if problem is not None:
            # The one that it died of; the others get a process of their own.
            last = ended[-1] if ended else []
            where = f" after the probe {last[-1].name!r}" if last else ""
            fix = "reinstall the library that the probe uses, or leave this family out"
            ended = [*ended[:-1], [*last, Probe("examination", False, f"{problem}{where}", fix)]]
        found += ended
    return found


def _run(
    family: str, targets: Sequence[Target], limit_s: float, children: Children
) -> tuple[list[list[Probe]], str | None]:
    """Runs one process; returns what it found, and how it died if it did not end by itself."""
    with tempfile.TemporaryDirectory(prefix="truthgpt-doctor-") as folder:
        out, log = Path(folder) / "probes.jsonl", Path(folder) / "log.txt"
        out.touch()
        request = {"family": family, "targets": list(targets)}
        problem = _call(request, out, log, limit_s, children)
        found, complete = _read(out.read_text(encoding="utf-8"))
        if problem is None and complete < len(targets):
            problem = f"its process ended early{_last_line(log)}"
        if problem is None or complete >= len(targets):
            return found[: len(targets)], None
        return [*found[:complete], found[complete] if complete < len(found) else []], problem


def _call(
    request: dict[str, Any], out: Path, log: Path, limit_s: float, children: Children
) -> str | None:
    with log.open("w") as file:
        # What it leaves behind when it is killed goes with this folder.
        environ = {**os.environ, "TMPDIR": str(out.parent)}
        with children.running(
            [sys.executable, "-m", "truthgpt_serve.doctor.child", str(out)],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environ,
        ) as process:
            try:
                process.communicate(json.dumps(request).encode(), timeout=limit_s)
            except subprocess.TimeoutExpired:
                return f"it did not end within {limit_s:g} s"
    code = process.returncode
    if code == 0:
        return None
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"its process died by {how}{_last_line(log)}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started."""
    _kill(process)
    process.wait(END_TIMEOUT_S)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills it; its engine's own processes are in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(text: str) -> tuple[list[list[Probe]], int]:
    """Returns the probes of each target that was begun, and how many targets were finished."""
    found: list[list[Probe]] = []
    complete = 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the process died while it wrote
            break
        while len(found) <= row["target"]:
            found.append([])
        if row.pop("end", False):
            complete = row["target"] + 1
        else:
            number = row.pop("target")
            found[number].append(Probe(**row))
    return found, complete


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f" ({lines[-1].strip()[:200]})" if lines else ""
