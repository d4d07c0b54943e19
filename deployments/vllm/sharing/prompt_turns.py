"""Has the prompts of keys read in fair order: the engine reads first what came first.

A key that sends many long prompts would otherwise have those of all others wait until the last of
its own is read, however few places its requests take. Here no more is in the engine than it reads
in two steps; the rest waits by the keys' priorities and shares, by tokens, and each request of a
key in turn. Without keys all come as they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from deployments.vllm.sharing.engine_turns import STEPS, num_tokens
from deployments.vllm.sharing.round_robin import FairLine, current_request
from truthgpt_serve.usage.counted import current_usage
from truthgpt_serve.usage.shares import Owner, current_owner

LOOK_S = 0.005
"""How often it is looked whether there is room: the engine does not say when a prompt is read."""


class PromptTurns:
    """The room in the engine for prompts that are still to be read. For one event loop.

    Args:
        client: vLLM's.

    Attributes:
        waiting: How many prompts wait for room, and their tokens.
    """

    def __init__(self, client: Any) -> None:
        config = client.vllm_config
        steps = STEPS * config.parallel_config.data_parallel_size
        self._max_tokens = steps * config.scheduler_config.max_num_batched_tokens
        self._count_tokens: Callable[[], int] = client.get_num_queued_tokens
        self._num_beginning = 0
        self._line: FairLine[tuple[asyncio.Future[None], int]] = FairLine()
        self._timer: asyncio.TimerHandle | None = None
        self.waiting = (0, 0)

    def may_begin(self, number: int) -> bool:
        """Returns whether a prompt of so many tokens need not wait."""
        return not self._line and self._has_room(number)

    async def enter(self, owner: Owner, number: int) -> None:
        """Waits until there is room for a prompt of this task's request.

        It must be in the engine before the task waits for anything else.

        Args:
            owner: Whose it is.
            number: Its tokens.
        """
        turn = asyncio.get_running_loop().create_future()
        self._line.push(owner, current_request(), (turn, number))
        self._count(1, number)
        self._look_later()
        since_s = time.monotonic()
        try:
            await turn
        finally:
            if (usage := current_usage()) is not None:
                usage.queued_s += time.monotonic() - since_s
            self._count(-1, -number)
            if not turn.cancelled():
                self._num_beginning -= number

    def _count(self, prompts: int, tokens: int) -> None:
        self.waiting = (self.waiting[0] + prompts, self.waiting[1] + tokens)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._fill)

    def _fill(self) -> None:
        self._timer = None
        while self._line:
            turn, number = self._line.peek()
            if turn.done():
                self._line.pop(0)
            elif self._has_room(number):
                self._line.pop(number)
                self._num_beginning += number
                turn.set_result(None)
            else:
                self._look_later()
                return

    def _has_room(self, number: int) -> bool:
        inside = self._count_tokens() + self._num_beginning
        return not inside or inside + number <= self._max_tokens


def share_prompts(client: Any) -> PromptTurns:
    """Has the prompts of an engine client's requests take turns; returns these.

    Args:
        client: vLLM's; its methods `generate` and `encode` are replaced.
    """
    turns = PromptTurns(client)

    def shared(method: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., Any]:
        def in_turn(prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            outputs = method(prompt, *args, **kwargs)
            owner, number = current_owner(), num_tokens(prompt)
            if not owner.name or turns.may_begin(number):
                return outputs
            return _in_turn(turns, owner, number, outputs)

        return in_turn

    client.generate, client.encode = shared(client.generate), shared(client.encode)
    return turns


async def _in_turn(
    turns: PromptTurns, owner: Owner, number: int, outputs: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    async with aclosing(outputs):
        await turns.enter(owner, number)
        async for output in outputs:
            yield output
