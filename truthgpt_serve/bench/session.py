"""Measures one address, or two in turns, under every load of a plan."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from truthgpt_serve.bench.arrivals import arrival_times
from truthgpt_serve.bench.client import Client
from truthgpt_serve.bench.compare import ordered_sides
from truthgpt_serve.bench.load import Driver, Load
from truthgpt_serve.bench.metrics import Recorder
from truthgpt_serve.bench.outcome import Request
from truthgpt_serve.bench.result import build_result
from truthgpt_serve.bench.target import Target, TargetError, choose_models

MAX_TRIED_MODELS = 8

MakeRequests = Callable[[str, str], Iterator[Request]]
"""Returns requests for a seed of the lengths and one of the texts."""


def _no_requests(lengths_seed: str, text_seed: str) -> Iterator[Request]:
    return iter(())


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        endpoint: A key of `client.PATHS`.
        loads: The loads, one after another.
        make_requests: Returns the requests of one measurement.
        trace: Requests with times, in place of `make_requests` and rates.
        num_pairs: Measurements of each load and side.
        burstiness: Of the arrivals at a rate.
        warmup: Requests before each measurement that do not count.
        timeout_s: The longest time of one request.
        fields: Further fields of each request.
        slo_ms: Limits of a good request.
        percents: Percentiles to report.
        save_detailed: Whether each request's own times are kept.
        seed: Decides lengths, words and arrivals.
        label: Names the results.
    """

    endpoint: str
    loads: Sequence[Load]
    make_requests: MakeRequests = _no_requests
    trace: Sequence[Request] = ()
    num_pairs: int = 1
    burstiness: float = 1.0
    warmup: int = 0
    timeout_s: float = 300.0
    fields: Mapping[str, Any] = field(default_factory=dict)
    slo_ms: Mapping[str, float] = field(default_factory=dict)
    percents: Sequence[float] = (90.0, 99.0)
    save_detailed: bool = False
    seed: int = 0
    label: str | None = None


async def find_model(
    target: Target, endpoint: str, *, timeout_s: float, fields: Mapping[str, Any]
) -> Target:
    """Sends one short request, to the model named or to each until one answers.

    Returns:
        The target with its model.

    Raises:
        TargetError: No model answers.
    """
    names = [target.model] if target.model else choose_models(await target.models(), endpoint)
    if not names:
        raise TargetError(f"{target.url} has no model for --endpoint {endpoint}")
    problems = []
    for name in names[:MAX_TRIED_MODELS]:
        found = replace(target, model=name)
        async with Client(found, endpoint, timeout_s=timeout_s, fields=fields) as client:
            outcome = await client.send(Request("Hello", 1, 4))
        if outcome.ok:
            return found
        problems.append(f"{name}: {outcome.error}: {outcome.detail}")
        if not outcome.error.startswith("http 4"):
            break  # no other model would do better
    raise TargetError(f"{target.url} did not answer a first request: {'; '.join(problems)}")


def load_name(load: Load, *, trace: bool = False) -> str:
    """Returns a load in words: `4 at once`, `2 req/s` or `trace`."""
    name = "trace" if trace else f"{load.concurrency} at once"
    if load.rate is not None:
        name = f"{load.rate:g} req/s"
    if load.concurrency is not None and (trace or load.rate is not None):
        name += f", {load.concurrency} at once"
    return name


class Session:
    """Runs a plan.

    Args:
        plan: The plan.
        targets: One address with its model, or two: the second is compared with.
        stop: Set to end early; what was measured is returned.
        on_begin: Called with side, load and pair before each measurement.
        on_done: Called after each request.
    """

    def __init__(
        self,
        plan: Plan,
        targets: Sequence[Target],
        stop: asyncio.Event,
        on_begin: Callable[[int, Load, int], None] = lambda side, load, pair: None,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan = plan
        self._targets = list(targets)
        self._stop = stop
        self._on_begin = on_begin
        self._on_done = on_done
        self.results: list[dict[str, Any]] = []

    async def run(self) -> list[dict[str, Any]]:
        """Measures and returns the results, in the order in which they were measured."""
        plan = self._plan
        async with AsyncExitStack() as stack:
            clients = []
            for target in self._targets:
                clients.append(await stack.enter_async_context(self._client(target)))
            for load in plan.loads:
                for pair in range(plan.num_pairs):
                    for side in ordered_sides(pair, len(clients)):
                        if self._stop.is_set():
                            return self.results
                        self._on_begin(side, load, pair)
                        result = await self._measure(clients[side], side, load, pair)
                        self.results.append(result)
        return self.results

    def _client(self, target: Target) -> Client:
        plan = self._plan
        return Client(
            target,
            plan.endpoint,
            timeout_s=plan.timeout_s,
            fields=plan.fields,
            keep_text=plan.save_detailed,
        )

    def _requests(self, kind: str, side: int, pair: int) -> Iterator[Request]:
        """Yields requests: both sides of a pair have the same lengths and their own words.

        With the same words the second side would find the prompts of the first in a prefix cache,
        should one engine be behind both.
        """
        plan = self._plan
        if plan.trace:
            return iter(plan.trace)
        seed = f"{plan.seed} {kind} {pair}"
        return plan.make_requests(seed, f"{seed} {side}")

    async def _measure(self, client: Client, side: int, load: Load, pair: int) -> dict[str, Any]:
        plan, trace = self._plan, bool(self._plan.trace)
        await self._warm_up(client, side, load, pair)
        name = load_name(load, trace=trace)
        times_s = None
        if trace:
            times_s = iter([request.offset_s or 0.0 for request in plan.trace])
        elif load.rate is not None:
            seed = f"{plan.seed} {pair}"
            times_s = arrival_times(load.rate, plan.burstiness, load.num_requests, seed)
        recorder = Recorder(plan.slo_ms, keep=plan.save_detailed)
        driver = Driver(client, recorder, load, self._stop, self._on_done)
        run = await driver.run(self._requests(name, side, pair), times_s)
        about = {
            "endpoint": plan.endpoint,
            "label": plan.label,
            "model": client.target.model,
            "burstiness": plan.burstiness,
            "url": client.target.url,
            "load": name,
            "side": side if len(self._targets) > 1 else None,
            "pair": pair,
        }
        return build_result(recorder, run, load, about, plan.percents)

    async def _warm_up(self, client: Client, side: int, load: Load, pair: int) -> None:
        if not self._plan.warmup or self._stop.is_set():
            return
        warmup = Load(concurrency=load.concurrency or 1, num_requests=self._plan.warmup)
        requests = self._requests(f"warmup {load_name(load)}", side, pair)
        await Driver(client, Recorder(), warmup, self._stop).run(requests)
