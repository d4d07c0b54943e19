"""Command line of the fuzzer: `python -m tests.fuzz [--seed N] [--requests N] [--url URL]`.

Sends generated bad requests to a running service and exits with 1 if one gets a status of 500 or
above, hangs, gets an error of another shape than its API's, or takes a process away, or if a
structured request beside them is slowed. Each request depends on seed and index alone: `--only
INDEX` sends one again and prints it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tests.fuzz.client import bytes_of, send
from tests.fuzz.run import Fuzz, generate, models_of
from truthgpt_serve.cluster.processes import find_run


def _run_id(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "serve.json").read_text())["run_id"])
    except (OSError, ValueError, KeyError):
        return None


def main() -> int:
    """Runs the fuzzer; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--only", type=int, help="index of one request to send again")
    parser.add_argument("--structured", default="story", help="a vLLM model beside; '' for none")
    parser.add_argument("--run-dir", type=Path, default=Path(".run"), help="of `make serve`")
    options = parser.parse_args()
    models = asyncio.run(models_of(options.url))
    if options.only is not None:
        request = generate(options.seed, options.only, models)
        print(request.mutations, bytes_of(request)[:4000])
        fuzz = Fuzz(options.url, options.seed, models)
        answer = asyncio.run(send(fuzz.host, fuzz.port, request, 120.0))
        print(answer.status, f"{answer.seconds:.2f} s", answer.note, answer.body[:4000])
        return 0
    run_id = _run_id(options.run_dir)
    before = find_run(run_id) if run_id else []
    fuzz = Fuzz(options.url, options.seed, models)
    asyncio.run(fuzz.run(options.requests, options.clients, options.structured or None))
    if run_id:
        fuzz.compare(before, find_run(run_id))
    else:
        print(f"no run is noted in {options.run_dir}: processes are not compared")
    print(fuzz.report())
    return 1 if fuzz.findings else 0


if __name__ == "__main__":
    sys.exit(main())
