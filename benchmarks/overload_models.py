"""Three times the requests that a text and an image model can do.

Command: `python -m benchmarks.overload_models`. The shipped models run in one service, and one is
loaded at a time. First clients that each send the next request at once find the peak, as many as
the model has places. Then requests come at `--times` that rate, each on a connection and from an
address of its own, whether others are answered or not, for `--seconds`. A refused one leaves; one
of ten asks again exactly as it was told, until it is let in. After it the peak is measured once
more, and the mean of both counts. Prints goodput against the peak, every status, how soon a request
is refused, and when those that came again were let in; writes
`benchmarks/results/overload_models.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import ipaddress
import itertools
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ENGINE_ENV, ROOT, START_TIMEOUT_S

RESULT = ROOT / "benchmarks" / "results" / "overload_models.json"
TIMEOUT_S = 120.0
MAX_TRIES = 20


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of a model.

    Attributes:
        model: Its configuration, in `configs/models`.
        path: The route.
        body: The request.
        num_clients: Clients that find its peak.
    """

    model: str
    path: str
    body: Mapping[str, Any]
    num_clients: int


COMPLETIONS = "/v1/completions"
TEXT = {"model": "story", "prompt": "Once upon a time", "max_tokens": 64, "ignore_eos": True}
IMAGE = {"model": "shapes", "prompt": "a red circle", "size": "64x64", "steps": 10}
CASES = {
    "text": Case("story", COMPLETIONS, TEXT, 64),
    "stream": Case("story", COMPLETIONS, {**TEXT, "stream": True}, 64),
    "images": Case("shapes", "/v1/images/generations", IMAGE, 16),
}
COMES_AGAIN = 10
"""One of so many refused clients comes again."""
WITHIN = 0.3
NUM_STEPS = 500
WAYS: dict[str, dict[str, str]] = {"direct": {}, "router": {"x-truthgpt-way": "router"}}


class Client:
    """Sends requests over a socket: a client library takes far more of the cores that all share.

    Args:
        url: The service's.
        case: What is sent.
        headers: Further headers.
    """

    def __init__(self, url: str, case: Case, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname or "127.0.0.1", parts.port or 80
        body = json.dumps(case.body).encode()
        lines = {
            "host": parts.netloc,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._request = f"POST {case.path} HTTP/1.1\r\n{head}\r\n".encode() + body

    async def ask(self, address: str) -> tuple[int, float, bytes]:
        """Asks once, on a connection of its own.

        Args:
            address: The client's; without keys it says whose request it is.

        Returns:
            The status, what `retry-after` says, and the body with its framing.

        Raises:
            OSError: There is no connection.
            EOFError: The answer is cut.
        """
        reader, writer = await asyncio.open_connection(*self._address, local_addr=(address, 0))
        try:
            writer.write(self._request)
            answer = await reader.read()
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = headers.get("content-length")
        is_whole = body.endswith(b"0\r\n\r\n") if length is None else len(body) == int(length)
        if not is_whole:
            raise EOFError(f"the answer is cut: {answer[-200:]!r}")
        return int(status.split()[1]), float(headers.get("retry-after", 0)), body


@dataclass(slots=True)
class Seen:
    """What the clients of one interval saw.

    Attributes:
        statuses: Answers by status; 0 is none.
        refused_ms: Milliseconds to each refusal.
        ends_s: Seconds from the start to the end of each answer with status 200.
        told_s: What those that came again were told at first.
        admitted_s: After how many seconds they were let in.
        num_first: How many of them were let in when they came again for the first time.
        error: The first answer with another status than 200 and 429.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    refused_ms: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    told_s: list[float] = field(default_factory=list)
    admitted_s: list[float] = field(default_factory=list)
    num_first: int = 0
    error: str = ""

    def rate(self, seconds: float) -> float:
        """Returns how many answers ended in a second, without the interval's first tenth.

        It is the slope of their number: many end at once, so counts of 15 s differ by a tenth.
        """
        ends_s, step_s = sorted(self.ends_s), seconds / NUM_STEPS
        times_s = [step_s * number for number in range(NUM_STEPS // 10, NUM_STEPS + 1)]
        counts = [bisect.bisect_right(ends_s, time_s) for time_s in times_s]
        return statistics.linear_regression(times_s, counts).slope


def addresses() -> Iterator[str]:
    """Yields this machine's own addresses, a new one for each client."""
    for number in itertools.count(256):
        yield str(ipaddress.ip_address("127.0.0.0") + number % 2**23)


NEW_ADDRESS = addresses()


async def ask(client: Client, seen: Seen, start_s: float, address: str) -> tuple[int, float]:
    """Asks once; returns the status, 0 for none, and what `Retry-After` says."""
    began_s, wait_s = time.monotonic(), 0.0
    try:
        async with asyncio.timeout(TIMEOUT_S):
            status, wait_s, text = await client.ask(address)
    except (OSError, EOFError) as error:  # TimeoutError is an OSError
        status, text = 0, repr(error).encode()
    seen.statuses[status] += 1
    if status == 429:
        seen.refused_ms.append((time.monotonic() - began_s) * 1e3)
    elif status == 200:
        seen.ends_s.append(time.monotonic() - start_s)
    else:
        seen.error = seen.error or f"{status}: {text[:300].decode(errors='replace')}"
    return status, wait_s


async def come_again(
    client: Client, seen: Seen, start_s: float, wait_s: float, address: str
) -> None:
    """Asks as `Retry-After` says, until the request is let in."""
    refused_s, told_s = time.monotonic(), wait_s
    for number in range(MAX_TRIES):
        await asyncio.sleep(wait_s)
        began_s = time.monotonic()
        status, wait_s = await ask(client, seen, start_s, address)
        if status != 429:
            seen.told_s.append(told_s)
            seen.admitted_s.append(began_s - refused_s)
            seen.num_first += not number
            return


async def find_peak(client: Client, num_clients: int, seconds: float) -> float:
    """Returns the answers a second of clients that each send the next request at once.

    Raises:
        RuntimeError: There was none.
    """
    seen, start_s = Seen(), time.monotonic()

    async def repeat() -> None:
        address = next(NEW_ADDRESS)
        while time.monotonic() - start_s < seconds:
            await ask(client, seen, start_s, address)

    await asyncio.gather(*(repeat() for _ in range(num_clients)))
    if not (rate := seen.rate(seconds)):
        raise RuntimeError(f"no answer: {dict(seen.statuses)}, {seen.error}")
    return rate


async def overload(client: Client, rate: float, seconds: float) -> Seen:
    """Sends requests at a rate, whether others are answered or not."""
    seen, start_s = Seen(), time.monotonic()

    async def act() -> None:
        address = next(NEW_ADDRESS)
        status, wait_s = await ask(client, seen, start_s, address)
        if status == 429 and not seen.statuses[429] % COMES_AGAIN:
            await come_again(client, seen, start_s, wait_s, address)

    tasks: set[asyncio.Task[None]] = set()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start_s + number / rate - time.monotonic()))
        task = asyncio.create_task(act())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return seen


async def measure(url: str, case: Case, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one model on one way."""
    client = Client(url, case, WAYS[way])
    await find_peak(client, case.num_clients, 5.0)
    before = await find_peak(client, case.num_clients, options.peak_seconds)
    seen = await overload(client, options.times * before, options.seconds)
    after = await find_peak(client, case.num_clients, options.peak_seconds)
    peak, goodput = (before + after) / 2, seen.rate(options.seconds)
    refused = sorted(seen.refused_ms) or [0.0]
    ratios = [told / took for told, took in zip(seen.told_s, seen.admitted_s, strict=True)]
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
        "came_again": {
            "number": len(ratios),
            "let_in_at_once": round(seen.num_first / len(ratios), 3) if ratios else None,
            "told_to_admitted_p50": round(statistics.median(ratios), 2) if ratios else None,
            "within_30_percent": round(
                sum(abs(ratio - 1) <= WITHIN for ratio in ratios) / len(ratios), 3
            )
            if ratios
            else None,
        },
        "error": seen.error,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--peak-seconds", type=float, default=15.0)
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    options = parser.parse_args()
    models = ROOT / "configs" / "models"
    with LocalCluster(ROOT / "configs" / "ray.env", env=ENGINE_ENV) as cluster:
        names = sorted({CASES[name].model for name in options.only})
        configs = {name: str(models / f"{name}.yaml") for name in names}
        applications = [model_application(n, {"config": path}) for n, path in configs.items()]
        cluster.deploy([*applications, router_application(cluster.port)])
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        time.sleep(2)  # the routers' first news of what goes direct
        results = {
            f"{name}, {way}": asyncio.run(measure(cluster.url, CASES[name], way, options))
            for name in options.only
            for way in options.ways
        }
    print(json.dumps(results, indent=1))
    RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
