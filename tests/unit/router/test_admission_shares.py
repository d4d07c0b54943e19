"""Many clients at a full model: who gets a place, and how soon the others are refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.virtual_time import run
from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.cluster.state import ApplicationState
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.asgi import Scope
from truthgpt_serve.queue_full import CLIENT_HEADER
from truthgpt_serve.router.admission import Admission
from truthgpt_serve.router.model_entry import ModelEntry, model_entry

PLACES, QUEUED, TOOK_S = 4, 8, 0.4
NUM_EACH = 18
"""Clients of each kind: three times what the model holds, together."""
SECONDS = 60.0
AGAIN_S = 0.02


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        answered: Answers by kind of client.
        refused_s: Seconds that each refusal took.
        told: Requests of clients that had waited as they were told.
        wrong: How many of them were refused.
    """

    answered: Counter[str] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)
    told: int = 0
    wrong: int = 0


class Model:
    """A model behind a router."""

    def __init__(self) -> None:
        limits = {"max_ongoing_requests": PLACES, "max_queued_requests": QUEUED}
        state = ApplicationState("m", "/models/m", "RUNNING", "", 1, {"limits": limits}, 0.0)
        self.entry: ModelEntry = model_entry(state, has_run=True)
        self.admission = Admission(1)
        self.places = asyncio.Semaphore(PLACES)

    async def answer(self, scope: Scope) -> None:
        async with self.admission.admit(self.entry, scope), self.places:
            await asyncio.sleep(TOOK_S)
            place_us = b"%d" % (TOOK_S / PLACES * 1e6)
            self.admission.note_place(self.entry, place_us)


async def ask(model: Model, seen: Seen, kind: str, scope: Scope) -> None:
    """Asks again and again; a patient client waits as it is told."""
    loop = asyncio.get_running_loop()
    has_waited = False
    while (began_s := loop.time()) < SECONDS:
        seen.told += has_waited
        try:
            await model.answer(scope)
            seen.answered[kind] += 1
            has_waited = False
        except OverloadedError as error:
            seen.refused_s.append(loop.time() - began_s)
            seen.wrong += has_waited
            has_waited = kind == "patient"
            await asyncio.sleep(float(error.retry_after_s or 0) if has_waited else AGAIN_S)


async def flood(has_keys: bool, knows_connections: bool) -> Seen:
    model, seen = Model(), Seen()
    tasks = []
    for number in range(NUM_EACH):
        for kind in ("patient", "loud"):
            scope: dict[str, Any] = {"headers": []}
            if knows_connections:
                port = 5000 + 2 * number + (kind == "loud")
                scope["headers"] = [(CLIENT_HEADER.encode(), b"192.0.2.1:%d" % port)]
            if has_keys:
                scope[SCOPE_KEY] = Identity(kind)
            tasks.append(ask(model, seen, kind, scope))
    await asyncio.gather(*tasks)
    assert model.admission.num_requests == 0
    return seen


@pytest.mark.parametrize(
    ("has_keys", "knows_connections", "share"),
    [(False, True, 0.9), (True, True, 0.9), (True, False, 0.5)],
)
def test_patient_clients_get_their_share(
    has_keys: bool, knows_connections: bool, share: float
) -> None:
    """Without connections a key's own requests take each other's promises."""
    seen = run(flood(has_keys, knows_connections))
    assert seen.answered.total() >= 0.97 * SECONDS / TOOK_S * PLACES
    assert seen.answered["patient"] >= share * seen.answered["loud"]
    assert sorted(seen.refused_s)[int(0.99 * len(seen.refused_s))] <= 0.1
    assert not knows_connections or seen.wrong <= 0.1 * seen.told
