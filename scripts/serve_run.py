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
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from truthgpt_serve.cluster.progress import MARK
from truthgpt_serve.cluster.ray_limits import lengthen_limits

PROGRESS_S = 10.0
"""How often a check that takes long says what it waits for."""
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
        assert check.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=read_lines, args=(check.stdout, lines), daemon=True)
        reader.start()

        def interrupt(number: int, frame: FrameType | None) -> None:
            # Not an exception: it would come out of the middle of some import of Ray's.
            check.kill()
            os._exit(INTERRUPTED)

        before = signal.signal(signal.SIGINT, interrupt)
        (entry,) = entry_points(group="console_scripts", name="serve")
        serve = entry.load()
        check.wait()
        signal.signal(signal.SIGINT, before)
        reader.join(READ_S)
    if check.returncode:
        print("".join(lines), end="", flush=True)
        if check.returncode != WRONG_FILE:
            print(f"[serve] the check of {config} {describe_end(check.returncode)}", flush=True)
        sys.exit(WRONG_FILE)
    return serve


def describe_end(status: int) -> str:
    """Says how a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by signal {-status} ({signal.strsignal(-status)})"


def read_lines(stream: TextIO, lines: list[str]) -> None:
    """Collects what the check prints; says at once what it waits for."""
    for line in stream:
        if line.startswith(MARK):
            print(f"[serve] checking: {line.removeprefix(MARK)}", end="", flush=True)
        else:
            lines.append(line)


def main() -> None:
    """Serves until it is interrupted."""
    config, url = sys.argv[1:]
    serve = load_checked(config)
    print(f"[serve] starting {config}: {url} (Ctrl-C or `make stop` ends it)", flush=True)
    sys.argv = [program("serve"), "run", "--address", "local", config]
    lengthen_limits()
    try:
        serve()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
