"""Texts of several requests take turns in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.vllm.sharing.engine_turns import EngineTurns, share_engine
from deployments.vllm.sharing.round_robin import one_request
from tests.support.tasks import settle

PROMPT = {"prompt_token_ids": [1, 2, 3, 4]}


class Output:
    """Vectors of 3 values for each of 4 tokens."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.finished = True
        self.outputs = SimpleNamespace(data=SimpleNamespace(numel=lambda: 12))


class Engine:
    """Computes texts in the order in which they came, two in each step of 8 tokens."""

    def __init__(self) -> None:
        scheduler = SimpleNamespace(max_num_seqs=2, max_num_batched_tokens=8)
        parallel = SimpleNamespace(data_parallel_size=1)
        self.vllm_config = SimpleNamespace(scheduler_config=scheduler, parallel_config=parallel)
        self.waiting: list[asyncio.Event] = []
        self.most = 0

    async def encode(self, prompt: Any, request_id: str) -> AsyncGenerator[Output, None]:
        done = asyncio.Event()
        self.waiting.append(done)
        self.most = max(self.most, len(self.waiting))
        try:
            await done.wait()
            yield Output(request_id)
        finally:
            if done in self.waiting:
                self.waiting.remove(done)

    async def step(self) -> None:
        await settle()
        for done in self.waiting[:2]:
            self.waiting.remove(done)
            done.set()
        await settle()


async def ask(engine: Any, name: str, done: list[str], prompt: Any = PROMPT) -> None:
    async for answer in engine.encode(prompt=prompt, request_id=name):
        done.append(answer.name)


def begin(engine: Any, name: str, number: int, done: list[str]) -> list[asyncio.Task[None]]:
    with one_request():
        return [asyncio.create_task(ask(engine, name, done)) for _ in range(number)]


async def test_one_text_does_not_wait_for_another_request_of_many() -> None:
    engine = Engine()
    done: list[str] = []
    turns = share_engine(engine)
    tasks = begin(engine, "many", 40, done)
    await settle()
    tasks += begin(engine, "one", 1, done)
    for _ in range(4):
        await engine.step()
    assert "one" in done
    assert engine.most == 4
    assert turns.waiting == (40 + 1 - len(done) - 4, 4 * turns.waiting[0])
    for _ in range(20):
        await engine.step()
    await asyncio.gather(*tasks)
    assert sorted(done) == ["many"] * 40 + ["one"]
    assert turns.waiting == (0, 0)


async def test_two_requests_of_many_get_as_much() -> None:
    engine = Engine()
    done: list[str] = []
    share_engine(engine)
    tasks = begin(engine, "a", 40, done) + begin(engine, "b", 40, done)
    for _ in range(12):
        await engine.step()
    assert abs(done.count("a") - done.count("b")) <= 4
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not engine.waiting


async def test_clients_that_leave_give_their_room_back() -> None:
    engine = Engine()
    done: list[str] = []
    share_engine(engine)
    gone = begin(engine, "gone", 40, done)
    await engine.step()
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    tasks = begin(engine, "next", 4, done)
    await settle()
    assert len(engine.waiting) == 4
    await engine.step()
    await engine.step()
    await asyncio.gather(*tasks)
    assert done.count("next") == 4


async def test_a_text_as_long_as_no_step_has_the_engine_to_itself() -> None:
    turns = EngineTurns(max_texts=4, max_tokens=16)
    await turns.enter(4)
    long = asyncio.create_task(turns.enter(100))
    short = asyncio.create_task(turns.enter(4))
    await asyncio.sleep(0)
    assert not long.done()
    turns.leave(4)
    await asyncio.sleep(0)
    assert long.done()
    assert not short.done()
    turns.leave(100)
    await asyncio.wait_for(short, 1)


async def test_a_turn_that_came_too_late_goes_on_to_the_next() -> None:
    turns = EngineTurns(max_texts=1, max_tokens=16)
    await turns.enter(4)
    late = asyncio.create_task(turns.enter(4))
    following = asyncio.create_task(turns.enter(4))
    await asyncio.sleep(0)
    turns.leave(4)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    await asyncio.wait_for(following, 1)


async def test_vectors_that_no_answer_holds_end_the_request() -> None:
    engine = Engine()
    share_engine(engine)
    done: list[str] = []
    with one_request(max_values=30):
        tasks = [asyncio.create_task(ask(engine, "large", done)) for _ in range(4)]
    small = begin(engine, "small", 4, done)
    for _ in range(6):
        await engine.step()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found].count(ValueError) == 2
    await asyncio.gather(*small)
    assert (done.count("large"), done.count("small")) == (2, 4)
