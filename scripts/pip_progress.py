"""Runs pip or uv and shows what it does: packages, megabytes, minutes. Needs only Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO

LINE_PERIOD_S = 15.0
"""How often a line appears where the output is no terminal."""
TERMINAL_PERIOD_S = 0.5
MAX_CAUSE_LINES = 15
MAX_LINES = 200

_FOUND = re.compile(r"(?:Collecting|Processing) (\S+)")
_SIZE = re.compile(r"(?:Downloading|Using cached) (\S+) \((\d+(?:\.\d+)?) ([kMG]?B)\)")
_INSTALLING = re.compile(r"Installing collected packages: (.+)")
_ERROR = re.compile(r" *(?:ERROR|error:| *\u00d7)")
_MEGABYTES = {"B": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}
_UV_RESOLVED = re.compile(r"Resolved (\d+) packages? in")
_UV_FETCHING = re.compile(r"Downloading (\S+) \((\d+(?:\.\d+)?)([KMG]iB)\)")
_UV_FETCHED = re.compile(r"Downloaded (\S+)")
_UV_PREPARED = re.compile(r"Prepared \d+ packages? in")
_UV_MEGABYTES = {"KiB": 1.024e-3, "MiB": 1.049, "GiB": 1074.0}


class Progress:
    """What pip has said so far.

    Args:
        site: The folder that pip installs into, whose entries show how far it is.
        expected: About how many packages there will be; 0 when that is unknown.
    """

    def __init__(self, site: Path, expected: int = 0) -> None:
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        self._site = site
        self._expected = expected
        self._num_found = 0
        self._megabytes = 0.0
        self._file = ""
        self._total = 0
        self._before = 0
        self._started_s = time.monotonic()

    def take(self, line: str) -> None:
        """Reads one line of pip's."""
        self.lines.append(line.rstrip())
        line = line.strip()
        if match := _SIZE.match(line):
            name, number, unit = match.groups()
            if not name.endswith(".metadata"):
                self._megabytes += float(number) * _MEGABYTES[unit]
                self._file = f"{name.split('-')[0]} ({number} {unit})"
        elif _FOUND.match(line):
            self._num_found += 1
        elif match := _INSTALLING.match(line):
            self._total = len(match.group(1).split(","))
            self._before = self._count()

    def describe(self) -> str:
        """Returns one line on what happens now."""
        clock = _clock(self._started_s)
        if self._total:
            done = min(self._total, max(0, self._count() - self._before))
            return f"installing package {done} of {self._total}, {clock}"
        of = f" of about {self._expected}" if self._expected >= self._num_found else ""
        size = _size(self._megabytes)
        now = f", now {self._file}" if self._file else ""
        return f"fetching package {self._num_found}{of}, {size}{now}, {clock}"

    def _count(self) -> int:
        return sum(1 for _ in self._site.glob("*.dist-info"))


class UvProgress:
    """What uv has said so far. It names the large files, several of which it fetches at a time."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        self._num_found = 0
        self._megabytes: dict[str, float] = {}
        self._fetched: set[str] = set()
        self._is_prepared = False
        self._started_s = time.monotonic()

    def take(self, line: str) -> None:
        """Reads one line of uv's."""
        self.lines.append(line.rstrip())
        line = line.strip()
        if match := _UV_RESOLVED.match(line):
            self._num_found = int(match.group(1))
        elif match := _UV_FETCHING.match(line):
            name, number, unit = match.groups()
            self._megabytes[name] = float(number) * _UV_MEGABYTES[unit]
        elif match := _UV_FETCHED.match(line):
            self._fetched.add(match.group(1))
        elif _UV_PREPARED.match(line):
            self._is_prepared = True

    def describe(self) -> str:
        """Returns one line on what happens now."""
        clock = _clock(self._started_s)
        if not self._num_found:
            return f"looking up packages, {clock}"
        if self._is_prepared:
            return f"installing {self._num_found} packages, {clock}"
        done = sum(size for name, size in self._megabytes.items() if name in self._fetched)
        total = sum(self._megabytes.values())
        return f"fetching {self._num_found} packages, {_size(done)} of {_size(total)}, {clock}"


def _clock(started_s: float) -> str:
    seconds = int(time.monotonic() - started_s)
    return f"{seconds // 60}:{seconds % 60:02d}"


def _size(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def run_pip(
    command: list[str],
    cwd: Path,
    progress: Progress | UvProgress,
    log: Path,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Runs pip or uv, shows its progress, and writes all that it says to `log`.

    Returns its status.
    """
    with log.open("a") as file, subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env={**os.environ, **(variables or {})},
    ) as pip:  # fmt: skip
        assert pip.stdout is not None
        reader = threading.Thread(target=_read, args=(pip.stdout, progress, file), daemon=True)
        reader.start()
        try:
            _show_until_end(pip, progress)
        except BaseException:
            pip.kill()
            raise
        reader.join(5.0)
    return pip.returncode


def _read(output: IO[str], progress: Progress | UvProgress, file: IO[str]) -> None:
    for line in output:
        file.write(line)
        progress.take(line)


def _show_until_end(pip: subprocess.Popen[str], progress: Progress | UvProgress) -> None:
    is_terminal = sys.stdout.isatty()
    period_s = TERMINAL_PERIOD_S if is_terminal else LINE_PERIOD_S
    while True:
        try:
            pip.wait(period_s)
            break
        except subprocess.TimeoutExpired:
            line = f"[install] {progress.describe()}"
            if is_terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\033[K{line[:width]}", end="", flush=True)
            else:
                print(line, flush=True)
    if is_terminal:
        print("\r\033[K", end="", flush=True)


def find_cause(lines: deque[str]) -> list[str]:
    """Returns pip's or uv's last lines from the first error on."""
    kept = [line for line in lines if line.strip()]
    first = next((at for at, line in enumerate(kept) if _ERROR.match(line)), None)
    start = max(0, len(kept) - MAX_CAUSE_LINES)
    if first is not None:
        start = max(0, min(first, len(kept) - 3))
    return kept[start : start + MAX_CAUSE_LINES]
