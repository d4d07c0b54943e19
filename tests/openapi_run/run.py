"""Runs Schemathesis in a process of its own and reads its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.openapi_run.plan import TIMEOUT_S, Json, Model, fetch_models, narrowed

ROOT = Path(__file__).parents[2]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "missing_required_header",
)
"""The checks of every answer."""
CONFIGURATION = """\
max-redirects = 0
continue-on-failure = true
warnings = false
[generation]
database = "none"
[checks]
enabled = false
{checks}
negative_data_rejection.expected-statuses = [400, 404, 405, 413]
[[operations]]
# In a form a number is a text like any other, and a header without a value is as good as none.
include-path-regex = '^/v1/audio/|^/v1/images/(edits|variations)$|^/v2/.*/infer$'
[operations.checks.negative_data_rejection]
enabled = false
"""


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        passed: Whether no check failed.
        text: What Schemathesis printed.
        statuses: How often each operation was answered with each status.
    """

    passed: bool
    text: str
    statuses: dict[str, Counter[int]] = field(default_factory=dict)

    def table(self) -> str:
        """Returns the statuses as text, a line for each operation."""
        rows = [
            f"{label:<50} " + " ".join(f"{status}: {num}" for status, num in sorted(found.items()))
            for label, found in sorted(self.statuses.items())
        ]
        return "\n".join(rows)


def run(
    url: str,
    folder: Path,
    *,
    seed: int,
    max_examples: int,
    paths: str = ".*",
    phases: Sequence[str] = ("examples", "coverage", "fuzzing"),
    more_checks: Iterable[str] = (),
    models: list[Model] | None = None,
    document: Json | None = None,
    timeout_s: float = 600,
) -> Outcome:
    """Asks a service all that its document says.

    Args:
        url: The service.
        folder: For the configuration and the report.
        seed: The same cases for the same seed.
        max_examples: Cases of each operation in the phase `fuzzing`.
        paths: A regular expression of the paths to ask, from their beginning.
        phases: Schemathesis' phases.
        more_checks: Checks beside `CHECKS`.
        models: The models to ask; by default all.
        document: What to hold it to; by default its own.
        timeout_s: Seconds for all of it.
    """
    if document is None:
        document = httpx.get(f"{url}/openapi.json", timeout=TIMEOUT_S).raise_for_status().json()
    source, report = folder / "openapi.json", folder / "report.ndjson"
    source.write_text(json.dumps(narrowed(document, models or fetch_models(url))))
    checks = "\n".join(f"{check}.enabled = true" for check in (*CHECKS, *more_checks))
    (folder / "schemathesis.toml").write_text(CONFIGURATION.replace("{checks}", checks))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(folder / "schemathesis.toml"), "run", str(source)),
            # How fast it makes requests says how busy the machine is.
            *("--suppress-health-check", "too_slow"),
            *("--url", url, "--include-path-regex", f"^(?:{paths})$", "--no-color"),
            *("--seed", str(seed), "--max-examples", str(max_examples)),
            *("--phases", ",".join(phases), "--request-timeout", str(TIMEOUT_S)),
            *("--report", "ndjson", "--report-ndjson-path", str(report)),
        ],
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.openapi_run.hooks",
            "PYTHONPATH": str(ROOT),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Outcome(done.returncode == 0, done.stdout + done.stderr, _statuses(report))


def _statuses(report: Path) -> dict[str, Counter[int]]:
    found: dict[str, Counter[int]] = {}
    lines = report.read_text().splitlines() if report.exists() else []
    for line in lines:
        record = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for interaction in record.get("interactions", {}).values():
            status = (interaction.get("response") or {}).get("status_code", 0)
            found.setdefault(record["label"], Counter())[status] += 1
    return found
