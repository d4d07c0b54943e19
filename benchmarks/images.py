"""The step-batching engine against the stock pipeline: one after the other, and behind a queue.

Needs torch, diffusers, transformers and greenlet, no Ray. Sides take turns, pair by pair. Command:
`python -m benchmarks.images`; on a GPU `python -m benchmarks.images --pipeline sdxl --device cuda`.
Prints medians and ratios; writes `benchmarks/results/images.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.image_pipelines import PIPELINES, BenchmarkPipeline, load_pipeline
from benchmarks.image_sides import (
    EngineSide,
    QueueSide,
    Request,
    Result,
    SerialSide,
    mixed_trace,
    same_trace,
)

RESULTS = Path(__file__).resolve().parent / "results"
STEP_S = 0.05
"""Length of a denoising step in the measurement of the engine's overhead."""


def overhead(pipeline: BenchmarkPipeline, pairs: int) -> dict[str, Any]:
    """One request at a time, each step slowed to 50 ms: what the engine adds, as a ratio."""
    request = Request(size=pipeline.small, num_steps=20, seed=1, arrival_s=0.0)
    ratios: list[float] = []
    with pipeline.slowed(STEP_S), EngineSide(pipeline) as engine:
        serial = SerialSide(pipeline)
        for side in (serial, engine):
            side.run([request])
        for pair in range(pairs):
            took = {
                name: side.run([request]).latencies_s[0]
                for name, side in _ordered(pair, serial=serial, engine=engine)
            }
            ratios.append(took["engine"] / took["serial"])
    return {"ratio": statistics.median(ratios), "ratios": ratios}


def closed_loop(
    pipeline: BenchmarkPipeline, size: int, options: argparse.Namespace
) -> dict[str, Any]:
    """All clients ask again as soon as they have their image: images per second."""
    trace = same_trace(size, options.steps, options.requests)
    found: dict[str, list[Result]] = {"serial": [], "engine": []}
    with EngineSide(pipeline, num_clients=options.clients) as engine:
        serial = SerialSide(pipeline)
        engine.profile([size])
        for side in (serial, engine):
            side.run(trace[:2])
        for pair in range(options.pairs):
            for name, side in _ordered(pair, serial=serial, engine=engine):
                found[name].append(side.run(trace))
    return _summary(found, "serial", size)


def poisson(pipeline: BenchmarkPipeline, options: argparse.Namespace) -> dict[str, Any]:
    """Mixed sizes and steps that arrive at random, at a share of what the queue can carry."""
    probe = SerialSide(pipeline)
    trace = mixed_trace(pipeline.small, pipeline.large, options.requests, rate_per_s=1.0)
    probe.run(trace[:2])
    busy_s = sum(probe.run([request]).latencies_s[0] for request in trace[:8]) / 8
    rate = options.load / busy_s
    trace = mixed_trace(pipeline.small, pipeline.large, options.requests, rate_per_s=rate)
    found: dict[str, list[Result]] = {"queue": [], "engine": []}
    with EngineSide(pipeline, num_clients=options.requests) as engine, QueueSide(pipeline) as queue:
        engine.profile([pipeline.small, pipeline.large])
        for pair in range(options.pairs):
            for name, side in _ordered(pair, queue=queue, engine=engine):
                found[name].append(side.run(trace))
    return {**_summary(found, "queue", pipeline.small), "requests_per_s": rate}


def _ordered(pair: int, **sides: Any) -> list[tuple[str, Any]]:
    order = list(sides.items())
    return order if pair % 2 == 0 else order[::-1]


def _summary(found: dict[str, list[Result]], reference: str, small: int) -> dict[str, Any]:
    def median(name: str, value: Callable[[Result], float]) -> float:
        return statistics.median(value(result) for result in found[name])

    def ratio(value: Callable[[Result], float]) -> float:
        pairs = zip(found["engine"], found[reference], strict=True)
        return statistics.median(value(ours) / value(theirs) for ours, theirs in pairs)

    def p99_small(result: Result) -> float:
        return result.quantile_s(0.99, size=small)

    values: dict[str, Callable[[Result], float]] = {
        "images_per_s": lambda result: result.images_per_s,
        "p50_s": lambda result: result.quantile_s(0.5),
        "p99_s": lambda result: result.quantile_s(0.99),
        "p99_small_s": p99_small,
        "forwards": lambda result: result.num_forwards,
    }
    return {
        **{name: {key: median(name, value) for key, value in values.items()} for name in found},
        "ratios": {key: ratio(value) for key, value in values.items()},
    }


def _print(name: str, result: dict[str, Any], reference: str) -> None:
    theirs, ours, ratios = result[reference], result["engine"], result["ratios"]
    columns = "  ".join(
        f"{key} {theirs[key]:.4g} -> {ours[key]:.4g} ({ratios[key]:.3f})" for key in ratios
    )
    print(f"{name}: {reference} -> engine (ratio): {columns}", flush=True)


def main() -> None:
    """Runs all scenarios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pipeline", choices=sorted(PIPELINES), default="tiny-sdxl")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32, help="images in each measurement")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of equal requests")
    parser.add_argument("--load", type=float, default=0.9, help="share of the queue's capacity")
    parser.add_argument("--out", type=Path, default=RESULTS / "images.json")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pipeline = load_pipeline(options.pipeline, options.device)
    report: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "pipeline": asdict(PIPELINES[options.pipeline]),
        "pairs": options.pairs,
        "clients": options.clients,
        "requests": options.requests,
        "load": options.load,
    }
    report["overhead"] = overhead(pipeline, options.pairs)
    print(f"overhead at {STEP_S * 1000:g} ms a step: {report['overhead']['ratio']:.4f}", flush=True)
    for size in (pipeline.small, pipeline.large):
        name = f"closed loop {size}x{size}"
        report[name] = closed_loop(pipeline, size, options)
        _print(name, report[name], "serial")
    report["poisson mixed"] = poisson(pipeline, options)
    _print("poisson mixed", report["poisson mixed"], "queue")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(_rounded(report), indent=1) + "\n")
    print(f"written to {options.out}")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
