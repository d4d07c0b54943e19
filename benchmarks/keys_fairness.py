"""How a busy key moves the streams of another one: the part `fairness` of `benchmarks.keys`."""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

PATH = "/v1/completions"
BODY = {"model": "slow", "prompt": "one two three four", "stream": True}
NUM_TOKENS = 25
SHARE_PER_S, STEADY_PER_S = 16.0, 8.0


async def send_at(rate: float, end_s: float, ask: Callable[[], Awaitable[None]]) -> None:
    """Sends requests at random times, so many a second on average."""
    rng = random.Random(1)
    running: set[asyncio.Task[None]] = set()
    while time.monotonic() < end_s:
        await asyncio.sleep(rng.expovariate(rate))
        task = asyncio.ensure_future(ask())
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


@dataclass(slots=True)
class Streams:
    """What became of the streams of one run.

    Attributes:
        first_ms: Times to the first token of the steady key's streams, in milliseconds.
        num_refused: Streams of the steady key that were refused.
        num_tokens: Tokens of all streams.
    """

    first_ms: list[float] = field(default_factory=list)
    num_refused: int = 0
    num_tokens: int = 0


async def measure_first_tokens(
    url: str, keys: dict[str, str], busy_per_s: float, seconds: float
) -> Streams:
    """Has one key ask steadily, and another one so often; none where that is 0."""
    found = Streams()
    rng = random.Random(2)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def ask(name: str) -> None:
            body = {**BODY, "max_tokens": rng.randrange(1, 2 * NUM_TOKENS)}
            headers = {"authorization": f"Bearer {keys[name]}"}
            began_s, is_first = time.perf_counter(), name == "steady"
            async with client.stream("POST", PATH, json=body, headers=headers) as answer:
                if answer.status_code != 200:
                    found.num_refused += name == "steady"
                    return
                async for piece in answer.aiter_raw():
                    found.num_tokens += piece.count(b"data: {")
                    if is_first:
                        found.first_ms.append(1e3 * (time.perf_counter() - began_s))
                        is_first = False

        end_s = time.monotonic() + seconds
        asked = [send_at(STEADY_PER_S, end_s, lambda: ask("steady"))]
        if busy_per_s:
            asked.append(send_at(busy_per_s, end_s, lambda: ask("busy")))
        await asyncio.gather(*asked)
    return found


def quantile(times: list[float], share: float) -> float:
    """Returns the value below which this share of the times lies."""
    return round(sorted(times)[int(share * (len(times) - 1))], 1)


def measure_fairness(url: str, keys: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Has one key ask for nothing, for its share, and for ten times that, beside a steady one."""
    found: dict[str, list[Streams]] = {"0": [], "1": [], "10": []}
    for _ in range(options.pairs):
        for times, runs in found.items():
            rate = SHARE_PER_S * int(times)
            runs.append(asyncio.run(measure_first_tokens(url, keys, rate, 2 * options.seconds)))
    result: dict[str, Any] = {}
    for times, runs in found.items():
        together = [each for run in runs for each in run.first_ms]
        result[f"at_{times}x"] = {
            **{f"ttft_ms_p{number}": quantile(together, number / 100) for number in (50, 90, 99)},
            "streams": len(together),
            "refused": sum(run.num_refused for run in runs),
            "tokens_per_s": round(
                statistics.median(run.num_tokens for run in runs) / (2 * options.seconds), 1
            ),
        }
    return result
