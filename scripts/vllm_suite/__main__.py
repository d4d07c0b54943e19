"""Runs vLLM's tests/entrypoints/openai on both sides: `python -m scripts.vllm_suite`.

The tests come from vLLM's source package of the release that is installed, which pip fetches. Each
file runs against vLLM's own server and through the router, with the story model in place of the
models that it names; what so small a model cannot do fails on both. Exits with 1 if a test fails
through the router that passes alone. Takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from scripts.vllm_suite.files import CANNOT_RUN, EXPECTED, RUN

VERSION = "0.32.0"
ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("tests", "entrypoints", "openai")
FILE_TIMEOUT_S = 1800
_MODELS = re.compile(
    r'"(HuggingFaceH4/zephyr-7b-beta|Qwen/Qwen[\w.-]+|facebook/opt-125m|openai-community/gpt2)"'
)
SIDES = ("server", "router")


def fetch_source(folder: Path) -> Path:
    """Has pip fetch the source package into a folder; returns the archive."""
    archive = folder / f"vllm-{VERSION}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", "vllm", "--dest", str(folder), f"vllm=={VERSION}"]
        # pip builds the package's metadata: without a device it needs no compiler.
        environment = {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": VERSION}
        subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=1200)
    return archive


def prepare(source: Path, work: Path) -> None:
    """Lays the tests, rewritten for the small models, and these into the folder `work`."""
    with tarfile.open(source) as archive:
        members = []
        for member in archive:
            place = Path(*Path(member.name).parts[1:])
            if place.is_relative_to(FOLDER) or place == FOLDER.parent / "conftest.py":
                member.name = str(place)
                members.append(member)
        archive.extractall(work, members=members, filter="data")
    for path in (work / FOLDER).rglob("*.py"):
        path.write_text(_MODELS.sub('"small"', path.read_text()))
    for package in (work / "tests", work / "tests" / "entrypoints"):
        (package / "__init__.py").touch()
    (work / "tests" / "utils.py").write_text("from scripts.vllm_suite.remote import *  # noqa\n")
    for name, model in (("small", "story"), ("small-lora", "story-moral")):
        shutil.copytree(ROOT / "models" / model, work / name, dirs_exist_ok=True)
    _check_lists(work / FOLDER)


def _check_lists(folder: Path) -> None:
    present = {str(path.relative_to(folder)) for path in folder.rglob("test_*.py")}
    listed = {*RUN, *CANNOT_RUN}
    if present != listed:
        sys.exit(
            f"scripts/vllm_suite/files.py does not fit this release: "
            f"new {sorted(present - listed)}, gone {sorted(listed - present)}"
        )


def run_file(work: Path, name: str, side: str) -> dict[str, str]:
    """Runs one file on one side; returns each test's outcome."""
    report = work / f"{name.replace('/', '-')}.{side}.xml"
    report.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "scripts.vllm_suite.plugin",
        "-c", os.devnull, "--rootdir", str(work), "-o", "asyncio_mode=auto",
        "--timeout", "600", "--junitxml", str(report), str(FOLDER / name),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "VLLM_SUITE_SIDE": side,
        "PYTHONPATH": os.pathsep.join((str(work), str(ROOT))),
        "OMP_NUM_THREADS": "1",
    }
    with (work / f"{report.stem}.log").open("w") as log:
        try:
            subprocess.run(
                command,
                cwd=work,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=FILE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"the whole file": "timeout"}
    return read_report(report)


def read_report(report: Path) -> dict[str, str]:
    """Returns passed, failed, error or skipped for each test of a JUnit file."""
    if not report.exists():
        return {"the whole file": "error"}
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = next(
            (kind for kind in ("error", "failure", "skipped") if kind in kinds), "passed"
        )
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return outcomes


def compare(own: dict[str, str], router: dict[str, str]) -> list[str]:
    """Returns the tests that pass alone and not through the router."""
    return [
        test
        for test, outcome in own.items()
        if outcome == "passed"
        and router.get(test) != "passed"
        and not any(part in test for part in EXPECTED)
    ]


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, help=f"vllm-{VERSION}.tar.gz; else pip fetches it")
    parser.add_argument("--work", type=Path, help="folder to work in, kept; else a temporary one")
    parser.add_argument("--only", nargs="*", help="some of the files, by a part of their names")
    parser.add_argument("--list", action="store_true", help="print what cannot run, and why")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {reason}" for name, reason in CANNOT_RUN.items()))
        return 0
    work = options.work or Path(tempfile.mkdtemp(prefix="vllm-suite"))
    work.mkdir(parents=True, exist_ok=True)
    prepare(options.source or fetch_source(work), work)
    worse: list[str] = []
    results: dict[str, dict[str, dict[str, str]]] = {}
    for name in RUN:
        if options.only and not any(part in name for part in options.only):
            continue
        sides = {side: run_file(work, name, side) for side in SIDES}
        results[name] = sides
        found = compare(sides["server"], sides["router"])
        worse += found
        counts = {s: sum(o == "passed" for o in found_s.values()) for s, found_s in sides.items()}
        print(
            f"{name}: of {len(sides['server'])} pass alone {counts['server']}, "
            f"through the router {counts['router']}",
            *(f"\n  worse: {test}" for test in found),
            flush=True,
        )
    (work / "results.json").write_text(json.dumps(results, indent=1))
    total = {s: sum(o == "passed" for r in results.values() for o in r[s].values()) for s in SIDES}
    print(f"passed alone {total['server']}, through the router {total['router']}; in {work}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
