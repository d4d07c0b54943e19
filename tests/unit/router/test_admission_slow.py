"""Models of which requests end seldom: refusals stay quick, and places are kept where they help."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.virtual_time import run
from truthgpt_serve.cluster.state import ApplicationState
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.queue_full import CLIENT_HEADER
from truthgpt_serve.router.admission import Admission
from truthgpt_serve.router.model_entry import model_entry
from truthgpt_serve.router.waiting.line import FIRST_LENGTH

PLACES, QUEUED = 2, 4
HELD = PLACES + QUEUED
AT_ONCE_S = 0.1


class Model:
    """A model whose requests take as long as they say."""

    def __init__(self) -> None:
        limits = {"max_ongoing_requests": PLACES, "max_queued_requests": QUEUED}
        state = ApplicationState("m", "/models/m", "RUNNING", "", 1, {"limits": limits}, 0.0)
        self.entry = model_entry(state, has_run=True)
        self.admission = Admission(1)

    async def ask(self, client: int, took_s: float, after_s: float = 0.0) -> tuple[bool, float]:
        """Returns whether a client had an answer, and how long it took until it began or not."""
        await asyncio.sleep(after_s)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        scope = {"headers": [(CLIENT_HEADER.encode(), b"192.0.2.%d:1" % client)]}
        try:
            async with self.admission.admit(self.entry, scope):
                waited_s = loop.time() - began_s
                await asyncio.sleep(took_s)
                return True, waited_s
        except OverloadedError:
            return False, loop.time() - began_s


@pytest.mark.parametrize("idle_s", [0, 100])
def test_a_first_burst_at_a_slow_model_is_refused_at_once(idle_s: float) -> None:
    async def burst() -> list[tuple[bool, float]]:
        model = Model()
        await model.ask(0, 0.1)
        await asyncio.sleep(idle_s)
        return await asyncio.gather(*[model.ask(number, 5) for number in range(40)])

    found = run(burst())
    assert [answered for answered, _ in found].count(True) == HELD
    assert max(waited_s for _, waited_s in found) <= AT_ONCE_S


def test_a_batch_that_ended_promises_no_more() -> None:
    took_s = 3.0

    async def bursts() -> list[tuple[bool, float]]:
        model = Model()
        first = [model.ask(number, took_s) for number in range(HELD)]
        later = [model.ask(number, took_s, took_s + 0.05 * number) for number in range(50, 90)]
        return await asyncio.gather(*first, *later)

    found = run(bursts())
    assert max(waited_s for answered, waited_s in found if not answered) <= AT_ONCE_S


def test_a_first_burst_at_a_fast_model_has_its_places() -> None:
    async def burst() -> list[tuple[bool, float]]:
        model = Model()
        requests = [model.ask(number, 0.05 * (1 + number)) for number in range(HELD)]
        requests += [model.ask(number, 0.1) for number in range(HELD, HELD + FIRST_LENGTH)]
        return await asyncio.gather(*requests)

    assert all(answered for answered, _ in run(burst()))


def test_a_burst_has_its_places_where_it_is_known_that_requests_are_short() -> None:
    async def burst() -> list[tuple[bool, float]]:
        model = Model()
        model.admission.note_place(model.entry, b"100000")
        requests = [model.ask(number, 0.2 * (1 + number // PLACES)) for number in range(HELD)]
        requests += [model.ask(number, 0.2) for number in range(HELD, HELD + 4)]
        return await asyncio.gather(*requests)

    assert all(answered for answered, _ in run(burst()))


def test_an_idle_model_keeps_no_places() -> None:
    """However many were told to come now."""

    async def idle() -> list[tuple[bool, float]]:
        model = Model()
        running = [model.ask(number, 0.9) for number in range(HELD)]
        refused = [model.ask(number, 1, 0.01) for number in range(50, 100)]
        late = [model.ask(number, 1, 1.2) for number in range(200, 203)]
        return (await asyncio.gather(*running, *refused, *late))[-3:]

    assert run(idle()) == [(True, 0.0)] * PLACES + [(False, 0.0)]


def test_a_place_is_kept_for_whoever_is_due_before_the_next_one_comes() -> None:
    async def due() -> tuple[tuple[bool, float], ...]:
        model = Model()
        model.admission.note_place(model.entry, b"2000000")
        running = [asyncio.create_task(model.ask(n, 1.5 if not n else 9)) for n in range(HELD)]
        told = 7
        await asyncio.sleep(0)
        assert await model.ask(told, 1) == (False, 0.0)  # told to come in 2 s
        early, kept = await asyncio.gather(model.ask(8, 1, 1.7), model.ask(told, 1, 2.0))
        await asyncio.gather(*running)
        return early, kept

    early, kept = run(due())
    assert not early[0]
    assert kept == (True, 0.0)
