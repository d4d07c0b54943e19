"""Lets no request for many answers fill the engine, which takes first what came first.

vLLM adds all prompts of a request, and all `n` answers to each, at once: a request of another
client waits behind the last of them. Here a request's first answer goes straight to the engine, as
other requests do, and its further ones only as far as the engine has room, in turn with those of
other requests, and in the fair order of their keys.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

from deployments.vllm.sharing.engine_turns import STEPS, num_tokens
from deployments.vllm.sharing.round_robin import FairLine, OneRequest, current_request
from truthgpt_serve.usage.shares import current_owner

KEPT = 8
"""One of so many of the engine's sequences is kept for requests that come meanwhile."""
LOOK_S = 0.02
"""How often it is looked whether there is room: the engine does not say when an answer ends."""


class Size(NamedTuple):
    """What answers to one prompt take.

    Attributes:
        answers: How many there are.
        tokens: Tokens that are read before they begin.
    """

    answers: int
    tokens: int

    def plus(self, other: Size, times: int = 1) -> Size:
        """Returns both together."""
        return Size(self.answers + times * other.answers, self.tokens + times * other.tokens)


class AnswerTurns:
    """The room in the engine for what is more than one answer of a request. For one event loop.

    Args:
        client: vLLM's.

    Attributes:
        waiting: What waits for room.
    """

    def __init__(self, client: Any) -> None:
        config = client.vllm_config
        num_engines = config.parallel_config.data_parallel_size
        scheduler = config.scheduler_config
        sequences = scheduler.max_num_seqs * num_engines
        tokens = STEPS * scheduler.max_num_batched_tokens * num_engines
        self._most = Size(sequences - max(1, sequences // KEPT), tokens)
        self._count_answers: Callable[[], int] = client.get_num_unfinished_requests
        self._count_tokens: Callable[[], int] = client.get_num_queued_tokens
        self._num_entered = 0
        self._beginning = Size(0, 0)
        self._line: FairLine[tuple[asyncio.Future[None], Size]] = FairLine()
        self._requests: Counter[OneRequest] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._looks_soon = False
        self.waiting = Size(0, 0)

    async def enter(self, request: OneRequest, size: Size) -> None:
        """Waits until there is room for answers; `leave` gives it back.

        They must be in the engine before the task waits for anything else.

        Args:
            request: Whose they are.
            size: What they take.
        """
        turn = asyncio.get_running_loop().create_future()
        self._line.push(current_owner(), request, (turn, size))
        self._requests[request] += 1
        self.waiting = self.waiting.plus(size)
        self._look_soon()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._beginning = self._beginning.plus(size, -1)
                self.leave(size)
            raise
        else:
            self._beginning = self._beginning.plus(size, -1)
        finally:
            self.waiting = self.waiting.plus(size, -1)
            self._requests[request] -= 1
            if not self._requests[request]:
                del self._requests[request]

    def leave(self, size: Size) -> None:
        """Gives the room of answers back."""
        self._num_entered -= size.answers
        self._look_soon()

    def _look_soon(self) -> None:
        """Looks once at all that comes and goes in this turn of the event loop."""
        if self._line and not self._looks_soon:
            self._looks_soon = True
            asyncio.get_running_loop().call_soon(self._fill)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._fill_again)

    def _fill_again(self) -> None:
        self._timer = None
        self._fill()

    def _fill(self) -> None:
        self._looks_soon = False
        inside = Size(self._count_answers(), self._count_tokens())
        while self._line:
            turn, size = self._line.peek()
            if turn.done():
                self._line.pop(0)
            elif self._has_room(inside.plus(self._beginning), size):
                self._line.pop(size.answers)
                self._num_entered += size.answers
                self._beginning = self._beginning.plus(size)
                turn.set_result(None)
            else:
                self._look_later()
                return

    def _has_room(self, inside: Size, size: Size) -> bool:
        """Returns whether so much more fits, or fewer have entered than requests wait here."""
        if self._num_entered < len(self._requests):
            return True
        both = inside.plus(size)
        fits = both.tokens <= self._most.tokens or not inside.tokens
        return fits and both.answers <= self._most.answers


def share_answers(client: Any) -> AnswerTurns:
    """Has the answers of an engine client's requests take turns; returns these.

    Args:
        client: vLLM's; its method `generate` is replaced.
    """
    turns = AnswerTurns(client)
    generate = client.generate

    def shared_generate(
        prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        outputs: AsyncGenerator[Any, None] = generate(prompt, sampling_params, *args, **kwargs)
        request, number = current_request(), sampling_params.n
        if request is None or request.begin_answers(number) == 1:
            return outputs
        return _in_turn(turns, request, Size(number, number * num_tokens(prompt)), outputs)

    client.generate = shared_generate
    return turns


async def _in_turn(
    turns: AnswerTurns, request: OneRequest, size: Size, outputs: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    await turns.enter(request, size)
    try:
        async with aclosing(outputs):
            async for output in outputs:
                yield output
    finally:
        turns.leave(size)
