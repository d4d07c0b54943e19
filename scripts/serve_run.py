"""Checks a Serve file and its models, then runs it as `serve run` does: `serve_run.py FILE URL`.

Checking and importing Ray Serve take a second each, so they go on side by side. Exits with 2 after
the faults of a wrong file, which `serve run` alone would go on with.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from truthgpt_serve.cluster.ray_limits import lengthen_limits

CHECK_TIMEOUT_S = 60.0
INTERRUPTED = 130


def program(name: str) -> str:
    """Returns a program of the environment that runs this file."""
    return str(Path(sys.executable).with_name(name))


def load_checked(config: str) -> Any:
    """Returns what `serve` runs; prints the faults of the Serve file and exits if it has any.

    The check is a process of its own: it imports the users' modules, and what these do to their
    process must not reach Ray's, which hands its environment to every replica.
    """
    command = [program("truthgpt"), "validate", config]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as check:
        try:
            (entry,) = entry_points(group="console_scripts", name="serve")
            serve = entry.load()
            output, _ = check.communicate(timeout=CHECK_TIMEOUT_S)
        except BaseException:
            check.kill()
            raise
    if check.returncode:
        print(output, end="", flush=True)
        sys.exit(check.returncode)
    return serve


def main() -> None:
    """Serves until it is interrupted."""
    config, url = sys.argv[1:]
    try:
        serve = load_checked(config)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    print(f"[serve] starting {config}: {url} (Ctrl-C or `make stop` ends it)", flush=True)
    sys.argv = [program("serve"), "run", "--address", "local", config]
    lengthen_limits()
    serve()


if __name__ == "__main__":
    main()
