"""Counts in a Redis or Valkey server that all machines share: of a minute, and of what runs now.

One task and one connection of each process do all of it, as many counts in one trip as there are.
While the server is away nothing waits for it: `take_all` says so at once, and the caller counts at
its own machine. The task asks each second whether it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.access.counting.charges import BUCKET_S, NUM_BUCKETS, WINDOW_S, Charge, Standing
from truthgpt_serve.access.counting.redis_scripts import CORRECT, RUNNING, TAKE

logger = logging.getLogger(__name__)

ANSWER_S = 0.25
"""Longest time that a request waits for the server."""
RETRY_S = 1.0
LEASE_S = 30.0
"""After which what a silent process runs is taken back; it speaks up three times as often."""
SEPARATOR = "\0"
"""Between the parts of a count's name, whose first is its key's; in no name of a key or model."""
MAX_WAITING = 4096
"""Counts that wait for the server; what comes then is counted at its own machine."""
MAX_BATCH = 128
MAX_CORRECTIONS = 16384
PREFIX = "truthgpt:quota:"
_MS = 1000
_MINUTE = (str(int(BUCKET_S * _MS)), str(NUM_BUCKETS))
_LEASE = str(int(LEASE_S * _MS))


@dataclass(slots=True)
class _Taking:
    """Charges that wait for the server's answer."""

    charges: Sequence[Charge]
    answer: asyncio.Future[list[Standing] | None]


class RedisCounters:
    """The counts of one server.

    Args:
        url: Of the server, as redis-py takes it; never shown.

    Attributes:
        is_up: Whether it answers, as far as is known.
        num_missed: Counts that were left to the machine.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._process = f"{os.getpid()}-{uuid.uuid4().hex[:16]}"
        self._takings: deque[_Taking] = deque()
        self._corrections: dict[tuple[str, int], float] = {}
        self._running: dict[str, int] = {}
        self._changed: set[str] = set()
        self._hashes: tuple[str, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._is_closed = False
        self.is_up = True
        self.num_missed = 0

    async def take_all(self, charges: Sequence[Charge]) -> list[Standing] | None:
        """Counts all of these, if all limits allow it; else nothing.

        Args:
            charges: What to count, each under another name.

        Returns:
            How each name stands, or None while the server is away: then nothing was counted.
        """
        if self._task is None and not self._is_closed:
            self._task = asyncio.get_running_loop().create_task(self._serve())
        if not self.is_up or self._is_closed or len(self._takings) >= MAX_WAITING:
            self.num_missed += 1
            return None
        taking = _Taking(charges, asyncio.get_running_loop().create_future())
        self._takings.append(taking)
        self._wake.set()
        return await taking.answer

    def correct(self, name: str, amount: float, then_s: float, now_s: float) -> None:
        """Corrects what was counted at an earlier time, as `Counters.correct` does."""
        at_s = then_s if amount < 0 else now_s
        key = (name, int(at_s / BUCKET_S))
        if key in self._corrections or len(self._corrections) < MAX_CORRECTIONS:
            self._corrections[key] = self._corrections.get(key, 0.0) + amount
        self._wake.set()

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
        client = _connect(self._url)
        try:
            while True:
                await self._follow(client)
                await asyncio.sleep(RETRY_S)
        finally:
            self.is_up = False
            self._give_up()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                async with asyncio.timeout(ANSWER_S):
                    await self._leave(client)
            with contextlib.suppress(Exception):
                await client.aclose()

    async def _follow(self, client: Any) -> None:
        """Counts until the server is away."""
        try:
            async with asyncio.timeout(2 * ANSWER_S):
                loaded = [await client.script_load(text) for text in (TAKE, CORRECT, RUNNING)]
            self._hashes = tuple(loaded)
            self._changed |= self._running.keys()
            if not self.is_up:
                logger.info("the limits of keys are counted in quota_store again")
            self.is_up = True
            while True:
                await self._wait()
                async with asyncio.timeout(ANSWER_S):
                    await self._send(client)
        except Exception as error:  # whatever is wrong with the server: requests go on
            if self.is_up:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                logger.error(
                    "quota_store does not answer, so each machine counts for itself: %s", reason
                )
            self.is_up = False
            self._give_up()
            with contextlib.suppress(Exception):
                await client.connection_pool.disconnect()

    async def _wait(self) -> None:
        """Waits for something to send; what runs is said again before it expires."""
        try:
            async with asyncio.timeout(LEASE_S / 3):
                await self._wake.wait()
        except TimeoutError:
            self._changed |= self._running.keys()

    async def _send(self, client: Any) -> None:
        takings = [self._takings.popleft() for _ in range(min(MAX_BATCH, len(self._takings)))]
        corrections = [
            (key, self._corrections.pop(key)) for key in list(self._corrections)[:MAX_BATCH]
        ]
        changed = [self._changed.pop() for _ in range(min(MAX_BATCH, len(self._changed)))]
        if not (self._takings or self._corrections or self._changed):
            self._wake.clear()
        try:
            async with client.pipeline(transaction=False) as pipe:
                for (name, bucket), amount in corrections:
                    self._put_correction(pipe, name, bucket, amount)
                for name in changed:
                    number = self._running.get(name, 0)
                    self._put(pipe, 2, [_keys(name)[1]], [self._process, number, _LEASE])
                for taking in takings:
                    self._put_taking(pipe, taking)
                answers = await pipe.execute()
            for taking, answer in zip(takings, answers[len(answers) - len(takings) :], strict=True):
                self._answer(taking, [_standing(each) for each in answer])
        finally:
            for taking in takings:
                if not taking.answer.done():
                    self._answer(taking, None)

    def _put(self, pipe: Any, script: int, keys: Sequence[str], values: Sequence[Any]) -> None:
        pipe.evalsha(self._hashes[script], len(keys), *keys, *values)

    def _put_correction(self, pipe: Any, name: str, bucket: int, amount: float) -> None:
        age_s = max(0.0, time.time() - (bucket + 0.5) * BUCKET_S)
        if amount and age_s < WINDOW_S:
            values = [repr(amount), int(age_s * _MS), *_MINUTE]
            self._put(pipe, 1, [_keys(name)[0]], values)

    def _put_taking(self, pipe: Any, taking: _Taking) -> None:
        keys: list[str] = []
        values: list[Any] = [self._process, *_MINUTE, _LEASE]
        for charge in taking.charges:
            keys += _keys(charge.name)
            own: int | str = self._change(charge.name, 1) if charge.runs else ""
            limits = (charge.limit, charge.max_running)
            values += [repr(float(charge.amount)), *("" if n is None else n for n in limits), own]
        self._put(pipe, 0, keys, values)

    def _answer(self, taking: _Taking, standings: list[Standing] | None) -> None:
        """Tells who waits, and takes back what was not let in, or is not wanted any more."""
        fits = standings is not None and all(standing.fits for standing in standings)
        is_left = taking.answer.done()
        self.num_missed += standings is None
        if not is_left:
            taking.answer.set_result(standings)
        if fits and not is_left:
            return
        now_s = time.time()
        for charge in taking.charges:
            if charge.runs:
                self._change(charge.name, -1)
            if fits:
                self.correct(charge.name, -charge.amount, now_s, now_s)
        self._wake.set()

    def _give_up(self) -> None:
        """Has all that wait count at their own machine."""
        while self._takings:
            answer = self._takings.popleft().answer
            if not answer.done():
                self.num_missed += 1
                answer.set_result(None)

    async def _leave(self, client: Any) -> None:
        """Takes back what of this process runs."""
        if not self._hashes:
            return
        async with client.pipeline(transaction=False) as pipe:
            for name in self._running:
                self._put(pipe, 2, [_keys(name)[1]], [self._process, 0, _LEASE])
            await pipe.execute()


def _connect(url: str) -> Any:
    # Only where it is used: it is one of the optional extras.
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(
        url,
        socket_timeout=ANSWER_S,
        socket_connect_timeout=ANSWER_S,
        retry=Retry(NoBackoff(), 0),
        max_connections=2,
    )


def _keys(name: str) -> tuple[str, str]:
    """Returns the server's keys of a count: of its minute, and of what runs.

    Those of one key's counts are in one slot of a cluster, by the part in braces.
    """
    owner = _digest(name.split(SEPARATOR, 1)[0])
    key = f"{PREFIX}{{{owner}}}:{_digest(name)}"
    return f"{key}:minute", f"{key}:running"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _standing(answer: Sequence[Any]) -> Standing:
    used, wait_ms, reset_ms, running = answer
    return Standing(float(used), int(wait_ms) / _MS, int(reset_ms) / _MS, int(running))
