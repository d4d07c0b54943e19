"""Generates requests by seed and index, sends them, and keeps what is wrong."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from tests.fuzz.client import Answer, send
from tests.fuzz.judge import MAX_ANSWER_S, faults
from tests.fuzz.mutations import mutate
from tests.fuzz.requests import Request, build
from truthgpt_serve.cluster.processes import Process

MAX_SLOWED_S = 5.0
PROBE_PAUSE_S = 0.5
MAX_SHOWN = 40
_LASTING = ("ServeReplica", "EngineCore", "HAProxyManager", "ProxyActor", "ServeController")
"""Words in the commands of processes that no request may end. HAProxy itself is replaced whenever
its configuration changes; if it died, requests would have no answer."""


async def models_of(url: str) -> list[str]:
    """Returns the names at `/v1/models`."""
    parts = urlsplit(url)
    answer = await send(
        parts.hostname or "127.0.0.1", parts.port or 80, Request("", "GET", "/v1/models"), 30.0
    )
    if answer.status != 200:
        raise RuntimeError(f"{url}/v1/models answers {answer.status} {answer.note}")
    return [model["id"] for model in json.loads(answer.body)["data"]]


def generate(seed: int, index: int, models: list[str]) -> Request:
    """Returns the request of an index; the same for the same models."""
    rng = random.Random(f"{seed}:{index}")
    request = build(rng, models)
    mutate(rng, request)
    return request


class Fuzz:
    """One run.

    Attributes:
        findings: What is wrong, a line each.
        statuses: How many answers had which status, by route.
    """

    def __init__(self, url: str, seed: int, models: list[str]) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or 80
        self.findings: list[str] = []
        self.statuses: dict[str, Counter[int]] = {}
        self._seed = seed
        self._models = models
        self._slowest_s = 0.0
        self._quiet_s = 0.0
        self._newest = 0

    async def run(self, num_requests: int, num_clients: int, structured: str | None) -> None:
        """Sends the requests, and structured ones of `structured` beside them."""
        if structured is not None:
            self._quiet_s = min([(await self._ask(structured)).seconds for _ in range(3)])
        indices = iter(range(num_requests))
        probe = asyncio.create_task(self._probe(structured)) if structured is not None else None
        await asyncio.gather(*(self._client(indices) for _ in range(num_clients)))
        if probe is not None:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    async def _client(self, indices: Iterable[int]) -> None:
        for index in indices:
            self._newest = index
            request = self.generate(index)
            answer = await self.send(request)
            self.statuses.setdefault(request.route, Counter())[answer.status] += 1
            changes = "+".join(request.mutations)
            self.findings += [
                f"#{index} {request.method} {request.path[:60]} [{changes}]: {fault}"
                for fault in self.judge(index, request, answer)
            ]

    def generate(self, index: int) -> Request:
        """Returns the request of an index."""
        return generate(self._seed, index, self._models)

    async def send(self, request: Request) -> Answer:
        """Sends a request and waits longer than any may take."""
        return await send(self.host, self.port, request, MAX_ANSWER_S + 5)

    def judge(self, index: int, request: Request, answer: Answer) -> list[str]:
        """Returns what is wrong with an answer."""
        return faults(request, answer)

    async def _probe(self, model: str) -> None:
        while True:
            first = self._newest
            answer = await self._ask(model)
            self._slowest_s = max(self._slowest_s, answer.seconds)
            if answer.seconds > self._quiet_s + MAX_SLOWED_S:
                self.findings.append(
                    f"a structured request beside #{first} to #{self._newest}: took "
                    f"{answer.seconds:.1f} s, alone {self._quiet_s:.1f}"
                )
            if answer.status != 200:
                self.findings.append(
                    f"a structured request beside #{first}: {answer.status} {answer.body[:200]!r}"
                )
            await asyncio.sleep(PROBE_PAUSE_S)

    async def _ask(self, model: str) -> Answer:
        body = {
            "model": model,
            "prompt": "Once",
            "max_tokens": 4,
            "structured_outputs": {"choice": ["yes", "no"]},
        }
        request = Request("", "POST", "/v1/completions", body)
        return await send(self.host, self.port, request, MAX_ANSWER_S)

    def compare(
        self, before: Iterable[Process], after: Iterable[Process], words: Sequence[str] = _LASTING
    ) -> None:
        """Notes which processes are gone that have one of these words in their commands."""
        left = {(process.pid, process.started) for process in after}
        self.findings += [
            f"process {process.pid} is gone: {process.command[:80]}"
            for process in before
            if (process.pid, process.started) not in left
            and any(word in process.command for word in words)
        ]

    def report(self) -> str:
        """Returns a table of statuses by route, and the findings."""
        lines = [
            f"{route[:32]:<32} "
            + " ".join(f"{status}:{count}" for status, count in sorted(counts.items()))
            for route, counts in sorted(self.statuses.items())
        ]
        if self._quiet_s:
            lines.append(
                f"structured request alone {self._quiet_s:.2f} s, beside {self._slowest_s:.2f} s"
            )
        kinds = Counter(finding.partition("]: ")[2][:40] for finding in self.findings)
        lines.append(f"{len(self.findings)} findings")
        lines += [f"{count:>6} {kind}" for kind, count in kinds.most_common(10)]
        return "\n".join([*lines, *self.findings[:MAX_SHOWN]])
