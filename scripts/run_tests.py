"""Runs the tests: those without Ray in several processes, then those with a real service.

Clusters of several test modules at a time are slow and disturb each other, so by default these run
one after another. Exits with the first status of pytest's that is not success; that no test of one
folder was chosen is none, unless it is so of both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

NOTHING_CHOSEN = 5


def run(folder: str, workers: int, arguments: list[str]) -> int:
    """Runs the tests of a folder; returns pytest's status."""
    command = [sys.executable, "-m", "pytest", folder, "-n", str(workers), "--dist", "loadfile"]
    command += ["--no-loadscope-reorder", *arguments]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """Command line: `run_tests.py [--only unit|serve] [--workers N] -- ARGUMENTS OF PYTEST`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("unit", "serve"), help="one folder, not both")
    parser.add_argument("--workers", type=int, default=2, help="files of tests/unit at a time")
    parser.add_argument("--serve-workers", type=int, default=0, help="files of tests/serve")
    parser.add_argument("arguments", nargs="*", help="for pytest")
    options = parser.parse_args()
    workers = {"unit": options.workers, "serve": options.serve_workers}
    statuses = [
        run(f"tests/{folder}", number, options.arguments)
        for folder, number in workers.items()
        if options.only in (None, folder)
    ]
    failed = [status for status in statuses if status not in (0, NOTHING_CHOSEN)]
    return failed[0] if failed else min(statuses)


if __name__ == "__main__":
    sys.exit(main())
