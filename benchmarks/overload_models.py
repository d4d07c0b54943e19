"""Three times the requests that a text and an image model can do.

Command: `python -m benchmarks.overload_models`. Both shipped models run in one service, and one is
loaded at a time. First clients that each send the next request at once find the peak, as many as
the model has places. Then requests come at `--times` that rate, whether others are answered or
not, for `--seconds`, and a refused one leaves. After it the peak is measured once more, and the
mean of both counts. Prints goodput against the peak, every status, and how soon a request is
refused; writes `benchmarks/results/overload_models.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ENGINE_ENV, ROOT, START_TIMEOUT_S

RESULT = ROOT / "benchmarks" / "results" / "overload_models.json"
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of a model, and by how many clients to find its peak."""

    path: str
    body: Mapping[str, Any]
    num_clients: int


TEXT = {"model": "story", "prompt": "Once upon a time", "max_tokens": 64, "ignore_eos": True}
IMAGE = {"model": "shapes", "prompt": "a red circle", "size": "64x64", "num_inference_steps": 10}
CASES = {
    "text": Case("/v1/completions", TEXT, 64),
    "images": Case("/v1/images/generations", IMAGE, 16),
}


@dataclass(slots=True)
class Seen:
    """What the clients of one interval saw.

    Attributes:
        statuses: Answers by status; 0 is none.
        refused_ms: Milliseconds to each refusal.
        ends_s: Seconds from the start to the end of each answer with status 200.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    refused_ms: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)

    def rate(self, seconds: float) -> float:
        """Returns the answers a second that ended in the interval, without its first tenth."""
        first_s = seconds / 10
        return sum(first_s <= end_s <= seconds for end_s in self.ends_s) / (seconds - first_s)


async def ask(session: aiohttp.ClientSession, case: Case, seen: Seen, start_s: float) -> None:
    """Asks once."""
    began_s = time.monotonic()
    try:
        async with session.post(case.path, json=case.body) as answer:
            await answer.read()
            status = answer.status
    except (aiohttp.ClientError, TimeoutError):
        status = 0
    seen.statuses[status] += 1
    if status == 429:
        seen.refused_ms.append((time.monotonic() - began_s) * 1e3)
    elif status == 200:
        seen.ends_s.append(time.monotonic() - start_s)


async def find_peak(session: aiohttp.ClientSession, case: Case, seconds: float) -> float:
    """Returns the answers a second of clients that each send the next request at once."""
    seen, start_s = Seen(), time.monotonic()

    async def repeat() -> None:
        while time.monotonic() - start_s < seconds:
            await ask(session, case, seen, start_s)

    await asyncio.gather(*(repeat() for _ in range(case.num_clients)))
    return seen.rate(seconds)


async def overload(session: aiohttp.ClientSession, case: Case, rate: float, seconds: float) -> Seen:
    """Sends requests at a rate, whether others are answered or not."""
    seen, start_s = Seen(), time.monotonic()
    tasks: set[asyncio.Task[None]] = set()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start_s + number / rate - time.monotonic()))
        task = asyncio.create_task(ask(session, case, seen, start_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return seen


async def measure(url: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one model."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
        await find_peak(session, case, 5.0)
        before = await find_peak(session, case, options.peak_seconds)
        seen = await overload(session, case, options.times * before, options.seconds)
        after = await find_peak(session, case, options.peak_seconds)
    peak, goodput = (before + after) / 2, seen.rate(options.seconds)
    refused = sorted(seen.refused_ms) or [0.0]
    return {
        "peaks": [round(before, 1), round(after, 1)],
        "offered_per_s": round(options.times * before, 1),
        "goodput": round(goodput, 1),
        "goodput_ratio": round(goodput / peak, 3),
        "statuses": {str(status): number for status, number in sorted(seen.statuses.items())},
        "refused_ms": {
            name: round(refused[int(share * (len(refused) - 1))], 1)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--peak-seconds", type=float, default=15.0)
    parser.add_argument("--only", choices=tuple(CASES))
    options = parser.parse_args()
    models = ROOT / "configs" / "models"
    with LocalCluster(ROOT / "configs" / "ray.env", env=ENGINE_ENV) as cluster:
        configs = {name: str(models / f"{name}.yaml") for name in ("story", "shapes")}
        applications = [model_application(n, {"config": path}) for n, path in configs.items()]
        cluster.deploy([*applications, router_application(cluster.port)])
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        time.sleep(2)  # the routers' first news of what goes direct
        results = {
            name: asyncio.run(measure(cluster.url, case, options))
            for name, case in CASES.items()
            if options.only in (None, name)
        }
    print(json.dumps(results, indent=1))
    RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
