"""Checks a Serve file and its models, then runs it as `serve run` does: `serve_run.py FILE URL`.

Checking and importing Ray Serve take a second each, so they go on side by side. Exits with 2 after
the faults of a wrong file, which `serve run` alone would go on with.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

from truthgpt_serve.cluster.service.progress import MARK
from truthgpt_serve.cluster.service.ray_idle import lighten_ray
from truthgpt_serve.cluster.service.ray_limits import lengthen_limits
from truthgpt_serve.cluster.service.ray_worker import change_imports

PROGRESS_S = 10.0
"""How often a check that takes long says what it waits for."""
NOTE = "note: "
"""How the check's lines begin that are worth to be read even when nothing is wrong."""
READ_S = 5.0
"""How long the check's last lines may take: what it started may hold its output open."""
WRONG_FILE = 2
"""Exit status after a check that failed."""
INTERRUPTED = 130


def program(name: str) -> str:
    """Returns a program of the environment that runs this file."""
    return str(Path(sys.executable).with_name(name))


def load_checked(config: str) -> Any:
    """Returns what `serve` runs; prints the faults of the Serve file and exits if it has any.

    The check is a process of its own: it imports the users' modules, and what these do to their
    process must not reach Ray's, which hands its environment to every replica. It takes as long as
    it takes: Ctrl-C ends it.
    """
    command = [program("truthgpt"), "validate", "--progress", f"{PROGRESS_S:g}", config]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as check:

        def interrupt(number: int, frame: FrameType | None) -> None:
            # Not an exception: it would come out of the middle of some import of Ray's.
            check.kill()
            os._exit(INTERRUPTED)

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            output = CheckOutput(check)
            (entry,) = entry_points(group="console_scripts", name="serve")
            serve = entry.load()
            output.wait()
        except BaseException:
            check.kill()
            raise
        signal.signal(signal.SIGINT, before)
    if check.returncode:
        print("".join(output.lines), end="", flush=True)
        if check.returncode != WRONG_FILE:
            print(f"[serve] the check of {config} {describe_end(check.returncode)}", flush=True)
        sys.exit(WRONG_FILE)
    return serve


class CheckOutput:
    """Reads what the check prints; says at once what it waits for, and what to know.

    Attributes:
        lines: The rest, for when the check fails.
    """

    def __init__(self, check: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._check = check
        self._heard_s = self._started_s = time.monotonic()
        self._reader = threading.Thread(target=self._read, name="output of the check", daemon=True)
        self._reader.start()

    def wait(self) -> None:
        """Waits for the end of the check, however long it takes."""
        while self._check.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self._check.wait(PROGRESS_S)
            now_s = time.monotonic()
            if now_s - self._heard_s > 2 * PROGRESS_S:  # an import may hold everything else up
                self._heard_s = now_s
                print(f"[serve] checking: no word for {now_s - self._started_s:.0f} s", flush=True)
        self._reader.join(READ_S)

    def _read(self) -> None:
        assert self._check.stdout is not None
        for line in self._check.stdout:
            self._heard_s = time.monotonic()
            if line.startswith(MARK):
                print(f"[serve] checking: {line.removeprefix(MARK)}", end="", flush=True)
            elif line.startswith(NOTE):
                print(f"[serve] {line}", end="", flush=True)
            else:
                self.lines.append(line)


def describe_end(status: int) -> str:
    """Says how a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by signal {-status} ({signal.strsignal(-status)})"


def main() -> None:
    """Serves until it is interrupted."""
    config, url = sys.argv[1:]
    change_imports()
    serve = load_checked(config)
    print(f"[serve] starting {config}: {url} (Ctrl-C or `make stop` ends it)", flush=True)
    sys.argv = [program("serve"), "run", "--address", "local", config]
    lengthen_limits()
    lighten_ray()
    try:
        serve()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
