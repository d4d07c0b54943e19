"""Runs the tests, several files at a time, and those marked `alone` after them, one by one.

Tests with a real service wait much, and those without Ray compute: both run in one pass. `--short`
leaves out those marked `long`. A test that failed while others ran runs once more, alone, and that
result counts. Exits with the first status of pytest's that is not success; that no test of one pass
was chosen is none, unless it is so of all.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path

from _pytest.assertion import rewrite

FAILED = 1
NOTHING_CHOSEN = 5
MAX_AGAIN = 8
"""Failures in more modules than this have a reason that a second run does not take away; where a
service did not start in time, all tests of its module fail."""
CACHE = Path(".pytest_cache")
"""Each pass has a folder below it, in which pytest keeps which tests failed."""
PACKAGES = ("truthgpt_serve", "deployments")
"""Each service of the tests imports them in some ten processes. Compiled before, as pip does with
installed packages, an import takes 0.5 s less where PYTHONDONTWRITEBYTECODE is set."""
UNCOVERED = "truthgpt_serve/autoscaling/policy.py"
"""Ray pickles this module by value, which fails with what slipcover puts into its functions."""
_LATE = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
"""slipcover imports its plugin for pytest before pytest does."""


def narrow(arguments: list[str], marks: str) -> list[str]:
    """Returns pytest's arguments, with these marks on top of what they say by `-m`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", dest="given")
    known, rest = parser.parse_known_args(arguments)
    return [*rest, "-m", f"({known.given}) and {marks}" if known.given else marks]


def run(name: str, arguments: list[str], workers: int = 0, *, coverage: Path | None = None) -> int:
    """Runs pytest with this pass's cache, on `workers` files at a time; returns its status.

    Args:
        name: The pass's.
        arguments: pytest's.
        workers: Files at a time; 0 is one after another, without processes beside.
        coverage: Where to write which lines of the packages ran, or None.
    """
    command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={CACHE / name}"]
    if coverage is not None:
        coverage.parent.mkdir(parents=True, exist_ok=True)
        options = ["--source", ",".join(PACKAGES), "--omit", UNCOVERED, "--json"]
        options += ["--out", str(coverage)]
        command[1:1] = ["-m", "slipcover", *options]
        command += ["-W", _LATE]
    command += ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder", *arguments]
    return subprocess.run(command, check=False).returncode


def run_covered(arguments: list[str], workers: int) -> int:
    """Runs the tests without Ray and says how much of the code they run; returns the status."""
    path = CACHE / "unit" / "coverage.json"
    path.unlink(missing_ok=True)
    status = run("unit", arguments, workers, coverage=path)
    if path.exists():
        summary = json.loads(path.read_text())["summary"]
        say(f"the tests without Ray run {summary['percent_covered']:.1f} % of the product's lines")
    return status


def read_failed(name: str) -> list[str]:
    """Returns the tests of a pass that failed when they ran last."""
    path = CACHE / name / "v" / "cache" / "lastfailed"
    return list(json.loads(path.read_text())) if path.exists() else []


def run_beside(name: str, folders: list[str], workers: int, arguments: list[str]) -> int:
    """Runs folders, and what failed beside other files once more, alone; returns the status."""
    # Unless they are what shall run, earlier failures are none of this run.
    clear = [] if {"--lf", "--last-failed"} & {*arguments} else ["--cache-clear"]
    status = run(name, [*folders, *clear, *arguments], workers)
    failed = read_failed(name)
    modules = {test.partition("::")[0] for test in failed}
    if status != FAILED or workers == 0 or not 0 < len(modules) <= MAX_AGAIN:
        return status
    say(f"{len(failed)} failed beside others: once more, alone")
    status = run(name, failed)
    still = read_failed(name)
    for test in failed:
        say(f"failed beside others, {'failed' if test in still else 'passed'} alone: {test}")
    return status


def find_marked(folder: str, mark: str) -> list[str]:
    """Returns the modules of a folder with a test that has a mark, or the folder if there is none.

    To import all the others only to leave them out takes 10 s of a core.
    """
    modules = sorted(Path(folder).rglob("test_*.py"))
    found = [str(path) for path in modules if f"mark.{mark}" in path.read_text(encoding="utf-8")]
    return found or [folder]


def rewrite_asserts(path: Path) -> None:
    """Writes a test module with its asserts rewritten to where pytest looks for it."""
    cache = rewrite.get_cache_dir(path)
    kept = cache / f"{path.stem}{rewrite.PYC_TAIL}"
    if rewrite._read_pyc(path, kept) is not None:
        return
    source = path.read_bytes()
    tree = ast.parse(source, filename=str(path))
    rewrite.rewrite_asserts(tree, source, str(path))
    code = compile(tree, str(path), "exec", dont_inherit=True)
    cache.mkdir(parents=True, exist_ok=True)
    written = kept.with_name(f"{kept.name}.{os.getpid()}")
    with written.open("wb") as file:
        rewrite._write_pyc_fp(file, importlib.util.source_hash(source), code)
    written.replace(kept)


def prepare(folders: Iterable[str], workers: int) -> None:
    """Compiles the packages and the test modules, so that not each process does it anew.

    To rewrite the asserts of all test modules takes 8 s of a core, and pytest keeps none of it
    where PYTHONDONTWRITEBYTECODE is set.
    """
    for package in PACKAGES:
        if Path(package).is_dir():
            compileall.compile_dir(package, quiet=2)
    found = [path for each in folders for path in Path(each).resolve().rglob("test_*.py")]
    with ProcessPoolExecutor(max(1, min(workers, os.cpu_count() or 1))) as pool:
        # A module that cannot be read or parsed is pytest's to report.
        wait([pool.submit(rewrite_asserts, path) for path in found])


def say(text: str) -> None:
    """Prints one line at once, also into a pipe."""
    print(f"[test] {text}", flush=True)


def main() -> int:
    """Command line: `run_tests.py [--only unit|serve] [--short] [--workers N] -- PYTEST'S`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("unit", "serve"), help="one folder, not both")
    parser.add_argument("--short", action="store_true", help="without the tests marked `long`")
    parser.add_argument("--workers", type=int, default=3, help="files at a time; 0 is one by one")
    parser.add_argument("--coverage", action="store_true", help="of the tests without Ray")
    parser.add_argument("arguments", nargs="*", help="for pytest")
    options = parser.parse_args()
    given = narrow(options.arguments, "not long") if options.short else options.arguments
    folders = {"unit": "tests/unit", "serve": "tests/serve"}
    if options.only is not None:
        folders = {options.only: folders[options.only]}
    prepare(folders.values(), options.workers)
    statuses = []
    if options.coverage and "unit" in folders:
        statuses.append(run_covered([folders.pop("unit"), *given], options.workers))
    beside, alone = (narrow(given, marks) for marks in ("not alone", "alone"))
    if folders:
        # Each choice has a cache of its own, for `--lf`.
        name = "-".join(folders)
        statuses.append(run_beside(name, [*folders.values()], options.workers, beside))
    if "serve" in folders:
        statuses.append(run("alone", [*find_marked(folders["serve"], "alone"), *alone]))
    failed = [status for status in statuses if status not in (0, NOTHING_CHOSEN)]
    return failed[0] if failed else min(statuses)


if __name__ == "__main__":
    sys.exit(main())
