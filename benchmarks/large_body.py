"""A 20 MB request through the router against the same request straight to the model's application.

Command: `python -m benchmarks.large_body`. The model parses the body and answers a few words, so
the difference is the router's relaying. Writes `benchmarks/results/large_body.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import urllib.request
from pathlib import Path

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ROOT

NUM_BYTES = 20_000_000


def post(url: str, body: bytes) -> float:
    """Returns the milliseconds that one request took."""
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    started_s = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
    return (time.perf_counter() - started_s) * 1000


def main() -> None:
    """Alternates between the two ways; `model` comes first, then last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    filler = b'"user": "' + b"A" * NUM_BYTES + b'", "prompt": "a b", "max_tokens": 2'
    bodies = {
        "model first": b'{"model": "echo", ' + filler + b"}",
        "model last": b"{" + filler + b', "model": "echo"}',
    }
    report: dict[str, dict[str, float]] = {}
    with LocalCluster(ROOT / "configs" / "ray.env") as cluster:
        echo = {"model": {"family": "echo"}, "hardware": {"gpus": 0, "cpus": 0.1}}
        cluster.deploy([model_application("echo", echo), router_application(cluster.port)])
        cluster.wait_until_ready()
        direct_url = f"{cluster.url}/models/echo/v1/completions"
        router_url = f"{cluster.url}/v1/completions"
        for name, body in bodies.items():
            times_ms = [
                (post(direct_url, body), post(router_url, body)) for _ in range(options.pairs)
            ]
            report[name] = {
                "direct_ms": round(statistics.median(direct for direct, _ in times_ms), 1),
                "router_ms": round(statistics.median(router for _, router in times_ms), 1),
                "ratio": round(statistics.median(r / d for d, r in times_ms), 3),
            }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "large_body.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
