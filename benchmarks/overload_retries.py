"""When a refused client is let in, against what `Retry-After` told it.

Three times as many clients as a slow model holds ask at the same time. Each one that is refused
waits as it was told and asks again, until it is answered; then it leaves, or asks anew.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

PATH = "/v1/completions"
OVERLOAD = 3
WITHIN = 0.3
PLACES, QUEUED, TOKENS, TOKEN_INTERVAL_S = 4, 8, 20, 0.05
"""A request takes a second: a place comes every 0.25 s."""
MODEL = "slow"
SERVING = {
    "max_ongoing_requests": PLACES,
    "max_queued_requests": QUEUED,
    "engine": {"token_interval_s": TOKEN_INTERVAL_S},
}
BODY = {"model": MODEL, "prompt": "one two three four", "max_tokens": TOKENS}


@dataclass(slots=True)
class Seen:
    """What the clients saw.

    Attributes:
        told_s: The first `Retry-After` of each request that was refused and then let in.
        admitted_s: From that refusal to the arrival of the try that was let in.
        refused_ms: Milliseconds of each refusal.
        statuses: Answers by status; 0 is none.
    """

    told_s: list[float] = field(default_factory=list)
    admitted_s: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


async def ask(client: httpx.AsyncClient, seen: Seen, way: dict[str, str]) -> None:
    """Asks once, and again as it is told, until the request is let in."""
    first_s = told_s = 0.0
    while True:
        began_s = time.monotonic()
        try:
            answer = await client.post(PATH, json=BODY, headers=way)
        except httpx.HTTPError:
            seen.statuses[0] += 1
            return
        seen.statuses[answer.status_code] += 1
        if answer.status_code != 429:
            if first_s:
                seen.told_s.append(told_s)
                seen.admitted_s.append(began_s - first_s)
            return
        refused_s = time.monotonic()
        seen.refused_ms.append((refused_s - began_s) * 1e3)
        wait_s = float(answer.headers["retry-after"])
        if not first_s:
            first_s, told_s = refused_s, wait_s
        await asyncio.sleep(wait_s)


async def send(url: str, seconds: float, way: dict[str, str]) -> Seen:
    """Lets all clients ask; for 0 seconds each of them is answered once."""
    seen, end_s = Seen(), time.monotonic() + seconds

    async def act() -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
            await ask(client, seen, way)
            while time.monotonic() < end_s:
                await ask(client, seen, way)

    await asyncio.gather(*(act() for _ in range(OVERLOAD * (PLACES + QUEUED))))
    return seen


def measure(url: str, seconds: float, *, router: bool = False) -> dict[str, Any]:
    """Returns how well `Retry-After` says when a client is let in.

    Args:
        url: The service's.
        seconds: How long each client goes on asking; 0 for one answer each.
        router: Whether requests go through the router.
    """
    way = {"x-truthgpt-way": "router"} if router else {}
    asyncio.run(_warm(url, way))
    seen = asyncio.run(send(url, seconds, way))
    ratios = [told / took for told, took in zip(seen.told_s, seen.admitted_s, strict=True)]
    refused = sorted(seen.refused_ms)
    return {
        "clients": OVERLOAD * (PLACES + QUEUED),
        "seconds": seconds,
        "way": "router" if router else "direct",
        "refused_then_admitted": len(ratios),
        "told_to_admitted_p50": round(statistics.median(ratios), 2) if ratios else None,
        "within_30_percent": round(
            sum(abs(ratio - 1) <= WITHIN for ratio in ratios) / len(ratios), 3
        )
        if ratios
        else None,
        "told_s": [min(seen.told_s, default=0), max(seen.told_s, default=0)],
        "refused_ms_p99": round(refused[int(0.99 * (len(refused) - 1))], 1) if refused else None,
        "statuses": {str(status): number for status, number in sorted(seen.statuses.items())},
    }


async def _warm(url: str, way: dict[str, str]) -> None:
    """Has the replica learn how long requests take, and tell it while some wait."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        number = PLACES + QUEUED
        await asyncio.gather(*(client.post(PATH, json=BODY, headers=way) for _ in range(number)))
