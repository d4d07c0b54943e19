"""One API key leaves places of a model to the others at a router."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.virtual_time import run
from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.cluster.state import ApplicationState
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.asgi import Scope
from truthgpt_serve.router.admission import Admission
from truthgpt_serve.router.model_entry import ModelEntry, model_entry

ONGOING, QUEUED = 2, 4
HELD = ONGOING + QUEUED
KEYED: dict[str, Any] = {"queue": "fair"}


def entry_of(**more: Any) -> ModelEntry:
    limits = {"max_ongoing_requests": ONGOING, "max_queued_requests": QUEUED, **more}
    state = ApplicationState("m", "/models/m", "RUNNING", "", 1, {"limits": limits}, 0.0)
    return model_entry(state, has_run=True)


def of_key(name: str) -> Scope:
    return {"headers": [], SCOPE_KEY: Identity(name)}


class Router:
    """A router whose requests run until they are let go."""

    def __init__(self, num_routers: int = 1, **limits: Any) -> None:
        self.entry = entry_of(**limits)
        self.admission = Admission(num_routers)
        self.ends = asyncio.Event()
        self.running: dict[str, int] = {}
        self.messages: list[str] = []

    async def ask(self, key: str) -> bool:
        try:
            async with self.admission.admit(self.entry, of_key(key)):
                self.running[key] = self.running.get(key, 0) + 1
                await self.ends.wait()
        except OverloadedError as error:
            self.messages.append(error.message)
            return False
        return True

    async def all_ask(self, number: int, *keys: str) -> list[asyncio.Task[bool]]:
        tasks = [asyncio.create_task(self.ask(key)) for key in keys for _ in range(number)]
        await asyncio.sleep(0.5)  # those that wait a moment have given up
        return tasks


def test_each_key_may_have_what_the_others_leave() -> None:
    async def main() -> None:
        router = Router(**KEYED)
        await router.all_ask(50, "bad")
        assert router.running == {"bad": HELD}
        assert f"is full: {HELD} requests run or wait" in router.messages[0]
        await router.all_ask(50, "good")
        assert router.running == {"bad": HELD, "good": HELD // 2}
        await router.all_ask(1, "third")
        assert router.running["third"] == 1
        router.ends.set()

    run(main())


def test_without_keys_a_client_may_fill_the_queue() -> None:
    async def main() -> None:
        router = Router()
        await router.all_ask(50, "one")
        assert router.running == {"one": HELD}
        router.ends.set()

    run(main())


@pytest.mark.parametrize("num_routers", [2, 8])
def test_a_key_alone_can_use_all_replicas_by_one_of_many_routers(num_routers: int) -> None:
    async def main() -> None:
        router = Router(num_routers, **KEYED)
        await router.all_ask(50, "one")
        assert router.running["one"] >= ONGOING
        router.ends.set()

    run(main())


def test_a_request_that_waits_begins_only_where_its_key_has_a_place() -> None:
    """The one of the other key, which came last, does not wait behind it."""

    async def main() -> None:
        router = Router(**KEYED)
        [first, *others] = await router.all_ask(HELD, "bad")
        await router.all_ask(HELD // 2, "good")
        waiting = [asyncio.create_task(router.ask(key)) for key in ("bad", "good")]
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        assert router.running == {"bad": HELD, "good": HELD // 2 + 1}
        assert not any(one.done() for one in waiting)
        assert not any(other.done() for other in others)
        router.ends.set()

    run(main())
