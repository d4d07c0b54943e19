"""Dynamic batching: this product against a plain loop over the same model and against LitServe.

Two small ONNX networks, made here with fixed seeds, behind the same user classes everywhere. The
sides take turns, pair by pair, so that a noisy machine is noisy for all: the product at
`/models/<name>`, LitServe with its own batching in an environment of its own, the product through
its router, and two loops in this process without any server (request by request, and in full
batches). Prints medians; writes `benchmarks/results/batching.json`.
Command: `make bench-batching`, or `python -m benchmarks.batching --pairs 5`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import statistics
import tempfile
import time
import urllib.request
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.batching_classes import CLASSES, FOLDER_VARIABLE
from benchmarks.batching_networks import VOCABULARY, write_networks
from benchmarks.batching_sides import (
    LitServeOptions,
    MissingSideError,
    install_litserve,
    litserve,
    product,
    stopped,
)
from benchmarks.load import Measurement, idle_cpu, measure
from benchmarks.sides import ROOT, Side
from truthgpt_serve.server.batching.batcher import Batcher
from truthgpt_serve.server.execution.codec import PlainCodec
from truthgpt_serve.server.execution.workers import Workers

RESULTS = ROOT / "benchmarks" / "results" / "batching.json"
SEED = 42
NUM_TOKENS = 32
TOLERANCE = 1e-5
NUM_LONE_CALLS = 2000
REQUIRED_RATIO = 1.2
MAX_LONE_MS = 1.0


def create_inputs(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns one request's inputs, as the class gets them and as they travel."""
    random = np.random.default_rng(SEED)
    if name == "encoder":
        ids = random.integers(1, VOCABULARY, NUM_TOKENS).tolist()
        return {"ids": ids}, {"ids": ids}
    image = random.integers(0, 256, (3, 32, 32), dtype=np.uint8)
    data = base64.b64encode(image.tobytes()).decode()
    return {"image": image}, {"image": {"shape": [3, 32, 32], "dtype": "uint8", "b64": data}}


def measure_loop(model: Any, inputs: dict[str, Any], size: int, seconds: float) -> float:
    """Returns the requests per second of a loop over the class itself, `size` at a time."""
    count, began_s = 0, time.perf_counter()
    while (now_s := time.perf_counter()) - began_s < seconds:
        for _ in range(10):
            outputs = [model.infer(inputs)] if size == 1 else model.infer_batch([inputs] * size)
            count += len(outputs)
    return count / (now_s - began_s)


async def measure_lone_call() -> dict[str, float]:
    """Returns what the batcher adds to a lone call of a model that takes no time, in ms."""
    workers = Workers(1, 1, "lone")
    batcher = Batcher(
        workers,
        list,
        label="Lone.infer_batch",
        max_requests=64,
        max_batch_size=32,
        batch_wait_timeout_s=0.01,
    )
    samples_ms = []
    for _ in range(NUM_LONE_CALLS):
        began_s = time.perf_counter()
        await batcher.run(PlainCodec({}))
        samples_ms.append((time.perf_counter() - began_s) * 1000)
        await asyncio.sleep(0)
    await batcher.close()
    workers.close(1)
    quantiles = statistics.quantiles(samples_ms, n=100)
    return {"p50_ms": round(quantiles[49], 4), "p99_ms": round(quantiles[98], 4)}


def check_answer(url: str, body: dict[str, Any], expected: dict[str, Any]) -> None:
    """Asks a server once.

    Raises:
        SystemExit: It answers something else than the class itself.
    """
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        outputs = json.load(answer)["outputs"]
    same = outputs.keys() == expected.keys() and all(
        np.allclose(outputs[key], value, atol=TOLERANCE) for key, value in expected.items()
    )
    if not same:
        raise SystemExit(f"{url} answers {str(outputs)[:200]} instead of {str(expected)[:200]}")


def run_case(
    name: str, ours: Side, other: Side | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Measures every side of one model in turn, the order reversed from pair to pair.

    LitServe's processes are stopped while another side has its turn.
    """
    inputs, traveling = create_inputs(name)
    body = {"model": name, "inputs": traveling}
    model = CLASSES[name]()
    model.load({})
    sides: dict[str, tuple[str, Side]] = {
        "ours": (f"{ours.url}/models/{name}/v1/infer", ours),
        "router": (f"{ours.url}/v1/infer", ours),
    }
    if other is not None:
        sides["litserve"] = (f"{other.url}/predict", other)
    found: dict[str, list[Measurement]] = {side: [] for side in sides}
    loops: dict[str, list[float]] = {"loop": [], "loop_batched": []}

    def load(name: str, seconds: float) -> Measurement:
        url, side = sides[name]
        with running() if side is other else nullcontext():
            return measure(
                url, body, num_clients=options.clients, duration_s=seconds, run_id=side.run_id
            )

    def take_turn(turn: str) -> None:
        if turn in sides:
            found[turn].append(load(turn, options.seconds))
            return
        size = 1 if turn == "loop" else options.max_batch_size
        loops[turn].append(measure_loop(model, inputs, size, options.seconds / 2))

    for url, _ in sides.values():
        check_answer(url, body, model.infer(inputs))
    with stopped(other) if other is not None else nullcontext(nullcontext) as running:
        for side in sides:
            load(side, 1.0)  # connections and caches warm
        turns = [*sides, *loops]
        for pair in range(options.pairs):
            for turn in turns if pair % 2 == 0 else reversed(turns):
                take_turn(turn)
    return summarize(found, loops)


def summarize(found: dict[str, list[Measurement]], loops: dict[str, list[float]]) -> dict[str, Any]:
    """Returns each side's medians, and the medians of the pairs' ratios to ours."""
    report: dict[str, Any] = {}
    for side, measurements in found.items():
        report[side] = {
            field: round(statistics.median(getattr(one, field) for one in measurements), 3)
            for field in measurements[0].as_dict()
            if field != "ttft_p50_ms"
        }
        report[side]["num_errors"] = sum(one.num_errors for one in measurements)
    for loop, rates in loops.items():
        report[loop] = {"requests_per_s": round(statistics.median(rates), 1)}
    rates_of = {side: [one.requests_per_s for one in many] for side, many in found.items()} | loops
    for side, rates in rates_of.items():
        if side != "ours":
            ratios = [a / b for a, b in zip(rates_of["ours"], rates, strict=True)]
            report[f"ratio_to_{side}"] = round(statistics.median(ratios), 3)
            report[f"ratios_to_{side}"] = [round(ratio, 3) for ratio in ratios]
    return report


def describe(name: str, case: dict[str, Any]) -> str:
    """Returns the lines of one model in the printed table."""
    lines = [f"{name}:"]
    for side in ("loop", "loop_batched", "litserve", "router", "ours"):
        if side not in case:
            continue
        one = case[side]
        line = f"  {side:<13}{one['requests_per_s']:>8.1f} req/s"
        if "p50_ms" in one:
            line += f"   p50 {one['p50_ms']:>6.1f} ms   p99 {one['p99_ms']:>6.1f} ms"
            line += f"   server CPU {one['server_cpu_ms_per_request']:.2f} ms/request"
        if side != "ours":
            line += f"   ours is {case[f'ratio_to_{side}']:.2f} times it"
        lines.append(line)
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--batch-wait", type=float, default=0.01, help="ours, in seconds")
    parser.add_argument("--litserve-timeout", type=float, default=0.0, help="its batch_timeout")
    parser.add_argument("--litserve-fast-queue", type=int, choices=(0, 1), default=1)
    parser.add_argument("--only", choices=tuple(CLASSES), help="only this model")
    parser.add_argument("--no-litserve", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def find_litserve(options: argparse.Namespace) -> str | None:
    """Returns LitServe's version; None, with a line that says why, where it is left out."""
    if options.no_litserve:
        print("LitServe is left out, as asked")
        return None
    try:
        return install_litserve()
    except MissingSideError as error:
        print(f"LitServe is left out: {error}")
        return None


def main() -> None:
    """Runs all cases."""
    options = parse_arguments()
    names = [options.only] if options.only else list(CLASSES)
    batching = {
        "max_batch_size": options.max_batch_size,
        "batch_wait_timeout_s": options.batch_wait,
    }
    settings = LitServeOptions(
        options.max_batch_size, options.litserve_timeout, bool(options.litserve_fast_queue)
    )
    litserve_version = find_litserve(options)
    cases = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_networks(folder)
        os.environ[FOLDER_VARIABLE] = str(folder)
        lone_call = asyncio.run(measure_lone_call())
        print(f"the batcher adds to a lone call: {lone_call} (at most {MAX_LONE_MS} ms)")
        ours = stack.enter_context(product(names, folder, batching))
        time.sleep(3)  # what starting set in motion comes to rest
        with idle_cpu(ours.run_id, 3) as (idle_share,):
            pass
        for name in names:
            with ExitStack() as one:
                other = None
                if litserve_version is not None:
                    other = one.enter_context(litserve(name, folder, settings))
                time.sleep(3)  # what starting set in motion comes to rest
                cases[name] = run_case(name, ours, other, options)
            print(describe(name, cases[name]), flush=True)
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {
            **{name: version(name) for name in ("ray", "onnxruntime", "numpy")},
            "litserve": litserve_version,
        },
        "pairs": options.pairs,
        "seconds": options.seconds,
        "clients": options.clients,
        "batching": batching,
        "litserve": asdict(settings) if litserve_version else None,
        "required_ratio_to_litserve": REQUIRED_RATIO,
        "lone_call_through_the_batcher": {**lone_call, "limit_ms": MAX_LONE_MS},
        "our_idle_share_of_a_core": round(idle_share, 4),
        "cases": cases,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
