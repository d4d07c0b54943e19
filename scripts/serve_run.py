"""Checks a Serve file and its models, then runs it as `serve run` does: `serve_run.py FILE URL`.

In one process, because both need Ray Serve, whose import takes a second. Exits with 2 after the
faults of a wrong file, which `serve run` alone would go on with.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path

import click

INTERRUPTED = 130


def check(config: str) -> int:
    """Prints the faults of a Serve file; returns the exit status of `truthgpt validate`."""
    from truthgpt_serve.cli.validate import validate

    checked = io.StringIO()
    with redirect_stdout(checked):
        status = int(validate.main([config], standalone_mode=False) or 0)
    if status:
        print(checked.getvalue(), end="", flush=True)
    return status


def main() -> int:
    """Serves until it is interrupted; returns the exit status."""
    config, url = sys.argv[1:]
    try:
        status = check(config)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    if status:
        return status
    print(f"[serve] starting {config}: {url} (Ctrl-C or `make stop` ends it)", flush=True)
    (serve,) = entry_points(group="console_scripts", name="serve")
    sys.argv = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", config]
    serve.load()()
    return 0


if __name__ == "__main__":
    sys.exit(main())
