"""Compares the throughput of this checkout with another's: `python -m benchmarks.against FOLDER`.

FOLDER is a checkout with an environment of its own in `.venv`, such as an earlier commit in a git
worktree. Both serve at the same time and take turns, pair by pair, the order reversed each time;
images run in a process of each checkout in turn. Prints medians and the medians of the pairs'
ratios, ours to theirs: 1 is as fast, more is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.batching import create_inputs
from benchmarks.batching_classes import CLASSES, FOLDER_VARIABLE
from benchmarks.batching_networks import write_networks
from benchmarks.load import measure
from benchmarks.router_tax import COMPLETION, ECHO
from benchmarks.sides import ROOT

T = TypeVar("T")
ROUTER = "from benchmarks.sides import product; side = product(num_routers=2)"
BATCHING = (
    "import os; from pathlib import Path; from benchmarks.batching_sides import product; "
    f"folder = Path(os.environ['{FOLDER_VARIABLE}']); "
    "batching = {'max_batch_size': 16, 'batch_wait_timeout_s': 0.01}; "
    "side = product(['vision', 'encoder'], folder, batching)"
)
SERVE = """
import json, sys
if __name__ == "__main__":
    with side as running:
        print("side", json.dumps([running.url, running.run_id]), flush=True)
        sys.stdin.read()
"""
START_TIMEOUT_S, IMAGES_TIMEOUT_S = 400.0, 900.0
_RATE = re.compile(r"^closed loop (\S+): .*images_per_s \S+ -> (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Tree:
    """A checkout: its folder and the Python of its environment."""

    folder: Path
    python: str

    def command(self, *arguments: str) -> dict[str, Any]:
        """Returns what `subprocess` needs to run this checkout's Python."""
        env = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        return {"args": [self.python, *arguments], "cwd": self.folder, "env": env}


@contextmanager
def serving(tree: Tree, program: str) -> Iterator[tuple[str, str]]:
    """Runs a service of a checkout; gives its address and its run id."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(f"{program}\n{SERVE}")
        script.flush()
        with subprocess.Popen(
            **tree.command(script.name), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            try:
                line = next((one for one in process.stdout if one.startswith("side ")), None)
                if line is None:
                    raise SystemExit(f"{tree.folder} does not serve: its output says why")
                url, run_id = json.loads(line.removeprefix("side "))
                yield url, run_id
            finally:
                process.stdin.close()
                process.wait(START_TIMEOUT_S)


def rate(side: tuple[str, str], path: str, body: dict[str, Any], num_clients: int) -> float:
    """Returns a service's answers a second under load."""
    url, run_id = side
    found = measure(url + path, body, num_clients=num_clients, duration_s=3.0, run_id=run_id)
    if found.num_errors:
        raise SystemExit(f"{path}: {found.num_errors} errors at {url}")
    return found.requests_per_s


def compare_services(
    trees: list[Tree], program: str, cases: dict[str, tuple[str, dict[str, Any], int]], pairs: int
) -> None:
    """Loads the same service of both checkouts in turns and prints each case's ratio."""
    with ExitStack() as stack:
        sides = [stack.enter_context(serving(tree, program)) for tree in trees]
        for name, case in cases.items():
            turns = [partial(rate, side, *case) for side in sides]
            take_turns(turns, 1)  # connections and caches warm
            report(name, take_turns(turns, pairs))


def take_turns(sides: Sequence[Callable[[], T]], pairs: int) -> list[tuple[T, T]]:
    """Returns ours and theirs of each pair, the order reversed from pair to pair."""
    found = []
    for pair in range(pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        values = {index: sides[index]() for index in order}
        found.append((values[0], values[1]))
    return found


def images(tree: Tree, requests: int) -> dict[str, float]:
    """Returns images per second of the engine in a process of a checkout, by size."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--pairs", "1", "--requests", str(requests), "--out", f"{folder}/images.json"]
        done = subprocess.run(
            **tree.command("-m", "benchmarks.images", *arguments),
            capture_output=True,
            text=True,
            timeout=IMAGES_TIMEOUT_S,
            check=True,
        )
    return {size: float(rate) for size, rate in _RATE.findall(done.stdout)}


def compare_images(trees: list[Tree], pairs: int, requests: int) -> None:
    """Runs the image engine of both checkouts in turns and prints each size's ratio."""
    found = take_turns([partial(images, tree, requests) for tree in trees], pairs)
    for size in found[0][0]:
        report(f"images {size}", [(ours[size], theirs[size]) for ours, theirs in found])


def report(name: str, pairs: list[tuple[float, float]]) -> None:
    """Prints one case."""
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = sorted(one / other for one, other in pairs)
    print(
        f"{name}: {ours:.1f} against {theirs:.1f} a second, ratio "
        f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
        flush=True,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=48, help="images of a measurement")
    parser.add_argument("--only", choices=("router", "batching", "images"))
    options = parser.parse_args()
    folder = options.folder.resolve()
    trees = [Tree(ROOT, sys.executable), Tree(folder, str(folder / ".venv" / "bin" / "python"))]
    if options.only in (None, "router"):
        cases = {}
        for model, body, num_clients in (("echo", ECHO, 32), ("vllm", COMPLETION, 16)):
            for kind, stream in (("unary", False), ("stream", True)):
                more = {**body, "stream": stream}
                cases[f"{model} {kind} {num_clients}"] = ("/v1/completions", more, num_clients)
        compare_services(trees, ROUTER, cases, options.pairs)
    if options.only in (None, "batching"):
        with tempfile.TemporaryDirectory() as networks:
            write_networks(Path(networks))
            os.environ[FOLDER_VARIABLE] = networks
            cases = {
                name: ("/v1/infer", {"model": name, "inputs": create_inputs(name)[1]}, 32)
                for name in CLASSES
            }
            compare_services(trees, BATCHING, cases, options.pairs)
    if options.only in (None, "images"):
        compare_images(trees, options.pairs, options.requests)


if __name__ == "__main__":
    main()
