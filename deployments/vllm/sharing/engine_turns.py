"""Lets no request with many texts fill the engine, which takes first what came first.

vLLM adds all texts of a request for embeddings, classes or scores at once, and a request of another
client waits behind the last of them. Here only as many are in the engine as it takes in two steps,
and the texts of all requests follow each other in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from deployments.vllm.sharing.round_robin import RoundRobin, current_request

STEPS = 2
"""Steps of the engine whose texts are in it: the one that runs, and the one that follows."""


class EngineTurns:
    """The room in the engine. For one event loop.

    Args:
        max_texts: Most texts in the engine.
        max_tokens: Most tokens of them all; a longer text has the engine to itself.

    Attributes:
        waiting: How many texts wait for room, and their tokens.
    """

    def __init__(self, max_texts: int, max_tokens: int) -> None:
        self._max_texts = max_texts
        self._max_tokens = max_tokens
        self._num_texts = 0
        self._num_tokens = 0
        self._line: RoundRobin[tuple[asyncio.Future[None], int]] = RoundRobin()
        self.waiting = (0, 0)

    async def enter(self, num_tokens: int) -> None:
        """Waits until there is room for a text of this task's request; `leave` gives it back."""
        if not self._line and self._has_room(num_tokens):
            self._take(num_tokens)
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.push(current_request(), (turn, num_tokens))
        self._count(1, num_tokens)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave(num_tokens)
            raise
        finally:
            self._count(-1, -num_tokens)

    def leave(self, num_tokens: int) -> None:
        """Gives the room of a text back."""
        self._num_texts -= 1
        self._num_tokens -= num_tokens
        while self._line:
            turn, size = self._line.peek()
            if not turn.done():
                if not self._has_room(size):
                    return
                self._take(size)
                turn.set_result(None)
            self._line.pop()

    def _count(self, texts: int, tokens: int) -> None:
        self.waiting = (self.waiting[0] + texts, self.waiting[1] + tokens)

    def _has_room(self, num_tokens: int) -> bool:
        if not self._num_texts:
            return True
        fits = self._num_tokens + num_tokens <= self._max_tokens
        return fits and self._num_texts < self._max_texts

    def _take(self, num_tokens: int) -> None:
        self._num_texts += 1
        self._num_tokens += num_tokens


def share_engine(client: Any) -> EngineTurns:
    """Has the texts of an engine client's requests take turns; returns these.

    Args:
        client: vLLM's; its method `encode` is replaced.
    """
    config = client.vllm_config
    steps = STEPS * config.parallel_config.data_parallel_size
    scheduler = config.scheduler_config
    turns = EngineTurns(steps * scheduler.max_num_seqs, steps * scheduler.max_num_batched_tokens)
    encode = client.encode

    def shared_encode(prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        return _in_turn(turns, num_tokens(prompt), encode(prompt, *args, **kwargs))

    client.encode = shared_encode
    return turns


def num_tokens(prompt: Any) -> int:
    """Returns the tokens of a prompt as vLLM's renderer gives it; 1 where there are none yet."""
    ids = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
    return max(1, len(ids or ()))


async def _in_turn(
    turns: EngineTurns, num_tokens: int, outputs: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    request = current_request()
    async with aclosing(outputs):
        await turns.enter(num_tokens)
        try:
            async for output in outputs:
                if request is not None and output.finished:
                    request.add_values(_num_values(output))
                yield output
        finally:
            turns.leave(num_tokens)


def _num_values(output: Any) -> int:
    """Returns how many numbers the vectors of an output have."""
    count = getattr(getattr(output.outputs, "data", None), "numel", None)
    return int(count()) if callable(count) else 0
