"""Command line: `python -m tests.openapi_run [URL] [--seed N]... [--max-examples N] [--paths RE]`.

Sends what Schemathesis makes of a running service's `/openapi.json`, good and bad requests, and
exits with 1 if an answer is not as the document says. Each seed is a run of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.openapi_run.plan import fetch_models
from tests.openapi_run.run import run


def main() -> int:
    """Runs Schemathesis; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--seed", type=int, action="append", help="several times for several runs")
    parser.add_argument("--max-examples", type=int, default=50)
    parser.add_argument("--paths", default=".*", help="a regular expression of whole paths")
    parser.add_argument("--models", nargs="+", help="ask only these; by default all")
    parser.add_argument("--check", action="append", default=[], help="a further check")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for each run")
    options = parser.parse_args()
    url = options.url.rstrip("/")
    models = [
        model for model in fetch_models(url) if not options.models or model.name in options.models
    ]
    failed = 0
    for seed in options.seed or [1]:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(
                url,
                Path(folder),
                seed=seed,
                max_examples=options.max_examples,
                paths=options.paths,
                more_checks=options.check,
                models=models,
                timeout_s=options.timeout,
            )
        print(outcome.text, outcome.table(), sep="\n")
        num = sum(sum(found.values()) for found in outcome.statuses.values())
        verdict = "as the document says" if outcome.passed else "NOT as the document says"
        print(f"seed {seed}: {num} requests in {time.monotonic() - start:.0f} s, {verdict}")
        failed += not outcome.passed
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
