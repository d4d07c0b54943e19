"""What keys cost, how exact their limits are, and how a busy key moves the others.

Command: `python -m benchmarks.keys`. Two services with an echo model run, one with keys and one
without.

- cost: whole answers of 4 tokens for 16 clients (wrk), and streams of 64 tokens 5 ms apart for 32,
  in turn from both; CPU time of the whole service for each request, of each kind of its processes,
  and requests a second. Usage is kept and metrics are counted, for a key without limits and for one
  with limits of requests, tokens and concurrency.
- quota: 20 clients send five times what a key may for a minute; what was let in to the limit.
- fairness: a key asks 8 times a second for streams of a model that can do 32, while another one
  asks for nothing, for its share, and for ten times that: the time to the first token of the
  former, and the tokens of both.

Prints medians of alternated pairs; writes `benchmarks/results/keys.json`. Needs wrk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.keys_fairness import measure_fairness
from benchmarks.load import cpu_by_kind
from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ROOT
from truthgpt_serve.access.key_edit import add_key

PARTS = ("cost", "quota", "fairness")
PATH = "/v1/completions"
BODY = {"model": "echo", "prompt": "one two three four", "max_tokens": 4}
STREAM = {**BODY, "model": "paced", "max_tokens": 64, "stream": True}
FORMS = {"whole": (BODY, 16), "stream": (STREAM, 32)}
"""What is sent by how many clients."""
LIMITS = {"requests_per_minute": 10**7, "tokens_per_minute": 10**9, "max_concurrent": 1000}
KINDS = {
    name: name
    for name in (
        "haproxy",
        *(f"ServeReplica:{name}" for name in ("echo", "paced", "slow", "router")),
    )
}
NUM_CLIENTS = 20
REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE = 600, 6000
SLOTS, TOKEN_INTERVAL_S = 16, 0.02
SCRIPT = """
wrk.method = "POST"
wrk.body = [[%s]]
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer %s"
"""


def serve(stack: ExitStack, folder: Path, keys: dict[str, dict[str, Any]]) -> tuple[Any, Any]:
    """Starts a service with these keys; returns it and the keys."""
    file = folder / "keys.yaml"
    found = {name: add_key(file, {"name": name, **limits}) for name, limits in keys.items()}
    auth = {"auth": {"keys_file": str(file)}} if keys else {}
    small = {"model": {"family": "echo"}, "hardware": {"gpus": 0, "cpus": 0.1}, **auth}
    slow = {
        "max_ongoing_requests": SLOTS,
        "max_queued_requests": 10 * SLOTS,
        "engine": {"token_interval_s": TOKEN_INTERVAL_S},
    }
    paced = {"max_ongoing_requests": 256, "engine": {"token_interval_s": 0.005}}
    cluster = stack.enter_context(LocalCluster(ROOT / "configs" / "ray.env"))
    cluster.deploy(
        [
            model_application("echo", small),
            model_application("paced", {**small, "serving": paced}),
            model_application("slow", {**small, "serving": slow}),
            router_application(cluster.port, **auth),
        ]
    )
    cluster.wait_until_ready()
    time.sleep(2)  # the routers' first news of what goes direct
    return cluster, found


@dataclass(frozen=True, slots=True)
class Cost:
    """What the requests of one run cost.

    Attributes:
        cpu_ms: CPU milliseconds for each request.
        by_kind: The same of each kind of the service's processes.
        per_s: Requests a second.
    """

    cpu_ms: float
    by_kind: dict[str, float]
    per_s: float


def run_wrk(cluster: Any, key: str, seconds: float, form: str = "whole") -> Cost:
    """Sends requests of one of the forms, each client one after the other."""
    body, num_clients = FORMS[form]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % (json.dumps(body), key))
        script.flush()
        before = cpu_by_kind(cluster.run_id, KINDS)
        command = ["wrk", "-t1", f"-c{num_clients}", f"-d{seconds:g}s", "-s", script.name]
        done = subprocess.run(
            [*command, f"{cluster.url}{PATH}"], capture_output=True, text=True, check=True
        )
        after = cpu_by_kind(cluster.run_id, KINDS)
    if "Non-2xx" in done.stdout:
        raise SystemExit(done.stdout)
    number = int(done.stdout.split(" requests in ")[0].split()[-1])
    by_kind = {kind: 1e3 * (after[kind] - before[kind]) / number for kind in after}
    return Cost(sum(by_kind.values()), by_kind, number / seconds)


def measure_cost(
    keyed: Any, plain: Any, keys: dict[str, str], options: argparse.Namespace, form: str
) -> dict[str, Any]:
    """Compares the two services by requests of one form."""
    sides = {
        "limits": (keyed, keys["limits"]),
        "key": (keyed, keys["key"]),
        "none": (plain, "none"),
    }
    for cluster, credential in sides.values():
        run_wrk(cluster, credential, 2.0, form)
    found: dict[str, list[Cost]] = {name: [] for name in sides}
    for number in range(options.cost_runs):
        for name, (cluster, credential) in list(sides.items())[:: -1 if number % 2 else 1]:
            found[name].append(run_wrk(cluster, credential, options.cost_seconds, form))
    return {name: compare_costs(costs, found["none"]) for name, costs in found.items()}


def compare_costs(costs: list[Cost], others: list[Cost]) -> dict[str, Any]:
    """Returns the medians of some runs, and of their ratios to others."""
    pairs = list(zip(costs, others, strict=True))
    return {
        "cpu_ms": round(statistics.median(cost.cpu_ms for cost in costs), 3),
        "cpu_ratio": round(statistics.median(a.cpu_ms / b.cpu_ms for a, b in pairs), 3),
        "throughput_ratio": round(statistics.median(a.per_s / b.per_s for a, b in pairs), 3),
        "by_kind": {
            kind: round(statistics.median(cost.by_kind[kind] for cost in costs), 3)
            for kind in costs[0].by_kind
        },
    }


async def measure_quota(url: str, key: str, seconds: float) -> tuple[int, int]:
    """Sends five times the limit; returns requests and tokens that were let in."""
    requests = tokens = 0
    interval_s = NUM_CLIENTS * 60 / (5 * REQUESTS_PER_MINUTE)
    end_s = time.monotonic() + seconds

    async def run(client: httpx.AsyncClient) -> None:
        nonlocal requests, tokens
        while (began_s := time.monotonic()) < end_s:
            number = random.randrange(1, 60)
            answer = await client.post(PATH, json={**BODY, "max_tokens": number})
            if answer.status_code == 200:
                requests += 1
                tokens += answer.json()["usage"]["total_tokens"]
            await asyncio.sleep(max(0.0, interval_s - (time.monotonic() - began_s)))

    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
        await asyncio.gather(*(run(client) for _ in range(NUM_CLIENTS)))
    return requests, tokens


def measure_quotas(url: str, keys: dict[str, str], seconds: float) -> dict[str, Any]:
    """Returns what was let in, to the limit."""
    requests, _ = asyncio.run(measure_quota(url, keys["requests"], seconds))
    _, tokens = asyncio.run(measure_quota(url, keys["tokens"], seconds))
    return {
        "requests_ratio": round(requests / REQUESTS_PER_MINUTE, 3),
        "tokens_ratio": round(tokens / TOKENS_PER_MINUTE, 3),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--cost-seconds", type=float, default=2.0, help="of one run, not of fairness"
    )
    parser.add_argument("--cost-runs", type=int, default=20, help="of each side, in turn")
    parser.add_argument("--quota-seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: install the package `wrk`")
    limits = {
        "limits": LIMITS,
        "key": {},
        "requests": {"requests_per_minute": REQUESTS_PER_MINUTE},
        "tokens": {"tokens_per_minute": TOKENS_PER_MINUTE},
        "steady": {},
        "busy": {},
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keyed, keys = serve(stack, folder, limits)
        result: dict[str, Any] = {}
        if "cost" in options.parts:
            with ExitStack() as other:
                plain, _ = serve(other, folder, {})
                result["cost"] = {
                    form: measure_cost(keyed, plain, keys, options, form) for form in FORMS
                }
        if "quota" in options.parts:
            result["quota"] = measure_quotas(keyed.url, keys, options.quota_seconds)
        if "fairness" in options.parts:
            result["fairness"] = measure_fairness(keyed.url, keys, options)
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "keys.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
