"""Clients that come again as `Retry-After` told them find a place at models of many kinds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.support.virtual_time import run
from truthgpt_serve.cluster.state import ApplicationState
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.queue_full import CLIENT_HEADER
from truthgpt_serve.router.admission import Admission
from truthgpt_serve.router.model_entry import model_entry

SECONDS, TIMES = 120.0, 3.0
WITHIN = 0.3
MAX_TRIES = 20


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        places: Requests that it works on.
        took_s: How long one takes; may be random.
        is_batch: Whether what begins together ends together, and nothing begins meanwhile.
        tells: Whether its answers say how fast places come.
        share: How many of those that come as told are let in at least.
    """

    places: int
    took_s: Callable[[random.Random], float]
    is_batch: bool = False
    tells: bool = True
    share: float = 0.9


KINDS = {
    "images in batches": Kind(16, lambda _: 2.2, is_batch=True),
    "long batches": Kind(
        8, lambda _: 12.0, is_batch=True, share=0.75
    ),  # many of them before one ends
    "batches that tell nothing": Kind(16, lambda _: 2.2, is_batch=True, tells=False),
    "one by one": Kind(1, lambda _: 6.0),
    "uneven": Kind(8, lambda rng: rng.expovariate(1 / 4.0)),
    "uneven, tells nothing": Kind(8, lambda rng: rng.expovariate(1 / 4.0), tells=False),
    "quick": Kind(16, lambda rng: rng.uniform(0.1, 0.5)),
}


class Model:
    """A model behind a router."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.rng = kind, random.Random(7)
        self.held = 3 * kind.places
        limits = {"max_ongoing_requests": kind.places, "max_queued_requests": 2 * kind.places}
        state = ApplicationState("m", "/models/m", "RUNNING", "", 1, {"limits": limits}, 0.0)
        self.entry = model_entry(state, has_run=True)
        self.admission = Admission(1)
        self.places = asyncio.Semaphore(kind.places)
        self.waiting: list[asyncio.Event] = []
        self.num_done = self.most = 0

    async def run_batches(self) -> None:
        while True:
            batch, self.waiting = (
                self.waiting[: self.kind.places],
                self.waiting[self.kind.places :],
            )
            await asyncio.sleep(self.kind.took_s(self.rng) if batch else 0.01)
            for each in batch:
                each.set()

    async def work(self) -> None:
        if self.kind.is_batch:
            self.waiting.append(done := asyncio.Event())
            await done.wait()
        else:
            async with self.places:
                await asyncio.sleep(self.kind.took_s(self.rng))

    async def ask(self, client: int) -> int | None:
        """Returns None for an answer, else after how many seconds to come again."""
        scope = {"headers": [(CLIENT_HEADER.encode(), b"c%d:%d" % (client, client))]}
        try:
            async with self.admission.admit(self.entry, scope):
                self.most = max(self.most, self.admission.num_requests)
                await self.work()
                if self.kind.tells and self.num_done > self.kind.places:
                    place_us = b"%d" % (self.mean_s() / self.kind.places * 1e6)
                    self.admission.note_place(self.entry, place_us)
        except OverloadedError as error:
            return int(error.retry_after_s or 0)
        self.num_done += asyncio.get_running_loop().time() <= SECONDS
        return None

    def mean_s(self) -> float:
        rng = random.Random(1)
        return sum(self.kind.took_s(rng) for _ in range(999)) / 999


@dataclass
class Seen:
    """What clients saw that came again as they were told: what they were told, and what it took."""

    told_s: list[int] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    num_first: int = 0


async def come_again(model: Model, seen: Seen, client: int, wait_s: int) -> None:
    loop = asyncio.get_running_loop()
    refused_s, told_s = loop.time(), wait_s
    for number in range(MAX_TRIES):
        await asyncio.sleep(wait_s)
        began_s = loop.time()
        again = await model.ask(client)
        if again is None:
            seen.told_s.append(told_s)
            seen.took_s.append(began_s - refused_s)
            seen.num_first += not number
            return
        wait_s = again


async def overload(kind: Kind, every: int) -> tuple[Model, Seen]:
    model, seen = Model(kind), Seen()
    batches = asyncio.create_task(model.run_batches()) if kind.is_batch else None
    rate = TIMES * kind.places / model.mean_s()
    num_refused = 0

    async def act(client: int) -> None:
        nonlocal num_refused
        wait_s = await model.ask(client)
        if wait_s is not None:
            num_refused += 1
            if not num_refused % every:
                await come_again(model, seen, client, wait_s)

    tasks = []
    for number in range(int(rate * SECONDS)):
        await asyncio.sleep(model.rng.expovariate(rate))
        tasks.append(asyncio.create_task(act(number)))
    await asyncio.gather(*tasks)
    if batches is not None:
        batches.cancel()
    return model, seen


@pytest.mark.long("waits as clients are told to")
@pytest.mark.parametrize("every", [10, 3])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_who_comes_as_told_is_let_in(kind: Kind, every: int) -> None:
    """One of so many refused ones does, as others leave."""
    model, seen = run(overload(kind, every))
    within = [
        abs(told_s / took_s - 1) <= WITHIN
        for told_s, took_s in zip(seen.told_s, seen.took_s, strict=True)
    ]
    assert sum(within) >= kind.share * len(within), f"{sum(within)} of {len(within)}"
    assert model.num_done >= 0.8 * SECONDS / model.mean_s() * kind.places
    assert model.most <= model.held + 32
