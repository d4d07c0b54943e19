"""The batcher: order, keys, failures, leaving callers, time limits, its end, what it counts."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from truthgpt_serve.errors import (
    DeadlineError,
    OverloadedError,
    RegistryError,
    RequestError,
    ServerError,
    UnavailableError,
)
from truthgpt_serve.server.batching.batcher import Batcher
from truthgpt_serve.server.execution.codec import PlainCodec
from truthgpt_serve.server.execution.workers import Workers
from truthgpt_serve.usage.counted import Usage, counting


class Model:
    """Answers each input with itself; `open` lets calls through, `calls` has what they got."""

    def __init__(self, *, is_open: bool = True, call_s: float = 0.0) -> None:
        self.calls: list[list[Any]] = []
        self.open = threading.Event()
        self.call_s = call_s
        if is_open:
            self.open.set()

    def infer_batch(self, batch: list[Any]) -> list[Any]:
        self.calls.append([inputs["value"] for inputs in batch])
        assert self.open.wait(10)
        time.sleep(self.call_s)
        return [self.answer(inputs) for inputs in batch]

    def answer(self, inputs: dict[str, Any]) -> Any:
        if inputs["value"] == "bad":
            raise ValueError("bad input")
        if inputs["value"] == "error":
            return LookupError("not this one")
        return ("answer", inputs["value"])


@asynccontextmanager
async def batching(
    infer_batch: Callable[[list[Any]], Any],
    *,
    max_requests: int = 100,
    max_batch_size: int = 8,
    wait_s: float = 0.0,
    batch_key: Callable[[Any], Hashable] | None = None,
    threads: int = 1,
) -> AsyncIterator[Batcher]:
    workers = Workers(threads, 1, "sample")
    batcher = Batcher(
        workers,
        infer_batch,
        label="Sample.infer_batch",
        max_requests=max_requests,
        max_batch_size=max_batch_size,
        batch_wait_timeout_s=wait_s,
        batch_key=batch_key,
    )
    try:
        yield batcher
        await batcher.close(5)
        assert batcher.ongoing == 0
    finally:
        await asyncio.to_thread(workers.close, 5)


def ask(batcher: Batcher, value: Any, **fields: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(batcher.run(PlainCodec({"value": value, **fields})))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_what_arrives_while_a_batch_runs_is_the_next_one() -> None:
    model = Model(is_open=False)
    async with batching(model.infer_batch, max_batch_size=3) as batcher:
        first = ask(batcher, 0)
        await until(lambda: model.calls)
        others = [ask(batcher, number) for number in range(1, 6)]
        await until(lambda: batcher.ongoing == 6)
        model.open.set()
        assert await asyncio.gather(first, *others) == [("answer", n) for n in range(6)]
        assert model.calls == [[0], [1, 2, 3], [4, 5]]


async def test_what_comes_together_to_an_idle_model_is_one_batch() -> None:
    model = Model()
    async with batching(model.infer_batch, max_batch_size=256, max_requests=256) as batcher:
        answers = await asyncio.gather(*(ask(batcher, number) for number in range(256)))
        assert answers == [("answer", number) for number in range(256)]
        assert [len(call) for call in model.calls] == [256]


async def test_a_lone_call_waits_for_no_other_and_costs_less_than_a_millisecond() -> None:
    model = Model()
    async with batching(model.infer_batch, wait_s=0.5) as batcher:
        began_s, worked_s = time.monotonic(), time.process_time()
        for number in range(500):
            await batcher.run(PlainCodec({"value": number}))
        assert time.process_time() - worked_s < 500 * 0.001
        assert time.monotonic() - began_s < 500 * 0.5 / 2
        assert all(len(call) == 1 for call in model.calls)


async def test_clients_that_come_back_share_a_batch_again() -> None:
    def infer_batch(batch: list[Any]) -> list[Any]:
        # A fixed cost, mostly: the reason to wait. The first calls differ in size, and tell.
        sizes.append(len(batch))
        time.sleep(0.02 + 0.0005 * len(batch))
        return batch

    async def client(number: int) -> None:
        for _ in range(12):
            await batcher.run(PlainCodec({}))
            await asyncio.sleep(0.001 * number)

    sizes: list[int] = []
    async with batching(infer_batch, wait_s=0.2) as batcher:
        await batcher.run(PlainCodec({}))
        await asyncio.gather(*(client(number) for number in range(8)))
    settled = sizes[4:-4]
    # All eight on a quiet machine; about four, those that came during the call before, without it.
    assert sum(settled) / len(settled) > 4.8, sizes


async def test_only_equal_keys_share_a_batch_and_each_key_has_its_turn() -> None:
    model = Model(is_open=False)
    async with batching(
        model.infer_batch, max_batch_size=2, batch_key=lambda inputs: inputs["value"][0]
    ) as batcher:
        first = ask(batcher, "x")
        await until(lambda: model.calls)
        values = ["a1", "a2", "a3", "a4", "a5", "b1", "c1", "b2", "b3"]
        others = [ask(batcher, value) for value in values]
        await until(lambda: batcher.ongoing == 10)
        model.open.set()
        answers = await asyncio.gather(first, *others)
    assert answers[1:] == [("answer", value) for value in values]
    turns = [["a1", "a2"], ["b1", "b2"], ["c1"], ["a3", "a4"], ["b3"], ["a5"]]
    assert model.calls[1:] == turns


async def test_a_rare_key_does_not_starve_under_a_busy_one() -> None:
    model = Model(call_s=0.002)
    async with batching(
        model.infer_batch, max_batch_size=4, batch_key=lambda inputs: inputs["key"]
    ) as batcher:

        async def flood() -> None:
            while not rare.done():
                await batcher.run(PlainCodec({"value": "busy", "key": 0}))

        rare: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        floods = [asyncio.create_task(flood()) for _ in range(40)]
        await until(lambda: batcher.ongoing >= 30)
        num_before = len(model.calls)
        await batcher.run(PlainCodec({"value": "rare", "key": 1}))
        at = next(index for index, call in enumerate(model.calls) if call == ["rare"])
        assert at - num_before <= 3
        rare.set_result(None)
        await asyncio.gather(*floods)


async def test_only_the_guilty_request_of_a_batch_fails_and_halves_find_it() -> None:
    model = Model()
    async with batching(model.infer_batch) as batcher:
        values = [0, 1, 2, 3, 4, "bad", 6, 7]
        answers = await asyncio.gather(
            *(ask(batcher, value) for value in values), return_exceptions=True
        )
        assert answers[:5] + answers[6:] == [("answer", v) for v in values if v != "bad"]
        assert isinstance(answers[5], ValueError)
        assert model.calls == [
            values,
            [0, 1, 2, 3],
            [4, "bad", 6, 7],
            [4, "bad"],
            [4],
            ["bad"],
            [6, 7],
        ]
        counted = batcher.statistics()
        assert (sum(counted.sizes.counts), counted.num_calls) == (1, 7)
        assert (counted.num_answered, counted.num_failed) == (7, 1)


async def test_a_class_may_return_an_error_for_one_request() -> None:
    model = Model()
    async with batching(model.infer_batch) as batcher:
        answers = await asyncio.gather(
            *(ask(batcher, value) for value in (0, "error", 2)), return_exceptions=True
        )
        assert str(answers[1]) == "not this one"
        assert isinstance(answers[1], LookupError)
        assert answers[::2] == [("answer", 0), ("answer", 2)]
        assert len(model.calls) == 1


async def test_a_call_that_changed_its_inputs_is_repeated_with_fresh_ones() -> None:
    class Fresh(PlainCodec):
        def inputs(self) -> dict[str, Any]:
            return dict(super().inputs())

    def infer_batch(batch: list[Any]) -> list[Any]:
        values = [inputs.pop("value") for inputs in batch]
        if "bad" in values:
            raise ValueError("bad input")
        return values

    async with batching(infer_batch) as batcher:
        tasks = [batcher.run(Fresh({"value": value})) for value in (1, "bad", 3)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[::2] == [1, 3]
        assert isinstance(answers[1], ValueError)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([], "Sample.infer_batch returned 0 outputs for 1 inputs; it returns one for each"),
        ([1, 2], "Sample.infer_batch returned 2 outputs for 1 inputs; it returns one for each"),
        (None, "Sample.infer_batch returned a NoneType; it returns a list with one output for"),
        ({"a": 1}, "Sample.infer_batch returned a dict; it returns a list with one output for"),
        ("a", "Sample.infer_batch returned a str; it returns a list"),
        (np.zeros(()), "Sample.infer_batch returned a ndarray; it returns a list"),
        (np.zeros((2, 3)), "Sample.infer_batch returned 2 outputs for 1 inputs"),
    ],
)
async def test_wrong_outputs_are_named(outputs: Any, message: str) -> None:
    async with batching(lambda batch: outputs) as batcher:
        with pytest.raises(ServerError) as caught:
            await ask(batcher, 1)
        assert str(caught.value).startswith(message)


async def test_outputs_may_be_an_array_or_a_tuple() -> None:
    async with batching(lambda batch: np.arange(6).reshape(3, 2)) as batcher:
        answers = await asyncio.gather(*(ask(batcher, value) for value in range(3)))
        assert [answer.tolist() for answer in answers] == [[0, 1], [2, 3], [4, 5]]
    async with batching(tuple) as batcher:
        assert await ask(batcher, 1) == {"value": 1}


class Strange(PlainCodec):
    """Fails on the way in or out."""

    def inputs(self) -> dict[str, Any]:
        inputs = super().inputs()
        if inputs["value"] == "prepare":
            raise RequestError("no image")
        return inputs

    def encode(self, outputs: Any) -> Any:
        if outputs[1] == "answer":
            raise StopIteration
        return outputs


async def test_a_request_that_fails_before_or_after_the_call_fails_alone() -> None:
    model = Model()
    async with batching(model.infer_batch) as batcher:
        values = ["prepare", 1, "answer", 3]
        tasks = [batcher.run(Strange({"value": value})) for value in values]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[0], RequestError)
        assert isinstance(answers[2], RuntimeError)
        assert answers[1::2] == [("answer", 1), ("answer", 3)]
        assert model.calls == [[1, "answer", 3]]
        assert await ask(batcher, 4) == ("answer", 4)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), StopIteration()])
async def test_an_error_that_must_not_reach_the_event_loop_is_a_plain_one(
    error: BaseException,
) -> None:
    def infer_batch(batch: list[Any]) -> list[Any]:
        if batch[0]["value"] == "raise":
            raise error
        return [error]

    async with batching(infer_batch) as batcher:
        for value in ("raise", "return"):
            with pytest.raises(RuntimeError, match=type(error).__name__):
                await ask(batcher, value)


async def test_keys_that_cannot_be_keys() -> None:
    async def slow_key(inputs: Any) -> Hashable:
        return 1

    wrong: Any = slow_key
    with pytest.raises(RegistryError, match="`batch_key` is asynchronous; make it a plain method"):
        async with batching(list, batch_key=wrong):
            pass
    async with batching(list, batch_key=lambda inputs: inputs["key"]) as batcher:
        tasks = [ask(batcher, 1, key=1), ask(batcher, 2, key=[2]), ask(batcher, 3)]
        good, bad, none = await asyncio.gather(*tasks, return_exceptions=True)
        assert good == {"value": 1, "key": 1}
        assert "Sample.batch_key returned a list, which has no hash" in str(bad)
        assert isinstance(none, KeyError)


async def test_a_caller_who_leaves_before_the_batch_is_not_computed() -> None:
    model = Model(is_open=False)
    async with batching(model.infer_batch, max_requests=3) as batcher:
        tasks = [ask(batcher, 0)]
        await until(lambda: model.calls)
        tasks += [ask(batcher, number) for number in (1, 2)]
        await until(lambda: batcher.ongoing == 3)
        with pytest.raises(OverloadedError, match="3 requests run or wait"):
            await ask(batcher, 3)
        tasks[1].cancel()
        await until(lambda: batcher.ongoing == 2)
        tasks.append(ask(batcher, 4))
        model.open.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[1], asyncio.CancelledError)
        assert [answers[i] for i in (0, 2, 3)] == [("answer", n) for n in (0, 2, 4)]
        assert model.calls == [[0], [2, 4]]
        counted = batcher.statistics()
        assert (counted.num_left, counted.num_refused) == (1, 1)


class ExitingCodec(PlainCodec):
    """Runs code of the class that exits: before the call, or on what it returned."""

    def __init__(self, place: str) -> None:
        super().__init__({"value": "exit", "key": place})
        self._place = place

    def inputs(self) -> Any:
        if self._place == "inputs":
            sys.exit(3)
        return super().inputs()

    def encode(self, outputs: Any) -> Any:
        if self._place == "encode":
            sys.exit(3)
        return super().encode(outputs)


@pytest.mark.parametrize("place", ["inputs", "batch_key", "encode"])
async def test_what_exits_around_a_call_fails_its_request_alone(place: str) -> None:
    def key_of(inputs: Any) -> Any:
        return sys.exit(3) if inputs.get("key") == "batch_key" else None

    model = Model(is_open=False)
    async with batching(model.infer_batch, batch_key=key_of) as batcher:
        first = ask(batcher, "first")
        await until(lambda: model.calls)
        exits = asyncio.create_task(batcher.run(ExitingCodec(place)))
        others = [ask(batcher, number) for number in range(2)]
        await until(lambda: batcher.num_waiting == 3)
        model.open.set()
        with pytest.raises(RuntimeError, match="the model raised SystemExit"):
            await exits
        assert await first == ("answer", "first")
        assert await asyncio.gather(*others) == [("answer", 0), ("answer", 1)]


@pytest.mark.parametrize("batch_key", [None, lambda inputs: inputs["value"]])
async def test_a_caller_who_leaves_while_its_inputs_are_prepared_is_not_computed(
    batch_key: Callable[[Any], Hashable] | None,
) -> None:
    class Slow(PlainCodec):
        def inputs(self) -> dict[str, Any]:
            preparing.set()
            assert left.wait(10)
            return super().inputs()

    preparing, left = threading.Event(), threading.Event()
    model = Model()
    async with batching(model.infer_batch, batch_key=batch_key) as batcher:
        task = asyncio.create_task(batcher.run(Slow({"value": 0})))
        await until(preparing.is_set)
        task.cancel()
        await asyncio.sleep(0.01)
        assert batcher.ongoing == 0
        left.set()
        assert await ask(batcher, 1) == ("answer", 1)
        assert batcher.ongoing == 0
        assert model.calls == [[1]]


async def test_a_caller_who_leaves_a_running_batch_keeps_its_place_until_the_end() -> None:
    model = Model(is_open=False)
    async with batching(model.infer_batch, max_requests=1) as batcher:
        task = ask(batcher, 0)
        await until(lambda: model.calls)
        task.cancel()
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError):
            await ask(batcher, 1)
        model.open.set()
        await until(lambda: batcher.ongoing == 0)
        assert await ask(batcher, 2) == ("answer", 2)


async def test_a_request_whose_time_is_over_is_not_computed() -> None:
    model = Model(is_open=False)
    async with batching(model.infer_batch) as batcher:
        first = ask(batcher, 0)
        await until(lambda: model.calls)
        late = asyncio.create_task(batcher.run(PlainCodec({"value": 1}), limit_s=0.02))
        in_time = asyncio.create_task(batcher.run(PlainCodec({"value": 2}), limit_s=20))
        with pytest.raises(DeadlineError, match=r"did not finish within 0.02 s"):
            await late
        # The loop may be too busy to say so: the runner looks at the clock itself.
        expired = asyncio.create_task(batcher.run(PlainCodec({"value": 3}), limit_s=0.01))
        await asyncio.sleep(0)
        time.sleep(0.02)
        model.open.set()
        assert [await first, await in_time] == [("answer", 0), ("answer", 2)]
        with pytest.raises(DeadlineError):
            await expired
        assert model.calls == [[0], [2]]
        assert batcher.statistics().num_left == 2


async def test_an_asynchronous_class_is_batched_and_stops_when_all_have_left() -> None:
    calls: list[list[Any]] = []
    ended: list[str] = []

    async def infer_batch(batch: list[Any]) -> list[Any]:
        values = [inputs["value"] for inputs in batch]
        calls.append(values)
        if "bad" in values:
            raise ValueError("bad input")
        try:
            await asyncio.sleep(10 if "slow" in values else 0.01)
            return values
        finally:
            ended.append("done")

    async with batching(infer_batch, max_batch_size=4) as batcher:
        tasks = [ask(batcher, value) for value in (1, "bad", 3, 4, 5)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [answers[i] for i in (0, 2, 3, 4)] == [1, 3, 4, 5]
        assert isinstance(answers[1], ValueError)
        assert calls[0] == [1, "bad", 3, 4]
        slow = [ask(batcher, "slow"), ask(batcher, "slow")]
        await until(lambda: calls[-1] == ["slow", "slow"])
        num_ended = len(ended)
        slow[0].cancel()
        await asyncio.sleep(0.05)
        assert len(ended) == num_ended, "the other caller still waits"
        slow[1].cancel()
        await until(lambda: len(ended) == num_ended + 1)
        await until(lambda: batcher.ongoing == 0)
        assert await ask(batcher, 6) == 6


async def test_closing_answers_everybody() -> None:
    model = Model(is_open=False)
    async with batching(model.infer_batch, max_batch_size=2) as batcher:
        running = ask(batcher, 0)
        await until(lambda: model.calls)
        waiting = [ask(batcher, number) for number in range(1, 5)]
        await until(lambda: batcher.ongoing == 5)
        closing = asyncio.create_task(batcher.close(5))
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, UnavailableError) for error in refused)
        with pytest.raises(UnavailableError, match="the model is shutting down"):
            await ask(batcher, 9)
        model.open.set()
        await closing
        assert await running == ("answer", 0), "a batch that runs may end"
        assert model.calls == [[0]]


async def test_closing_does_not_wait_for_ever() -> None:
    model = Model(is_open=False)
    async with batching(model.infer_batch) as batcher:
        running = ask(batcher, 0)
        await until(lambda: model.calls)
        await batcher.close(0.05)
        with pytest.raises(UnavailableError):
            await running
        model.open.set()


async def test_requests_are_answered_when_the_threads_are_gone() -> None:
    model = Model(is_open=False)
    workers = Workers(1, 1, "sample")
    options: dict[str, Any] = {"max_requests": 9, "max_batch_size": 2, "batch_wait_timeout_s": 0}
    batcher = Batcher(workers, model.infer_batch, label="Sample.infer_batch", **options)
    blocked = workers.submit(lambda: model.open.wait(10))
    queued = ask(batcher, 0)
    await asyncio.sleep(0.01)
    workers.close(1)
    for task in (queued, ask(batcher, 1)):
        with pytest.raises(UnavailableError):
            await task
    model.open.set()
    assert blocked.result(5)
    await batcher.close(1)


async def test_batches_have_a_thread_beside_streams() -> None:
    model = Model()
    workers = Workers(2, 8, "sample")
    batcher = Batcher(
        workers, model.infer_batch, label="S", max_requests=9, max_batch_size=2,
        batch_wait_timeout_s=0,
    )  # fmt: skip
    release = threading.Event()
    streams = [workers.submit(lambda: release.wait(10)) for _ in range(2)]
    assert await ask(batcher, 1) == ("answer", 1)
    release.set()
    assert [stream.result(5) for stream in streams] == [True, True]
    await batcher.close(1)
    await asyncio.to_thread(workers.close, 1)


async def test_what_is_counted() -> None:
    model = Model(call_s=0.01)
    async with batching(model.infer_batch, max_batch_size=4) as batcher:
        await asyncio.gather(*(ask(batcher, number) for number in range(6)))
    counted = batcher.statistics()  # a batch is counted after it has answered
    assert (sum(counted.sizes.counts), counted.sizes.total, counted.num_calls) == (2, 6, 2)
    assert 0.01 <= counted.waits.total <= 0.5
    assert 0.02 <= counted.runs.total <= 0.5


def ask_as(batcher: Batcher, name: str, value: Any, **fields: Any) -> asyncio.Task[Any]:
    with counting(Usage(key=name, priority=fields.pop("priority", 0))):
        return ask(batcher, value, **fields)


async def test_a_batch_is_shared_by_the_keys_that_wait() -> None:
    model = Model(is_open=False)
    async with batching(model.infer_batch, max_batch_size=4) as batcher:
        tasks = [ask_as(batcher, "many", "first")]
        await until(lambda: model.calls)
        tasks += [ask_as(batcher, "many", number) for number in range(8)]
        tasks += [ask_as(batcher, "few", "few")]
        tasks += [ask_as(batcher, "urgent", "urgent", priority=1)]
        await until(lambda: batcher.num_waiting == 10)
        model.open.set()
        await asyncio.gather(*tasks)
    assert set(model.calls[1]) == {"urgent", "few", 0, 1}
    assert model.calls[2:] == [[2, 3, 4, 5], [6, 7]]


async def test_a_key_with_many_batch_keys_holds_no_other_up() -> None:
    model = Model(is_open=False)
    async with batching(
        model.infer_batch, max_batch_size=2, batch_key=lambda inputs: inputs["shape"]
    ) as batcher:
        tasks = [ask_as(batcher, "many", "first", shape="a")]
        await until(lambda: model.calls)
        tasks += [ask_as(batcher, "many", number, shape=number % 10) for number in range(20)]
        tasks += [ask_as(batcher, "few", f"few-{number}", shape="b") for number in range(3)]
        await until(lambda: batcher.num_waiting == 23)
        model.open.set()
        await asyncio.gather(*tasks)
    assert ["few-0", "few-1"] in model.calls[1:3]
    assert ["few-2"] in model.calls[3:6]
    assert len(model.calls) == 13
