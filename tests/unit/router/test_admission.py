"""A router lets through what a model's replicas hold, has few wait, and refuses the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.cluster.state import ApplicationState
from truthgpt_serve.errors import OverloadedError, RequestError
from truthgpt_serve.http.asgi import Scope
from truthgpt_serve.router import admission as module
from truthgpt_serve.router.admission import Admission
from truthgpt_serve.router.model_entry import ModelEntry, adapter_entries, model_entry
from truthgpt_serve.router.room import RESERVE, capacity, held_by_model
from truthgpt_serve.router.waiting.line import FIRST_LENGTH, WAIT_S

LIMITS = {"max_ongoing_requests": 2, "max_queued_requests": 4}


def entry_of(num_replicas: int, **card: Any) -> ModelEntry:
    state = ApplicationState("m", "/models/m", "RUNNING", "", num_replicas, card, 0.0)
    return model_entry(state, has_run=True)


class Client:
    """Requests that end when they are told to."""

    def __init__(self, num_routers: int) -> None:
        self.admission = Admission(num_routers)
        self.num_running = self.most_running = 0
        self.ends = asyncio.Event()
        self.refused_s: list[int | None] = []

    async def ask(self, entry: ModelEntry, scope: Scope | None = None) -> bool:
        """Returns whether the request was let through."""
        try:
            async with self.admission.admit(entry, scope):
                self.num_running += 1
                self.most_running = max(self.most_running, self.num_running)
                await self.ends.wait()
                await asyncio.sleep(0.001)
                self.num_running -= 1
        except OverloadedError as error:
            self.refused_s.append(error.retry_after_s)
            return False
        return True


def test_more_than_a_fair_queue_holds_comes_to_it() -> None:
    """For there a request may take the place of another key's."""
    fair = entry_of(2, limits={**LIMITS, "queue": "fair", "max_request_s": 5})
    assert held_by_model([fair], 10) == {"m": 2 * 2 * (2 + 4)}
    assert capacity([fair]) == 24 + RESERVE


@pytest.mark.parametrize(
    ("num_replicas", "num_routers", "limit"),
    [(0, 1, 6), (1, 1, 6), (1, 2, 3), (1, 9, 2), (3, 2, 9)],
)
async def test_routers_share_what_the_replicas_hold(
    num_replicas: int, num_routers: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOMENT_S", WAIT_S)
    entry = entry_of(num_replicas, limits=LIMITS, adapters=["lora"])
    client = Client(num_routers)
    requests = [*[entry] * 20, *adapter_entries(entry) * 20]
    tasks = [asyncio.create_task(client.ask(request)) for request in requests]
    await asyncio.sleep(0.01)
    assert client.num_running == limit
    client.ends.set()
    assert sum(await asyncio.gather(*tasks)) == limit + FIRST_LENGTH
    assert client.most_running == limit
    assert client.admission.num_requests == 0


async def test_what_has_no_place_in_a_moment_is_refused_at_once() -> None:
    entry = entry_of(1, limits=LIMITS)
    client = Client(1)
    client.admission.note_place(entry, b"1000000")  # half a second is too short for one to end
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    tasks = [asyncio.create_task(client.ask(entry)) for _ in range(10)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError) as caught:
        async with client.admission.admit(entry):
            raise AssertionError
    assert loop.time() - began_s < WAIT_S
    assert client.admission.num_requests == 6
    assert caught.value.retry_after_s == 5
    client.ends.set()
    assert sorted(await asyncio.gather(*tasks)) == [False] * 4 + [True] * 6
    assert client.admission.num_requests == 0


async def test_those_that_wait_have_a_place_or_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.1)
    entry = entry_of(1, limits=LIMITS)
    client = Client(1)
    client.admission.note_place(entry, b"100000")  # five places in half a second
    tasks = [asyncio.create_task(client.ask(entry)) for _ in range(20)]
    await asyncio.sleep(0.01)
    assert client.admission.num_requests == 6 + 5
    await asyncio.sleep(0.2)
    assert client.admission.num_requests == 6
    client.ends.set()
    assert sum(await asyncio.gather(*tasks)) == 6


async def test_a_refused_client_is_told_when_a_place_comes() -> None:
    entry = entry_of(2, limits=LIMITS)
    client = Client(3)
    client.admission.note_place(entry, b"soon")
    client.admission.note_place(entry, b"4000000")  # two replicas: a place each 2 s
    tasks = [asyncio.create_task(client.ask(entry)) for _ in range(4)]
    await asyncio.sleep(0.01)
    told = []
    for _ in range(4):
        with pytest.raises(OverloadedError) as caught:
            async with client.admission.admit(entry):
                raise AssertionError
        told.append(caught.value.retry_after_s)
    assert told == [6, 12, 18, 24]  # each third place, as there are three routers
    client.ends.set()
    await asyncio.gather(*tasks)


async def test_a_request_waits_no_longer_than_it_may() -> None:
    entry = entry_of(1, limits=LIMITS)
    client = Client(1)
    tasks = [asyncio.create_task(client.ask(entry)) for _ in range(6)]
    await asyncio.sleep(0.01)
    began_s = asyncio.get_running_loop().time()
    for value, error in ((b"50", OverloadedError), (b"soon", RequestError)):
        with pytest.raises(error):
            async with client.admission.admit(
                entry, {"headers": [(b"x-request-timeout-ms", value)]}
            ):
                raise AssertionError
    assert 0.04 < asyncio.get_running_loop().time() - began_s < WAIT_S
    client.ends.set()
    assert all(await asyncio.gather(*tasks))
    assert client.admission.num_requests == 0


async def test_clients_that_leave_give_their_places_up() -> None:
    """Also one whose place comes at the moment it leaves."""
    entry = entry_of(1, limits=LIMITS)
    client = Client(1)
    tasks = [asyncio.create_task(client.ask(entry)) for _ in range(12)]
    await asyncio.sleep(0.01)
    client.ends.set()
    for step in range(12):
        tasks[11 - step].cancel()
        await asyncio.sleep(0.0003 * step)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert client.admission.num_requests == 0
    assert await client.ask(entry)


@pytest.mark.parametrize("card", [{}, {"limits": {"max_ongoing_requests": 2}}])
async def test_a_model_that_does_not_say_what_it_holds_is_not_bounded(card: Any) -> None:
    client = Client(1)
    tasks = [asyncio.create_task(client.ask(entry_of(1, **card))) for _ in range(100)]
    await asyncio.sleep(0.01)
    assert client.num_running == 100
    client.ends.set()
    await asyncio.gather(*tasks)


def test_the_service_holds_what_its_models_hold() -> None:
    first, second = entry_of(2, limits=LIMITS, adapters=["lora"]), entry_of(0, limits=LIMITS)
    assert capacity([first, *adapter_entries(first), second]) == 12 + 6 + RESERVE
    assert capacity([first, entry_of(1)]) is None


@pytest.mark.parametrize(
    ("num_replicas", "limits", "held"),
    [
        (1, {**LIMITS, "max_request_s": 600}, {"m": 6}),
        (3, {**LIMITS, "max_request_s": 600}, {"m": 18}),
        (0, {**LIMITS, "max_request_s": 600}, {}),  # the router waits for a replica
        (1, {**LIMITS, "max_request_s": 601}, {}),  # the router's own limit is shorter
        (1, LIMITS, {}),
        (1, {"max_request_s": 1}, {}),
    ],
)
def test_what_goes_straight_to_a_model_is_bounded(
    num_replicas: int, limits: dict[str, Any], held: dict[str, int]
) -> None:
    entry = entry_of(num_replicas, limits=limits, adapters=["lora"])
    assert held_by_model([entry, *adapter_entries(entry)], 600) == held


def key_scope(name: str, priority: int) -> dict[str, Any]:
    return {"headers": [], SCOPE_KEY: Identity(name, priority=priority)}


async def test_a_higher_priority_takes_the_place_of_a_lower_one_in_a_full_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOMENT_S", WAIT_S)
    entry = entry_of(1, limits=LIMITS)
    client = Client(1)
    running = [asyncio.create_task(client.ask(entry)) for _ in range(6)]
    await asyncio.sleep(0.01)
    low = [asyncio.create_task(client.ask(entry, key_scope("low", 0))) for _ in range(FIRST_LENGTH)]
    await asyncio.sleep(0.01)
    assert not await client.ask(entry, key_scope("low", 0))
    high = [asyncio.create_task(client.ask(entry, key_scope("high", 1))) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert [task.done() for task in low] == [False] * (FIRST_LENGTH - 3) + [True] * 3
    assert not any(task.done() for task in high)
    assert client.admission.num_requests == 6 + FIRST_LENGTH
    client.ends.set()
    assert all(await asyncio.gather(*running, *high))
    assert sum(await asyncio.gather(*low)) == FIRST_LENGTH - 3
    assert client.admission.num_requests == 0
    assert client.refused_s == [1] * 4


async def test_places_are_kept_from_no_higher_priority() -> None:
    entry = entry_of(1, limits=LIMITS)
    client = Client(1)
    client.admission.note_place(entry, b"900000")
    tasks = [asyncio.create_task(client.ask(entry, key_scope("low", 0))) for _ in range(6)]
    await asyncio.sleep(0.01)
    for _ in range(20):
        assert not await client.ask(entry, key_scope("low", 0))
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert not await client.ask(entry, key_scope("other", 0))  # it is kept
    high = asyncio.create_task(client.ask(entry, key_scope("high", 1)))
    await asyncio.sleep(0.01)
    assert client.admission.num_requests == 6
    client.ends.set()
    assert await high
    await asyncio.gather(*tasks, return_exceptions=True)
