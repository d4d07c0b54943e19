"""What keys cost, how exact their limits are, and how a busy key moves the others.

Command: `python -m benchmarks.keys`. A service with echo models and keys runs, and for the cost one
without keys and one with traces too.

- cost: streams of 64 tokens 5 ms apart for 32 clients (wrk), and whole answers of 4 tokens for 16,
  from a service with keys and from one without at the same time; CPU time of the whole service for
  each request, and of each kind of its processes. Usage is kept and metrics are counted, for a key
  without limits (`key`), for one with limits of requests, tokens and concurrency (`limits`), and
  for that one where each request is traced by OpenTelemetry, or a share of them (`traced`).
- quota: 20 clients send five times what a key may for a minute; what was let in to the limit.
- fairness: a key asks 8 times a second for streams of a model that can do 32, while another one
  asks for nothing, for its share, and for ten times that: the time to the first token of the
  former, and the tokens of both.
- flood: a key has thousands of connections that ask all the time, and another one asks patiently:
  how often that is refused, and what it is told.

Prints medians of several pairs; writes `benchmarks/results/keys.json`. Needs wrk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.keys_cost import BODY, FORMS, PATH, Side, measure_cost, spans_receiver
from benchmarks.keys_fairness import measure_fairness
from benchmarks.keys_flood import measure_flood
from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ROOT
from truthgpt_serve.access.key_edit import add_key

PARTS = ("cost", "quota", "fairness", "flood")
LIMITS = {"requests_per_minute": 10**7, "tokens_per_minute": 10**9, "max_concurrent": 1000}
NUM_CLIENTS = 20
REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE = 600, 6000
SLOTS, TOKEN_INTERVAL_S = 16, 0.02


def serve(
    stack: ExitStack, keys: Mapping[str, Mapping[str, Any]], env: Mapping[str, str] | None = None
) -> tuple[LocalCluster, dict[str, str]]:
    """Starts a service with these keys and variables; returns it and the keys."""
    file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keys.yaml"
    found = {name: add_key(file, {"name": name, **limits}) for name, limits in keys.items()}
    auth = {"auth": {"keys_file": str(file)}} if keys else {}
    small = {"model": {"family": "echo"}, "hardware": {"gpus": 0, "cpus": 0.1}, **auth}
    slow = {
        "max_ongoing_requests": SLOTS,
        "max_queued_requests": 10 * SLOTS,
        "engine": {"token_interval_s": TOKEN_INTERVAL_S},
    }
    paced = {"max_ongoing_requests": 256, "engine": {"token_interval_s": 0.005}}
    cluster = stack.enter_context(LocalCluster(ROOT / "configs" / "ray.env", env=env))
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


def measure_costs(
    keyed: LocalCluster, keys: Mapping[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    """Compares services with keys, and with traces too, with one without."""
    with ExitStack() as stack:
        plain, _ = serve(stack, {})
        endpoint = stack.enter_context(spans_receiver())
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(options.traced_share),
        }
        traced, traced_keys = serve(stack, {"limits": LIMITS}, env)
        sides = {
            "key": Side(keyed, keys["key"]),
            "limits": Side(keyed, keys["limits"]),
            "traced": Side(traced, traced_keys["limits"]),
        }
        return {
            form: measure_cost(
                sides, Side(plain, "none"), form, options.cost_seconds, options.cost_runs
            )
            for form in options.cost_forms
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
    parser.add_argument(
        "--traced-share", type=float, default=1.0, help="of the requests that are traced"
    )
    parser.add_argument("--cost-forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--quota-seconds", type=float, default=60.0)
    parser.add_argument("--flood", nargs="+", type=int, default=[300, 4000], help="connections")
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
        keyed, keys = serve(stack, limits)
        result: dict[str, Any] = {}
        if "cost" in options.parts:
            result["cost"] = measure_costs(keyed, keys, options)
        if "quota" in options.parts:
            result["quota"] = measure_quotas(keyed.url, keys, options.quota_seconds)
        if "fairness" in options.parts:
            result["fairness"] = measure_fairness(keyed.url, keys, options)
        if "flood" in options.parts:
            result["flood"] = measure_flood(keyed.url, keys, options.flood, options.seconds)
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "keys.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
