"""Half of the clients leave at random moments: what stays behind, and what it costs afterwards.

Command: `python -m benchmarks.disconnects`. Prints ongoing requests (from each replica's metrics),
file descriptors and throughput before and after; writes `benchmarks/results/disconnects.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import measure
from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ROOT

STREAM = {"model": "echo", "prompt": "one two three", "max_tokens": 64, "stream": True}
QUICK = {"model": "quick", "prompt": "one two three", "max_tokens": 8}
LEAVE_S = 0.3
"""64 words, 5 ms apart, are not whole by then."""
SETTLE_TIMEOUT_S = 60.0
EXPORT_S = 40.0
_ONGOING = re.compile(
    r"^ray_serve_replica_processing_queries\{(?P<labels>[^}]*)\} (?P<value>[-+.e\d]+)$",
    re.MULTILINE,
)


@dataclass(slots=True)
class Outcome:
    """How the requests of one run ended."""

    num_whole: int = 0
    num_left: int = 0
    num_failed: int = 0


async def send_requests(
    url: str, body: dict[str, Any], *, num_requests: int, num_clients: int, seed: int = 0
) -> Outcome:
    """Sends requests from `num_clients` clients; every other one leaves within `LEAVE_S`.

    Leaving means closing the connection: before the answer begins, or while it comes.
    """
    rng = random.Random(seed)
    outcome = Outcome()
    leaves = [index % 2 == 1 for index in range(num_requests)]
    rng.shuffle(leaves)
    moments_s = [rng.uniform(0.0, LEAVE_S) for _ in leaves]
    waiting = iter(zip(leaves, moments_s, strict=True))

    async def client() -> None:
        for leaves_early, moment_s in waiting:
            await _send_one(url, body, moment_s if leaves_early else None, outcome)

    async with asyncio.timeout(60 + num_requests):
        await asyncio.gather(*(client() for _ in range(num_clients)))
    return outcome


async def _send_one(
    url: str, body: dict[str, Any], leave_after_s: float | None, outcome: Outcome
) -> None:
    parts = urlsplit(url)
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(
            b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (parts.path.encode(), len(content), content)
        )
        async with asyncio.timeout(leave_after_s if leave_after_s is not None else 60):
            answer = await reader.read(-1)
        if answer.startswith(b"HTTP/1.1 200") and b"[DONE]" in answer:
            outcome.num_whole += 1
        else:
            outcome.num_failed += 1
    except TimeoutError:
        if leave_after_s is None:
            outcome.num_failed += 1
        else:
            outcome.num_left += 1
    finally:
        writer.transport.abort()


def ongoing_requests(metrics_port: int) -> dict[str, float]:
    """Returns the ongoing requests of each replica, as its own metric says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for match in _ONGOING.finditer(text):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"]))
        found[f"{labels.get('application')}#{labels.get('replica')}"] = float(match["value"])
    return found


def num_descriptors(cluster: LocalCluster, applications: list[str]) -> dict[str, int]:
    """Returns the open file descriptors of each application's replicas."""
    return {
        name: sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in cluster.replica_pids(name))
        for name in applications
    }


def wait_until_idle(metrics_port: int, *, timeout_s: float = SETTLE_TIMEOUT_S) -> dict[str, float]:
    """Waits until no replica has an ongoing request; returns what is left when the time is over."""
    deadline = time.monotonic() + timeout_s
    # The gauges are exported every few seconds: older values must not count. And unused
    # connections are kept for 30 s.
    time.sleep(EXPORT_S)
    left = ongoing_requests(metrics_port)
    while any(left.values()) and time.monotonic() < deadline:
        time.sleep(1)
        left = ongoing_requests(metrics_port)
    return left


def _throughput(cluster: LocalCluster, repeats: int) -> float:
    return statistics.median(
        measure(
            f"{cluster.url}/v1/completions",
            QUICK,
            num_clients=16,
            duration_s=4,
            run_id=cluster.run_id,
        ).requests_per_s
        for _ in range(repeats)
    )


def applications(port: int) -> list[dict[str, Any]]:
    """Returns the Serve file's entries: two echo models and two routers."""
    echo: dict[str, Any] = {"model": {"family": "echo"}, "hardware": {"gpus": 0, "cpus": 0.1}}
    slow = {"max_ongoing_requests": 256, "engine": {"token_interval_s": 0.005}}
    return [
        model_application("echo", {**echo, "serving": slow}),
        model_application("quick", {**echo, "serving": {"max_ongoing_requests": 256}}),
        router_application(port, num_replicas=2),
    ]


def main() -> None:
    """Measures before, disconnects, measures after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    names = ["echo", "quick", "router"]
    load = {"num_requests": options.requests, "num_clients": options.clients}
    with LocalCluster(ROOT / "configs" / "ray.env") as cluster:
        cluster.deploy(applications(cluster.port))
        cluster.wait_until_ready()
        url = f"{cluster.url}/v1/completions"
        # The same load once before, so that caches and memory pools have their size.
        asyncio.run(send_requests(url, STREAM, **load, seed=1))
        _throughput(cluster, 1)
        wait_until_idle(cluster.metrics_port)
        before, before_fds = _throughput(cluster, options.repeats), num_descriptors(cluster, names)
        started_s = time.monotonic()
        outcome = asyncio.run(send_requests(url, STREAM, **load))
        took_s = time.monotonic() - started_s
        left = wait_until_idle(cluster.metrics_port)
        after_fds, after = num_descriptors(cluster, names), _throughput(cluster, options.repeats)
    report = {
        "requests": options.requests,
        "whole": outcome.num_whole,
        "left": outcome.num_left,
        "failed": outcome.num_failed,
        "seconds": round(took_s, 1),
        "ongoing_afterwards": left,
        "descriptors": {"before": before_fds, "after": after_fds},
        "requests_per_s": {"before": round(before, 1), "after": round(after, 1)},
        "throughput_ratio": round(after / before, 4),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "disconnects.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
