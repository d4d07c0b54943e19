"""Prompts of several keys take turns in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

from deployments.vllm.sharing.prompt_turns import PromptTurns, share_prompts
from deployments.vllm.sharing.round_robin import one_request
from tests.support.tasks import settle
from truthgpt_serve.usage.counted import Usage, counting

TOKENS = 20


class Engine:
    """Reads prompts in the order in which they came, 20 tokens in a step; answers are short."""

    def __init__(self) -> None:
        scheduler = SimpleNamespace(max_num_batched_tokens=20)
        parallel = SimpleNamespace(data_parallel_size=1)
        self.vllm_config = SimpleNamespace(scheduler_config=scheduler, parallel_config=parallel)
        self.inside: list[tuple[int, asyncio.Event]] = []
        self.generate, self.encode = self._answer, self._answer
        self.turns: PromptTurns = share_prompts(self)

    def get_num_queued_tokens(self) -> int:
        return sum(number for number, _ in self.inside)

    async def _answer(self, prompt: Any, request_id: str) -> AsyncGenerator[str, None]:
        entry = (len(prompt["prompt_token_ids"]), asyncio.Event())
        self.inside.append(entry)
        try:
            await entry[1].wait()
            yield request_id
        finally:
            if entry in self.inside:
                self.inside.remove(entry)

    async def step(self) -> None:
        await settle()
        if self.inside:
            self.inside.pop(0)[1].set()
        await settle()
        await asyncio.sleep(0.01)  # until it is looked again


def ask(
    engine: Engine,
    key: str,
    done: list[str],
    *,
    tokens: int = TOKENS,
    method: str = "generate",
    usage: Usage | None = None,
) -> asyncio.Task[None]:
    """Sends one request of a key, `name` or `name:priority:weight`."""
    name, priority, weight = (*key.split(":"), "0", "1")[:3]
    own = usage or Usage(key=name, priority=int(priority), weight=float(weight))

    async def run() -> None:
        prompt = {"prompt_token_ids": [1] * tokens}
        async for answer in getattr(engine, method)(prompt, request_id=name):
            done.append(answer)

    with one_request(), counting(own):
        return asyncio.create_task(run())


async def run_to_end(engine: Engine, tasks: list[asyncio.Task[None]]) -> None:
    async with asyncio.timeout(20):
        while not all(task.done() for task in tasks):
            await engine.step()
    await asyncio.gather(*tasks)
    assert not engine.inside
    assert engine.turns.waiting == (0, 0)
    assert not engine.turns._line
    assert engine.turns._num_beginning == 0


async def test_a_key_with_many_prompts_holds_no_other_up() -> None:
    for method in ("generate", "encode"):
        engine, done = Engine(), list[str]()
        tasks = [ask(engine, "many", done, method=method) for _ in range(30)]
        await settle()
        assert engine.get_num_queued_tokens() <= 2 * TOKENS
        assert engine.turns.waiting == (28, 28 * TOKENS)
        usage = Usage(key="few")
        tasks.append(ask(engine, "few", done, tokens=4, method=method, usage=usage))
        for _ in range(4):
            await engine.step()
        assert 0.005 < usage.queued_s < 5
        assert "few" in done
        await run_to_end(engine, tasks)
        assert done.count("many") == 30


async def test_keys_share_by_their_weights_and_priorities_come_first() -> None:
    engine, done = Engine(), list[str]()
    tasks = [ask(engine, "first", done) for _ in range(3)]
    tasks += [ask(engine, "light:0:1", done) for _ in range(20)]
    tasks += [ask(engine, "heavy:0:3", done) for _ in range(20)]
    tasks += [ask(engine, "urgent:1:1", done) for _ in range(3)]
    await settle()
    for _ in range(17):
        await engine.step()
    assert done[2:5] == ["urgent"] * 3
    assert (done.count("light"), done.count("heavy")) in [(2, 8), (3, 7), (3, 8), (3, 9)]
    await run_to_end(engine, tasks)


async def test_long_prompts_count_for_more() -> None:
    engine, done = Engine(), list[str]()
    tasks = [ask(engine, "first", done) for _ in range(3)]
    tasks += [ask(engine, "long", done, tokens=20) for _ in range(20)]
    tasks += [ask(engine, "short", done, tokens=5) for _ in range(20)]
    await settle()
    for _ in range(18):
        await engine.step()
    assert done.count("short") >= 3 * done.count("long")
    await run_to_end(engine, tasks)


async def test_a_prompt_longer_than_two_steps_is_read_alone() -> None:
    engine, done = Engine(), list[str]()
    tasks = [ask(engine, "a", done, tokens=10), ask(engine, "long", done, tokens=500)]
    await settle()
    assert engine.get_num_queued_tokens() == 10
    await engine.step()
    assert engine.get_num_queued_tokens() == 500
    await run_to_end(engine, tasks)


async def test_without_keys_nothing_waits() -> None:
    engine, done = Engine(), list[str]()
    tasks = [ask(engine, "", done) for _ in range(30)]
    await settle()
    assert len(engine.inside) == 30
    await run_to_end(engine, tasks)


async def test_clients_that_leave_give_their_room_back() -> None:
    engine, done = Engine(), list[str]()
    gone = [ask(engine, "gone", done) for _ in range(30)]
    await settle()
    for task in gone[1:]:
        task.cancel()
    await engine.step()  # one is answered, and one was in the engine when it left
    await asyncio.gather(*gone, return_exceptions=True)
    assert not engine.inside
    tasks = [ask(engine, "next", done) for _ in range(4)]
    await settle()
    assert len(engine.inside) == 2
    await run_to_end(engine, tasks)
    assert done.count("next") == 4


async def test_a_turn_that_came_too_late_goes_on_to_the_next() -> None:
    engine, done = Engine(), list[str]()
    tasks = [ask(engine, "many", done) for _ in range(4)]
    await settle()
    engine.inside.clear()
    async with asyncio.timeout(5):
        while engine.turns._num_beginning == 0:
            engine.turns._fill()
    tasks[2].cancel()
    await settle()
    assert engine.turns._num_beginning == 0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
