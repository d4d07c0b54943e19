"""Answers of several requests take turns in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from deployments.vllm.sharing.answer_turns import AnswerTurns, share_answers
from deployments.vllm.sharing.round_robin import one_request
from tests.support.tasks import settle
from truthgpt_serve.usage.counted import Usage, counting

SHORT = {"prompt_token_ids": [1, 2, 3, 4]}
LONG = {"prompt_token_ids": [1] * 60}


@dataclass
class Params:
    n: int = 1


@dataclass(eq=False)
class Sequence:
    """One answer in the engine, which reads its prompt in its first step and ends in the next."""

    name: str
    num_tokens: int
    left: int = 2


class Engine:
    """Computes 8 sequences in the order in which they came, and reads 40 tokens in a step."""

    def __init__(self) -> None:
        scheduler = SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=40)
        parallel = SimpleNamespace(data_parallel_size=1)
        self.vllm_config = SimpleNamespace(scheduler_config=scheduler, parallel_config=parallel)
        self.inside: list[Sequence] = []
        self.turns: AnswerTurns | None = None
        self.changed = asyncio.Condition()

    def get_num_unfinished_requests(self) -> int:
        return len(self.inside)

    def get_num_queued_tokens(self) -> int:
        return sum(one.num_tokens for one in self.inside if one.left == 2)

    async def generate(
        self, prompt: Any, sampling_params: Params, request_id: str
    ) -> AsyncGenerator[str, None]:
        number = len(prompt["prompt_token_ids"])
        own = [Sequence(request_id, number) for _ in range(sampling_params.n)]
        self.inside += own
        try:
            async with self.changed:
                await self.changed.wait_for(lambda: not any(one.left for one in own))
            yield request_id
        finally:
            for one in own:
                if one in self.inside:
                    self.inside.remove(one)

    async def step(self) -> None:
        await settle()
        room = 40
        for one in self.inside[:8]:
            if one.left == 2:
                if one.num_tokens > room and room < 40:
                    break
                room -= one.num_tokens
            one.left -= 1
        async with self.changed:
            self.changed.notify_all()
        await settle()
        await asyncio.sleep(0.025)  # until it is looked again


def begin(
    engine: Any, name: str, done: list[str], number: int = 1, n: int = 1, prompt: Any = SHORT
) -> list[asyncio.Task[None]]:
    async def ask() -> None:
        async for answer in engine.generate(prompt, Params(n), request_id=name):
            done.append(answer)

    with one_request():
        return [asyncio.create_task(ask()) for _ in range(number)]


def start() -> tuple[Engine, list[str]]:
    engine = Engine()
    engine.turns = share_answers(engine)
    return engine, []


async def run_to_end(engine: Engine, tasks: list[asyncio.Task[None]]) -> None:
    async with asyncio.timeout(20):
        while not all(task.done() for task in tasks):
            await engine.step()
    await asyncio.gather(*tasks)
    assert not engine.inside
    assert engine.turns is not None
    assert engine.turns.waiting == engine.turns._beginning == (0, 0)
    assert engine.turns._num_entered == 0  # else a busy engine would let none in any more


async def test_one_answer_does_not_wait_for_a_request_of_many() -> None:
    engine, done = start()
    tasks = begin(engine, "many", done, 60)
    await settle()
    assert len(engine.inside) == 7  # the eighth sequence is kept
    one = begin(engine, "one", done)
    for _ in range(2):
        await engine.step()
    assert "one" in done
    await run_to_end(engine, tasks + one)
    assert done.count("many") == 60


async def test_one_answer_does_not_wait_for_many_to_one_prompt() -> None:
    engine, done = start()
    tasks = [task for at in range(6) for task in begin(engine, f"wide-{at}", done, n=6)]
    await settle()
    assert len(engine.inside) <= 8 + 6
    one = begin(engine, "one", done)
    for _ in range(4):
        await engine.step()
    assert "one" in done
    await run_to_end(engine, tasks + one)
    assert len(done) == 7


async def test_one_answer_does_not_wait_for_many_long_prompts() -> None:
    engine, done = start()
    tasks = begin(engine, "long", done, 20, prompt=LONG)
    await settle()
    assert engine.get_num_queued_tokens() <= 2 * 60
    one = begin(engine, "one", done)
    for _ in range(4):
        await engine.step()
    assert "one" in done
    await run_to_end(engine, tasks + one)


async def test_requests_of_many_take_turns() -> None:
    engine, done = start()
    tasks = begin(engine, "a", done, 40) + begin(engine, "b", done, 40)
    for _ in range(10):
        await engine.step()
    assert len(done) >= 20
    assert abs(done.count("a") - done.count("b")) <= 9
    await run_to_end(engine, tasks)


async def test_keys_share_whatever_number_of_requests_each_has() -> None:
    engine, done = start()
    tasks: list[asyncio.Task[None]] = []
    for at in range(8):
        with counting(Usage(key="few" if at == 7 else "many")):
            tasks += begin(engine, "few" if at == 7 else "many", done, 20)
    for _ in range(16):
        await engine.step()
    assert done.count("few") >= 15
    await run_to_end(engine, tasks)


async def test_a_request_of_many_goes_on_beside_others_without_end() -> None:
    engine, done = start()
    tasks = begin(engine, "many", done, 6)
    others: list[asyncio.Task[None]] = []
    async with asyncio.timeout(20):
        while not all(task.done() for task in tasks):
            while len(engine.inside) < 10:
                others += begin(engine, "one", done)
                await settle()
            await engine.step()
    assert done.count("many") == 6
    await run_to_end(engine, others)


async def test_clients_that_leave_give_their_room_back() -> None:
    engine, done = start()
    gone = begin(engine, "gone", done, 40) + begin(engine, "gone", done, n=5)
    await engine.step()
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    assert not engine.inside
    tasks = begin(engine, "next", done, 7)
    await settle()
    assert len(engine.inside) == 7
    await run_to_end(engine, tasks)


async def test_requests_that_left_make_no_room() -> None:
    engine, done = start()
    tasks = begin(engine, "many", done, 20)
    await settle()
    gone = [task for at in range(30) for task in begin(engine, f"gone-{at}", done, 2)]
    await settle()
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    await engine.step()
    assert len(engine.inside) <= 8
    await run_to_end(engine, tasks)


async def test_a_turn_that_came_too_late_goes_on_to_the_next() -> None:
    engine, done = start()
    tasks = begin(engine, "many", done, 8)
    await settle()
    for sequence in engine.inside:
        sequence.left = 0
    async with engine.changed:
        engine.changed.notify_all()
    tasks[-1].cancel()
    following = begin(engine, "following", done, 7)
    await run_to_end(engine, tasks[:-1] + following)
    assert (done.count("many"), done.count("following")) == (7, 7)


async def test_what_belongs_to_no_request_goes_straight_on() -> None:
    engine, done = start()

    async def ask() -> None:
        async for answer in engine.generate(SHORT, Params(), request_id="stray"):
            done.append(answer)

    tasks = [asyncio.create_task(ask()) for _ in range(20)]
    await settle()
    assert len(engine.inside) == 20
    await run_to_end(engine, tasks)
