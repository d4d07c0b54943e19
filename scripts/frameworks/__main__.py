"""Checks every agent framework against every family: `python -m scripts.frameworks`.

Starts the service with the shipped story model through vLLM, through transformers, as classes of a
user's and over a relay, and runs the programs in `clients/` against each. Needs what `make install`
makes with vLLM for CPU or GPU, Node 20 with npm, PyPI, npm's registry, 6 GiB of memory and 3 GB of
disk; each program gets an environment of its own in `--work`, which a second run uses again.

A check is passed, refused as the model's card announces, or failed; exits with 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.local_cluster import LocalCluster, router_application
from scripts.frameworks.environment import prepare
from scripts.frameworks.loglikelihoods import compare
from scripts.frameworks.programs import PROGRAMS, Program
from scripts.frameworks.service import (
    FAMILIES,
    ROOT,
    applications,
    copy_story,
    read_capabilities,
)

MARK = "outcome: "
PROGRAM_S = 900
ANNOUNCED = "refused as the card announces"


def run_program(
    command: list[str], program: Program, family: str, options: argparse.Namespace, url: str
) -> list[dict[str, Any]]:
    """Runs one program against one family; returns the outcomes of its checks."""
    log = options.work / f"{program.name}.{family}.log"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "BASE_URL": f"{url}/v1",
        "MODEL": family,
        "TOKENIZER": str(options.work / "story"),
        "RESULTS": str(options.work / f"{program.name}.{family}.json"),
        "OPENAI_API_KEY": "none",
        "ANTHROPIC_API_KEY": "none",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    with log.open("w") as output:
        try:
            subprocess.run(
                [*command, *options.check],
                cwd=options.work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=PROGRAM_S,
                check=True,
            )
            ended = ""
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            ended = str(error)
    lines = log.read_text(errors="replace").splitlines()
    found = [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]
    if ended or not (found or options.check):
        detail = ended or "it ran no check"
        found.append({"check": "the program", "needs": [], "outcome": "failed", "detail": detail})
    return found


def judge(outcome: Mapping[str, Any], capabilities: Mapping[str, Any]) -> str:
    """Returns the table's word for an outcome."""
    if outcome["outcome"] == "passed":
        return "passed"
    announced = not all(capabilities.get(name) for name in outcome["needs"])
    return ANNOUNCED if announced and outcome["outcome"] != "failed" else "failed"


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [program.name for program in PROGRAMS]
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--check", nargs="*", default=[], help="parts of the checks' names")
    parser.add_argument("--work", type=Path, default=ROOT / ".frameworks", help="kept")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    commands = {p: prepare(p, options.work) for p in PROGRAMS if p.name in options.only}
    story = copy_story(options.work)
    rows: list[tuple[str, str, dict[str, Any], str]] = []
    with LocalCluster(ROOT / "configs" / "ray.env", env={"PYTHONPATH": str(ROOT)}) as cluster:
        models = applications(options.families, story, cluster.url)
        cluster.deploy([*models, router_application(cluster.port)])
        cluster.wait_until_ready()
        for family in options.families:
            capabilities = read_capabilities(cluster.url, family)
            print(f"{family}: {json.dumps(capabilities)}", flush=True)
            for program, command in commands.items():
                for outcome in run_program(command, program, family, options, cluster.url):
                    word = judge(outcome, capabilities)
                    rows.append((family, program.name, outcome, word))
                    line = f"{family:13}{program.name:14}{outcome['check']:46}{word}"
                    detail = outcome["detail"]
                    print(line + (f"  {detail}" if detail else ""), flush=True)
    return report(rows, options)


def report(rows: list[tuple[str, str, dict[str, Any], str]], options: argparse.Namespace) -> int:
    """Prints the table of families and programs; returns the exit status."""
    words = ("passed", ANNOUNCED, "failed")
    print(f"\n{'family':13}{'program':14}" + "".join(f"{word:>32}" for word in words))
    for family in options.families:
        for name in options.only:
            counts = Counter(row[3] for row in rows if row[:2] == (family, name))
            numbers = "".join(f"{counts[word]:>32}" for word in words)
            print(f"{family:13}{name:14}{numbers}")
    faults = compare(options.work, options.families) if "lm-eval" in options.only else []
    print(*faults, sep="\n")
    failed = sum(row[3] == "failed" for row in rows)
    print(f"{len(rows)} checks, {failed} failed; the programs' output is in {options.work}")
    return 1 if failed or faults else 0


if __name__ == "__main__":
    sys.exit(main())
