"""How exact the limits of keys are where two services count in one Redis, and what that costs.

Command: `python -m benchmarks.shared_quota`. Two services on this machine, each with a keys' file
of its own with the same keys, so that only Redis, a real server on a socket, counts for both.

- latency: one client in turn asks with a key without limits and with one whose limits are never
  reached, which waits for one trip to Redis.
- count: clients of both services send five times what a key may, for `--seconds`.
- killed: the same with another key, while Redis is killed and comes back empty; each service counts
  for itself meanwhile.

Prints what was let in to the limit; writes `benchmarks/results/shared_quota.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ROOT
from truthgpt_serve.access.key_edit import add_key

PATH = "/v1/completions"
BODY = {"model": "echo", "prompt": "one two three four", "max_tokens": 4}
REQUESTS_PER_MINUTE, TIMES = 600, 5
NUM_CLIENTS = 10
"""Of each service."""
KEYS: dict[str, dict[str, Any]] = {
    "free": {},
    "wide": {"requests_per_minute": 10**7},
    "counted": {"requests_per_minute": REQUESTS_PER_MINUTE},
    "killed": {"requests_per_minute": REQUESTS_PER_MINUTE},
}
AWAY_FROM, AWAY_TO = 1 / 3, 2 / 3
"""Of the time, when Redis is away."""
START_S = 20.0


class Redis:
    """A server on a socket that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it listens."""
        self._socket.unlink(missing_ok=True)
        command = ["redis-server", "--port", "0", "--unixsocket", str(self._socket), "--save", ""]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end_s = time.monotonic() + START_S
        while not self._socket.exists():
            if time.monotonic() > end_s:
                raise TimeoutError("redis-server does not listen")
            time.sleep(0.01)

    def kill(self) -> None:
        """Kills it; once more is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_S)
            self._process = None


@contextmanager
def services(folder: Path, store: str, number: int) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Starts services with the same keys; yields their addresses and the keys."""
    first = folder / "0" / "keys.yaml"
    first.parent.mkdir()
    keys = {name: add_key(first, {"name": name, **limits}) for name, limits in KEYS.items()}
    with ExitStack() as stack:
        urls = []
        for index in range(number):
            file = folder / str(index) / "keys.yaml"
            if index:
                shutil.copytree(first.parent, file.parent)
            auth = {"auth": {"keys_file": str(file), "quota_store": store}}
            small = {"model": {"family": "echo"}, "hardware": {"gpus": 0, "cpus": 0.1}, **auth}
            cluster = stack.enter_context(LocalCluster(ROOT / "configs" / "ray.env"))
            cluster.deploy(
                [model_application("echo", small), router_application(cluster.port, **auth)]
            )
            cluster.wait_until_ready()
            urls.append(cluster.url)
        time.sleep(2)  # the routers' first news of what goes direct
        yield urls, keys


async def send(urls: Sequence[str], key: str, seconds: float) -> list[tuple[float, int]]:
    """Sends `TIMES` the limit; returns when each answer came, and its status."""
    answers: list[tuple[float, int]] = []
    interval_s = len(urls) * NUM_CLIENTS * 60 / (TIMES * REQUESTS_PER_MINUTE)
    start_s = time.monotonic()

    async def run(client: httpx.AsyncClient) -> None:
        while (began_s := time.monotonic()) < start_s + seconds:
            answer = await client.post(PATH, json=BODY)
            answers.append((time.monotonic() - start_s, answer.status_code))
            await asyncio.sleep(max(0.0, interval_s - (time.monotonic() - began_s)))

    headers = {"authorization": f"Bearer {key}"}
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, headers=headers, timeout=30)
            )
            for url in urls
        ]
        await asyncio.gather(*(run(client) for client in clients for _ in range(NUM_CLIENTS)))
    return answers


def measure_latency(url: str, keys: dict[str, str], number: int) -> dict[str, Any]:
    """Has one client ask in turn with a key without limits and with one that has some."""
    times: dict[str, list[float]] = {"free": [], "wide": []}
    with httpx.Client(base_url=url, timeout=30) as client:
        for at in range(2 * (number + 20)):
            name = ("free", "wide")[at % 2]
            began_s = time.perf_counter()
            answer = client.post(PATH, json=BODY, headers={"authorization": f"Bearer {keys[name]}"})
            taken_s = time.perf_counter() - began_s
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            if at >= 40:
                times[name].append(taken_s * 1e3)
    found = {name: statistics.quantiles(each, n=100) for name, each in times.items()}
    return {
        f"{name}_ms": {"free": round(found["free"][at], 2), "counted": round(found["wide"][at], 2)}
        for name, at in (("p50", 49), ("p99", 98))
    }


async def send_while_killed(
    urls: Sequence[str], key: str, seconds: float, redis: Redis
) -> list[tuple[float, int]]:
    """Does as `send`, with Redis away in the middle."""

    async def strike() -> None:
        await asyncio.sleep(AWAY_FROM * seconds)
        await asyncio.to_thread(redis.kill)
        await asyncio.sleep((AWAY_TO - AWAY_FROM) * seconds)
        await asyncio.to_thread(redis.start)

    answers, _ = await asyncio.gather(send(urls, key, seconds), strike())
    return answers


def count(answers: Sequence[tuple[float, int]], seconds: float) -> dict[str, Any]:
    """Returns what was let in, in all and in thirds of the time."""
    thirds = Counter(
        min(2, int(3 * then_s / seconds)) for then_s, status in answers if status == 200
    )
    let_in = thirds.total()
    return {
        "sent_to_limit": round(len(answers) / REQUESTS_PER_MINUTE, 2),
        "let_in_to_limit": round(let_in / REQUESTS_PER_MINUTE, 3),
        "let_in_by_third": [thirds[third] for third in range(3)],
        "statuses": dict(sorted(Counter(status for _, status in answers).items())),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=58.0, help="less than a minute")
    parser.add_argument("--requests", type=int, default=1000, help="of each key, for latency")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if shutil.which("redis-server") is None:
        raise SystemExit("redis-server is missing: install the package `redis-server`")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        redis = Redis(Path(name))
        redis.start()
        stack.callback(redis.kill)
        urls, keys = stack.enter_context(services(Path(name), redis.url, 2))
        seconds = options.seconds
        result = {
            "latency": measure_latency(urls[0], keys, options.requests),
            "count": count(asyncio.run(send(urls, keys["counted"], seconds)), seconds),
            "killed": count(
                asyncio.run(send_while_killed(urls, keys["killed"], seconds, redis)), seconds
            ),
        }
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "shared_quota.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
