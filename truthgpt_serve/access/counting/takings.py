"""Charges of requests that wait for what a server says of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from truthgpt_serve.access.counting.charges import Charge, Standing


@dataclass(slots=True)
class Taking:
    """Charges of one request, and the server's answer; None where it gives none."""

    charges: Sequence[Charge]
    answer: asyncio.Future[list[Standing] | None]


class Takings:
    """All that wait, in their order.

    Attributes:
        num_missed: How many had no answer.
    """

    def __init__(self) -> None:
        self._waiting: deque[Taking] = deque()
        self.num_missed = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, charges: Sequence[Charge]) -> Taking:
        """Has charges wait."""
        taking = Taking(charges, asyncio.get_running_loop().create_future())
        self._waiting.append(taking)
        return taking

    async def wait(self, taking: Taking, limit_s: float) -> list[Standing] | None:
        """Returns the answer, or None if there is none in time, in seconds."""
        answer = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                answer = await taking.answer
        self.num_missed += answer is None
        return answer

    def next(self, most: int) -> list[Taking]:
        """Takes out the first ones, at most so many, that are still waited for."""
        found = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        return [taking for taking in found if not taking.answer.done()]

    def give_up(self) -> None:
        """Says to all of them that there is no answer."""
        for taking in self.next(len(self._waiting)):
            taking.answer.set_result(None)
