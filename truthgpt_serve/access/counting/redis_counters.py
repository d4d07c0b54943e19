"""Counts in a Redis or Valkey server that all machines share: of a minute, and of what runs now.

One task and one connection of each process do all of it, as many counts in one trip as there are.
While the server is away nothing waits for it: `take_all` says so at once, and the caller counts at
its own machine. The task asks each second whether it is back. One that has lost its counts is told
by each process what that let in during the last minute, before it counts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from truthgpt_serve.access.counting.charges import BUCKET_S, Charge, Standing
from truthgpt_serve.access.counting.outage import Outage
from truthgpt_serve.access.counting.own_counts import Counts, OwnCounts
from truthgpt_serve.access.counting.redis_commands import (
    ANSWER_S,
    LEASE_S,
    Commands,
    connect,
    standing_of,
)
from truthgpt_serve.access.counting.takings import Taking, Takings

RETRY_S = 1.0
MAX_WAITING = 4096
"""Counts that wait for the server; what comes then is counted at its own machine."""
MAX_BATCH = 128
MAX_CORRECTIONS = 16384


class RedisCounters:
    """The counts of one server.

    Args:
        url: Of the server, as redis-py takes it; never shown.

    Attributes:
        is_up: Whether it answers, as far as is known.
        forget: Is told what of a name's counts the server now has beside its machine.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._commands = Commands(f"{os.getpid()}-{uuid.uuid4().hex[:16]}")
        self._takings = Takings()
        self._corrections: dict[tuple[str, int], float] = {}
        self._running: dict[str, int] = {}
        self._changed: set[str] = set()
        self._suspects: set[str] = set()
        self._own = OwnCounts()
        self._mark: bytes | None = None
        self._is_lost = False
        self._marked_s = self._said_s = 0.0
        self._outage = Outage()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._is_closed = False
        self.is_up = True
        self.forget: Callable[[str, Counts], None] = lambda name, counts: None

    async def take_all(self, charges: Sequence[Charge]) -> list[Standing] | None:
        """Counts all of these, if all limits allow it; else nothing.

        Args:
            charges: What to count, each under another name.

        Returns:
            How each name stands, or None while the server is away, or takes longer than a trip
            and the one before: then nothing was counted.
        """
        if self._task is None and not self._is_closed:
            self._task = asyncio.get_running_loop().create_task(self._serve())
        if not self.is_up or self._is_closed or len(self._takings) >= MAX_WAITING:
            self._takings.num_missed += 1
            return None
        taking = self._takings.add(charges)
        self._wake.set()
        return await self._takings.wait(taking, 2 * ANSWER_S)

    @property
    def num_missed(self) -> int:
        """Counts that were left to the machine."""
        return self._takings.num_missed

    def correct(self, name: str, amount: float, then_s: float, now_s: float) -> None:
        """Corrects what was counted at an earlier time, as `Counters.correct` does."""
        at_s = then_s if amount < 0 else now_s
        self._own.add(name, amount, at_s, is_told=True)
        key = (name, int(at_s / BUCKET_S))
        if key in self._corrections or len(self._corrections) < MAX_CORRECTIONS:
            self._corrections[key] = self._corrections.get(key, 0.0) + amount
        self._wake.set()

    def known(self, name: str, now_s: float) -> float:
        """Returns what of a name's minute all machines have used, as the server said at last."""
        return self._own.known(name, now_s)

    def note(self, name: str, amount: float, then_s: float, now_s: float) -> None:
        """Notes what was let in, or corrected, by the machine's own count, to tell it later."""
        at_s = then_s if amount < 0 else now_s
        if self.is_up and self._mark is not None:
            self.correct(name, amount, then_s, now_s)
        else:
            self._own.add(name, amount, at_s, is_told=False)

    def finish(self, name: str, now_s: float) -> None:
        """Takes back one thing that ran."""
        self._change(name, -1)
        self._wake.set()

    def close(self) -> None:
        """Ends the task, which takes back what of this process runs."""
        self._is_closed = True
        if self._task is not None and not self._task.get_loop().is_closed():
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    def _change(self, name: str, more: int) -> int:
        """Returns how many things of a name run here then."""
        number = max(0, self._running.get(name, 0) + more)
        if number:
            self._running[name] = number
        else:
            self._running.pop(name, None)
        self._changed.add(name)
        return number

    # -- the task

    async def _serve(self) -> None:
        client = connect(self._url)
        try:
            while not self._is_over():
                next_s = time.monotonic() + RETRY_S
                await self._follow(client)
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))
        finally:
            self.is_up = False
            self._takings.give_up()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                async with asyncio.timeout(ANSWER_S):
                    await self._leave(client)
            with contextlib.suppress(Exception):
                await client.aclose()

    def _is_over(self) -> bool:
        """Whether the task shall end; a library may swallow that it was cancelled."""
        return self._is_closed or (self._task is not None and self._task.cancelling() > 0)

    async def _follow(self, client: Any) -> None:
        """Counts until the server is away."""
        try:
            await self._commands.load(client)
            names = self._suspects
            await self._commands.try_out(client, {n: self._running.get(n, 0) for n in names})
            await self._take_over(client)
            self._suspects.clear()
            self._changed |= self._running.keys()
            self._outage.end()
            self.is_up = True
            await self._forget()
            while not self._is_over():
                await self._wait()
                async with asyncio.timeout(ANSWER_S):
                    await self._send(client)
                if self._is_lost:
                    await self._take_over(client)
        except Exception as error:  # whatever is wrong with the server: requests go on
            self._outage.note(error)
            self.is_up = False
            self._takings.give_up()
            with contextlib.suppress(Exception):
                await client.connection_pool.disconnect()

    async def _take_over(self, client: Any) -> None:
        """Tells the server what it does not know: what was let in while it was away.

        If it has lost its counts, all of the last minute. The other processes then tell theirs
        before anything is let in by them.
        """
        mark = await self._commands.read_mark(client)
        is_lost = mark != self._mark
        if is_lost:
            self._corrections.clear()  # they are in what was let in
        await self._tell(client, is_lost=is_lost)
        if is_lost and not self.is_up:
            await asyncio.sleep(RETRY_S + ANSWER_S)
            await self._tell(client, is_lost=False)
        self._mark, self._is_lost = mark, False

    async def _tell(self, client: Any, *, is_lost: bool) -> None:
        counted = self._own.to_tell(is_lost=is_lost)
        with self._own.telling():
            async with asyncio.timeout(4 * ANSWER_S), client.pipeline(transaction=False) as pipe:
                for name, counts in counted.items():
                    self._commands.restore(pipe, name, counts)
                await pipe.execute()

    async def _forget(self) -> None:
        """Has the machine forget what the server was told, now that this counts."""
        for name, counts in self._own.take_told():
            self.forget(name, counts)
            await asyncio.sleep(0)  # others go on

    async def _wait(self) -> None:
        """Waits for something to send; what runs is said again before it expires.

        A process that has let something in looks each second whether the server still knows it.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S if self._own else LEASE_S / 3):
                await self._wake.wait()
        now_s = time.time()
        self._own.drop_old(now_s)
        if now_s - self._said_s >= LEASE_S / 3:
            self._said_s = now_s
            self._changed |= self._running.keys()

    def _next(self) -> tuple[list[Taking], list[tuple[tuple[str, int], float]], list[str]]:
        """Takes out what is sent next: takings, corrections, and names whose things changed."""
        takings = self._takings.next(MAX_BATCH)
        keys = list(self._corrections)[:MAX_BATCH]
        corrections = [(key, self._corrections.pop(key)) for key in keys]
        changed = [self._changed.pop() for _ in range(min(MAX_BATCH, len(self._changed)))]
        if not (self._takings or self._corrections or self._changed):
            self._wake.clear()
        return takings, corrections, changed

    async def _send(self, client: Any) -> None:
        takings, corrections, changed = self._next()
        try:
            now_s = time.monotonic()
            looks = now_s - self._marked_s >= RETRY_S
            async with client.pipeline(transaction=False) as pipe:
                if looks:
                    self._commands.keep_mark(pipe)
                for (name, bucket), amount in corrections:
                    self._commands.correct(pipe, name, bucket, amount)
                for name in changed:
                    self._commands.run(pipe, name, self._running.get(name, 0))
                for taking in takings:
                    self._put_taking(pipe, taking)
                answers = await pipe.execute()
            if looks:
                self._marked_s, self._is_lost = now_s, not answers[0]
            for taking, answer in zip(takings, answers[len(answers) - len(takings) :], strict=True):
                self._answer(taking, [standing_of(each) for each in answer])
        except Exception:
            charged = [charge.name for taking in takings for charge in taking.charges]
            self._suspects = {*charged, *changed, *(key[0] for key, _ in corrections)}
            raise
        finally:
            for taking in takings:
                if not taking.answer.done():
                    self._answer(taking, None)

    def _put_taking(self, pipe: Any, taking: Taking) -> None:
        running = {
            charge.name: self._change(charge.name, 1) for charge in taking.charges if charge.runs
        }
        self._commands.take(pipe, taking.charges, running)

    def _answer(self, taking: Taking, standings: list[Standing] | None) -> None:
        """Tells who waits, and takes back what was not let in, or is not wanted any more."""
        fits = standings is not None and all(standing.fits for standing in standings)
        is_left = taking.answer.done()
        if not is_left:
            taking.answer.set_result(standings)
        now_s = time.time()
        for charge, standing in zip(taking.charges, standings or (), strict=False):
            self._own.know(charge.name, standing.used, now_s)
            if fits:
                self._own.add(charge.name, charge.amount, now_s, is_told=True)
        if fits and not is_left:
            return
        for charge in taking.charges:
            if charge.runs:
                self._change(charge.name, -1)
            if fits:
                self.correct(charge.name, -charge.amount, now_s, now_s)
        self._wake.set()

    async def _leave(self, client: Any) -> None:
        """Takes back what of this process runs."""
        async with client.pipeline(transaction=False) as pipe:
            for name in self._running:
                self._commands.run(pipe, name, 0)
            await pipe.execute()
