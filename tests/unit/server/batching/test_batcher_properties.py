"""Whatever comes, when and however it ends: each caller gets its own outcome, once."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthgpt_serve.errors import DeadlineError, OverloadedError, RequestError, UnavailableError
from truthgpt_serve.server.batching.batcher import Batcher
from truthgpt_serve.server.execution.codec import PlainCodec
from truthgpt_serve.server.execution.workers import Workers
from truthgpt_serve.usage.counted import Usage, counting

MILLISECOND = 0.001
LIMIT_S = 20


@dataclass(frozen=True)
class Request:
    """One caller: when it comes, what happens to it, when it leaves by itself."""

    arrives_ms: int
    kind: str
    key: int
    leaves_ms: int | None
    limit_ms: int | None
    owner: tuple[str, float, int] = ("", 1.0, 0)


@dataclass(frozen=True)
class Load:
    """One run: the callers, the model, the limits of the batcher, when it is closed."""

    requests: list[Request]
    call_ms: list[int]
    max_batch_size: int
    max_requests: int
    wait_ms: int
    has_keys: bool
    is_async: bool
    closes_ms: int | None


def maybe(low: int, high: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(low, high)


REQUESTS = st.builds(
    Request,
    arrives_ms=st.integers(0, 12),
    kind=st.sampled_from(["good"] * 6 + ["raises", "returns", "prepare", "answer", "short"]),
    key=st.integers(0, 2),
    leaves_ms=st.none() | maybe(0, 10),
    limit_ms=st.none() | maybe(1, 10),
    owner=st.sampled_from([("", 1.0, 0)] * 3 + [("a", 3.0, 0), ("b", 1.0, 0), ("c", 1.0, 2)]),
)
LOADS = st.builds(
    Load,
    requests=st.lists(REQUESTS, min_size=1, max_size=30),
    call_ms=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    max_batch_size=st.integers(1, 6),
    max_requests=st.integers(1, 40),
    wait_ms=st.integers(0, 5),
    has_keys=st.booleans(),
    is_async=st.booleans(),
    closes_ms=st.none() | maybe(0, 15),
)


class Step(PlainCodec):
    """Fails before or after the call if its request says so."""

    def inputs(self) -> dict[str, Any]:
        inputs = super().inputs()
        if inputs["kind"] == "prepare":
            raise RequestError("prepare")
        return dict(inputs)

    def encode(self, outputs: Any) -> Any:
        if outputs["kind"] == "answer":
            raise LookupError("answer")
        return {**outputs, "answered": True}


class Model:
    """Notes each call, and that no two ran at once."""

    def __init__(self, load: Load) -> None:
        self.calls: list[list[dict[str, Any]]] = []
        self.computed: list[int] = []
        self.entered = threading.Lock()
        self._call_ms = load.call_ms

    def call_s(self) -> float:
        return self._call_ms[len(self.calls) % len(self._call_ms)] * MILLISECOND

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:
        assert self.entered.acquire(blocking=False), "two calls at once"
        try:
            time.sleep(self.call_s())
            return self.compute(batch)
        finally:
            self.entered.release()

    async def infer_batch_async(self, batch: list[dict[str, Any]]) -> list[Any]:
        assert self.entered.acquire(blocking=False), "two calls at once"
        try:
            await asyncio.sleep(self.call_s())
            return self.compute(batch)
        finally:
            self.entered.release()

    def compute(self, batch: list[dict[str, Any]]) -> list[Any]:
        self.calls.append([dict(inputs) for inputs in batch])
        kinds = [inputs["kind"] for inputs in batch]
        for inputs in batch:
            inputs["kind"] = "spoiled"  # a repeated call must not see this
        if "raises" in kinds:
            raise ValueError("raises")
        outputs: list[Any] = [
            LookupError("returns") if kind == "returns" else {"number": i["number"], "kind": kind}
            for i, kind in zip(batch, kinds, strict=True)
        ]
        if "short" in kinds:
            return outputs[:-1]
        self.computed += [inputs["number"] for inputs in batch]
        return outputs


EXPECTED = {
    "raises": "raises",
    "returns": "returns",
    "prepare": "prepare",
    "answer": "answer",
    "short": "Sample.infer_batch returned 0 outputs for 1 inputs; it returns one for each",
}


async def play(load: Load) -> tuple[Model, list[Any], Batcher]:
    """Runs the load; returns each request's answer or error."""
    model = Model(load)
    workers = Workers(1, 1, "sample")
    batcher = Batcher(
        workers,
        model.infer_batch_async if load.is_async else model.infer_batch,
        label="Sample.infer_batch",
        max_requests=load.max_requests,
        max_batch_size=load.max_batch_size,
        batch_wait_timeout_s=load.wait_ms * MILLISECOND,
        batch_key=(lambda inputs: inputs["key"]) if load.has_keys else None,
    )

    async def one(number: int, request: Request) -> Any:
        await asyncio.sleep(request.arrives_ms * MILLISECOND)
        limit_s = None if request.limit_ms is None else request.limit_ms * MILLISECOND
        codec = Step({"number": number, "kind": request.kind, "key": request.key})
        name, weight, priority = request.owner
        with counting(Usage(key=name, weight=weight, priority=priority)):
            asking = asyncio.create_task(batcher.run(codec, limit_s=limit_s))
        if request.leaves_ms is not None:
            asyncio.get_running_loop().call_later(request.leaves_ms * MILLISECOND, asking.cancel)
        await asyncio.sleep(0)
        assert batcher.ongoing <= load.max_requests
        return await asking

    async def close() -> None:
        if load.closes_ms is not None:
            await asyncio.sleep(load.closes_ms * MILLISECOND)
            await batcher.close(LIMIT_S)
            assert batcher.ongoing == 0

    try:
        async with asyncio.timeout(LIMIT_S):
            tasks = [one(number, request) for number, request in enumerate(load.requests)]
            *outcomes, _ = await asyncio.gather(*tasks, close(), return_exceptions=True)
            while batcher.ongoing:  # callers have left a batch that still runs
                await asyncio.sleep(MILLISECOND)
        await batcher.close(LIMIT_S)
    finally:
        await asyncio.to_thread(workers.close, LIMIT_S)
    return model, outcomes, batcher


def check_outcome(load: Load, number: int, outcome: Any) -> None:
    """The request has its own answer, its own error, or a reason of the batcher's."""
    request = load.requests[number]
    if isinstance(outcome, asyncio.CancelledError):
        assert request.leaves_ms is not None
    elif isinstance(outcome, DeadlineError):
        assert request.limit_ms is not None
    elif isinstance(outcome, UnavailableError):
        assert load.closes_ms is not None
    elif isinstance(outcome, OverloadedError):
        assert len(load.requests) > load.max_requests
    elif request.kind == "good":
        assert outcome == {"number": number, "kind": "good", "answered": True}
    else:
        assert str(outcome) == EXPECTED[request.kind]
        assert isinstance(outcome, Exception)


# The same examples in every run: a fault that they find is found again, everywhere.
FIXED = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.long("tries many random orders")
@pytest.mark.parametrize("one_key", [False, True])
@settings(FIXED, max_examples=150)
@given(load=LOADS)
def test_nothing_is_lost_doubled_or_mixed_up(one_key: bool, load: Load) -> None:
    if one_key:
        load.requests[:] = [
            Request(r.arrives_ms, r.kind, 0, r.leaves_ms, r.limit_ms, r.owner)
            for r in load.requests
        ]
    model, outcomes, batcher = asyncio.run(play(load))
    assert len(outcomes) == len(load.requests)
    for number, outcome in enumerate(outcomes):
        check_outcome(load, number, outcome)
    assert len(model.computed) == len(set(model.computed)), "computed twice"
    for call in model.calls:
        assert len(call) <= load.max_batch_size
        assert not load.has_keys or len({inputs["key"] for inputs in call}) == 1
    counted = batcher.statistics()
    assert batcher.ongoing == 0
    assert counted.num_calls == len(model.calls) or load.is_async  # one may be cut off there
    assert counted.sizes.total <= sum(counted.sizes.counts) * load.max_batch_size
    assert counted.num_refused <= sum(
        isinstance(outcome, OverloadedError | UnavailableError) for outcome in outcomes
    )


@settings(FIXED, max_examples=30)
@given(
    values=st.lists(st.booleans(), min_size=1, max_size=40),
    max_batch_size=st.integers(1, 40),
)
def test_any_pattern_of_bad_requests_fails_exactly_those(
    values: list[bool], max_batch_size: int
) -> None:
    requests = [Request(0, "good" if good else "raises", 0, None, None) for good in values]
    load = Load(requests, [0], max_batch_size, 40, 0, False, False, None)
    model, outcomes, _ = asyncio.run(play(load))
    assert [isinstance(outcome, dict) for outcome in outcomes] == values
    assert sorted(model.computed) == [number for number, good in enumerate(values) if good]
