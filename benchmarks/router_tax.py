"""What the product costs over a bare server: vLLM's own, and the echo application under uvicorn.

All sides run at the same time and take turns, pair by pair, so that a noisy machine is noisy for
all. vLLM's own server runs twice: `vllm` as the product runs the engine, `vllm-default` as it runs
when no executor is named. Prints medians and ratios; writes JSON and a plot to
`benchmarks/results/`. Command: `make bench-router`, or `python -m benchmarks.router_tax --pairs 5`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.load import Measurement, idle_cpu, measure
from benchmarks.plot import draw
from benchmarks.sides import (
    CPU_EXECUTOR,
    ENGINE,
    ENGINE_ENV,
    ROOT,
    Side,
    bare_echo,
    own_server,
    product,
)

RESULTS = ROOT / "benchmarks" / "results"
PROMPT = "Once upon a time there was a fox"
COMPLETION = {
    "model": "llm",
    "prompt": PROMPT,
    "max_tokens": 32,
    "ignore_eos": True,
    "temperature": 0.0,
}
ECHO = {"model": "echo", "prompt": "one two three four", "max_tokens": 64}
CASES = (
    ("vllm", COMPLETION, (1, 16, 64)),
    ("vllm-default", COMPLETION, (16,)),
    ("echo", ECHO, (1, 16, 32, 64)),
)
REFERENCES: dict[str, Callable[[], AbstractContextManager[Side]]] = {
    "vllm": own_server,
    "vllm-default": partial(own_server, None),
    "echo": bare_echo,
}


def cases(only: str | None) -> Iterator[tuple[str, str, dict[str, Any], int]]:
    """Yields name, reference side, body and number of clients of each case."""
    for reference, body, clients in CASES:
        for stream, num_clients in itertools.product((False, True), clients):
            name = f"{reference} {'stream' if stream else 'unary'} {num_clients}"
            if only is None or name in only.split(","):
                yield name, reference, {**body, "stream": stream}, num_clients


def run_case(
    reference: Side,
    ours: Side,
    body: dict[str, Any],
    num_clients: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measures both sides in turn, the first one changing from pair to pair."""
    found: dict[str, list[Measurement]] = {"reference": [], "ours": []}
    sides = [("reference", reference), ("ours", ours)]
    for side in (reference, ours):  # connections and caches warm
        _measure(side, body, num_clients, 1.0)
    for pair in range(options.pairs):
        for name, side in sides if pair % 2 == 0 else reversed(sides):
            found[name].append(_measure(side, body, num_clients, options.seconds))
    return summarize(found)


def _measure(side: Side, body: dict[str, Any], num_clients: int, duration_s: float) -> Measurement:
    return measure(
        f"{side.url}/v1/completions",
        body,
        num_clients=num_clients,
        duration_s=duration_s,
        run_id=side.run_id,
    )


def summarize(found: dict[str, list[Measurement]]) -> dict[str, Any]:
    """Returns each side's medians, and the median of the pairs' ratios (ours to the reference)."""
    medians = {name: _medians([one.as_dict() for one in each]) for name, each in found.items()}
    pairs = list(zip(found["reference"], found["ours"], strict=True))
    ratios = [ours.requests_per_s / reference.requests_per_s for reference, ours in pairs]
    return {
        **medians,
        "throughput_ratio": round(statistics.median(ratios), 4),
        "throughput_ratios": [round(ratio, 3) for ratio in ratios],
        "ttft_difference_ms": round(
            statistics.median(ours.ttft_p50_ms - ref.ttft_p50_ms for ref, ours in pairs), 3
        ),
    }


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, value in rows[0].items():
        values = [row[field] for row in rows]
        is_nested = isinstance(value, dict)
        found[field] = _medians(values) if is_nested else round(statistics.median(values), 3)
    return found


def describe(name: str, result: dict[str, Any]) -> str:
    """Returns one line of the printed table."""
    reference, ours = result["reference"], result["ours"]
    return (
        f"{name:<22} {result['throughput_ratio']:>6.3f}  "
        f"{reference['requests_per_s']:>7.1f} {ours['requests_per_s']:>7.1f}  "
        f"{reference['p50_ms']:>8.1f} {ours['p50_ms']:>8.1f}  "
        f"{reference['p99_ms']:>8.1f} {ours['p99_ms']:>8.1f}  "
        f"{reference['ttft_p50_ms']:>7.2f} {ours['ttft_p50_ms']:>7.2f}  "
        f"{reference['server_cpu_ms_per_request']:>7.2f} {ours['server_cpu_ms_per_request']:>7.2f}"
    )


HEADING = (
    "case                    ratio    req/s: ref ours      p50 ms: ref ours   p99 ms: ref ours   "
    "TTFT ms: ref ours   CPU ms/req: ref ours"
)


def main() -> None:
    """Runs all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    parser.add_argument("--only", help="only these, such as 'vllm stream 16,echo stream 32'")
    parser.add_argument("--routers", type=int, default=2, help="router replicas (the default is 2)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    todo = list(cases(options.only))
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        ours = stack.enter_context(product(num_routers=options.routers))
        references = {}
        for reference, start in REFERENCES.items():
            if any(case[1] == reference for case in todo):
                references[reference] = stack.enter_context(start())
        time.sleep(3)  # what starting set in motion comes to rest
        with idle_cpu(ours.run_id, 5) as (idle_share,):
            pass
        print(HEADING, flush=True)
        for name, reference, body, num_clients in todo:
            results[name] = run_case(references[reference], ours, body, num_clients, options)
            print(describe(name, results[name]), flush=True)
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("ray", "torch")},
        "pairs": options.pairs,
        "seconds": options.seconds,
        "routers": options.routers,
        "engine_arguments": ENGINE,
        "executor": CPU_EXECUTOR,
        "engine_environment": ENGINE_ENV,
        "models_deployed": ["llm", "echo", "echo-2"],
        "idle_share_of_a_core": round(idle_share, 4),
        "seconds_to_start": {
            "ours": round(ours.seconds_to_start, 1),
            **{name: round(side.seconds_to_start, 1) for name, side in references.items()},
        },
        "cases": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "router_tax.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, options.out / "router_tax.png")
    print(f"idle: {idle_share:.1%} of a core; written to {options.out}")


if __name__ == "__main__":
    main()
