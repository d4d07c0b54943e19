"""What a replica tells of its work: requests, batches, images, and what a class says itself."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from truthgpt_serve.autoscaling.policy import PREFIX
from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.replica.load import ReplicaLoad
from truthgpt_serve.replica.work import MAX_QUEUE_S, WorkStats
from truthgpt_serve.server import ModelInstance
from truthgpt_serve.server.work import WorkMeter


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Single:
    def load(self, cfg: dict[str, Any]) -> None:
        """Has nothing to load."""

    def infer(self, inputs: dict[str, Any]) -> Any:
        return inputs


class Batches(Single):
    go_on = threading.Event()
    max_batch_size = 2

    def infer_batch(self, batch: list[Any]) -> list[Any]:
        assert self.go_on.wait(30)
        return batch


class Tells(Single):
    told: Any = None

    def queued_work(self) -> Any:
        return self.told


def make(model: Any, clock: Clock, num_places: int = 1) -> tuple[ReplicaLoad, ModelInstance]:
    spec = FamilySpec(name="work-test", class_path="tests:x", model_class=model)
    instance = ModelInstance(spec, load_model_config({}), name="m")
    return ReplicaLoad(num_places, clock), instance


def read(stats: WorkStats) -> dict[str, float]:
    return {name.removeprefix(PREFIX): value for name, value in stats.read().items()}


class Requests:
    """Requests that wait in front of a model with some places, until they are told to end."""

    def __init__(self, load: ReplicaLoad, num_places: int) -> None:
        self.end = asyncio.Event()
        place = asyncio.Semaphore(num_places)

        async def model(scope: Any, receive: Any, send: Any) -> None:
            await self.end.wait()

        working = load.working(model)

        async def queue(scope: Any, receive: Any, send: Any) -> None:
            async with place:
                await working(scope, receive, send)

        self._app = load.arriving(queue)
        self._tasks: list[asyncio.Future[Any]] = []

    async def come(self, number: int, method: str = "POST") -> None:
        scope = {"type": "http", "method": method, "path": "/"}
        for _ in range(number):
            self._tasks.append(asyncio.ensure_future(self._app(scope, _none, _none)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def finish(self) -> None:
        self.end.set()
        await asyncio.gather(*self._tasks)
        self.end.clear()
        self._tasks.clear()


async def _none(*_: Any) -> Any:
    return None


def test_requests_by_their_number_and_the_mean_time() -> None:
    async def scenario() -> None:
        clock = Clock()
        load, instance = make(Single, clock, 2)
        stats, requests = WorkStats(load, instance, clock), Requests(load, 2)
        await requests.come(1)
        clock.now_s += 4
        # One of two places, and no request has ended that would say how long they take.
        assert read(stats) == {
            "queue_s": 0,
            "waiting": 0,
            "busy": 0.5,
            "places": 2,
            "service_s": 0,
        }
        await requests.finish()
        await requests.come(5)
        clock.now_s += 2
        told = read(stats)
        assert (told["waiting"], told["service_s"], told["busy"]) == (3, 4, 1)
        assert told["queue_s"] == 3 * 4 / 2
        await requests.finish()
        clock.now_s += 2
        assert read(stats)["busy"] == 0

    asyncio.run(scenario())


def test_reading_cards_is_no_work() -> None:
    async def scenario() -> None:
        clock = Clock()
        load, _ = make(Single, clock)
        requests = Requests(load, 1)
        await requests.come(1, "GET")
        clock.now_s += 50
        await requests.finish()
        assert load.service_s == 0

    asyncio.run(scenario())


def test_work_that_is_known_counts_with_that_of_requests_nobody_has_read() -> None:
    async def scenario() -> None:
        clock = Clock()
        load, instance = make(Single, clock)
        instance.work = WorkMeter(clock)
        stats, requests = WorkStats(load, instance, clock), Requests(load, 1)
        with instance.work.taking(100):
            clock.now_s += 10
        assert instance.work.speed == 10
        await requests.come(1)
        with instance.work.taking(50), instance.work.taking(100):
            await requests.come(2)
            told = read(stats)
            assert told["waiting"] == 2 + 1
            assert told["queue_s"] == pytest.approx((50 + 2 * instance.work.mean) / 10)
            assert told["service_s"] == pytest.approx(instance.work.mean / 10)
        await requests.finish()

    asyncio.run(scenario())


def test_batches_that_are_full_are_waited_for() -> None:
    async def scenario() -> None:
        clock = Clock()
        Batches.go_on.clear()
        load, instance = make(Batches, clock)
        await instance.start()
        stats = WorkStats(load, instance, clock)
        try:
            calls = [asyncio.create_task(instance.infer({"value": 0}))]
            await asyncio.sleep(0.2)
            Batches.go_on.set()
            await asyncio.gather(*calls)
            Batches.go_on.clear()
            calls = [asyncio.create_task(instance.infer({"value": index})) for index in range(6)]
            async with asyncio.timeout(30):
                while instance.batcher is None or instance.batcher.num_waiting not in (4, 5):
                    await asyncio.sleep(0.01)
            clock.now_s += 1
            told = read(stats)
            assert told["waiting"] == instance.batcher.num_waiting
            assert told["service_s"] > 0.1
            assert told["queue_s"] == 2 * told["service_s"]
            assert 0 < told["busy"] <= 1
            Batches.go_on.set()
            await asyncio.gather(*calls)
        finally:
            Batches.go_on.set()
            await instance.close()

    asyncio.run(scenario())


def test_a_class_says_itself_and_what_makes_no_sense_counts_as_nothing() -> None:
    async def scenario() -> None:
        clock = Clock()
        load, instance = make(Tells, clock, 4)
        await instance.start()
        stats = WorkStats(load, instance, clock)
        try:
            Tells.told = {"queue_s": 7.5, "waiting": 3, "busy": 0.8}
            clock.now_s += 1
            told = read(stats)
            assert (told["queue_s"], told["waiting"], told["busy"]) == (7.5, 3, 0.8)
            Tells.told = {"queue_s": float("inf"), "waiting": -1, "busy": "much"}
            told = read(stats)
            assert (told["queue_s"], told["waiting"], told["busy"]) == (0, 0, 0)
            Tells.told = {"queue_s": 1e9, "busy": 40}
            told = read(stats)
            assert (told["queue_s"], told["busy"]) == (MAX_QUEUE_S, 1)
        finally:
            await instance.close()

    asyncio.run(scenario())


class Raises(Single):
    def queued_work(self) -> Any:
        raise LookupError("why")


class Exits(Single):
    def queued_work(self) -> Any:
        sys.exit(3)


class TellsNothing(Single):
    def queued_work(self) -> Any:
        """Says nothing."""


@pytest.mark.parametrize("model", [Raises, Exits, TellsNothing])
async def test_a_class_that_cannot_say_is_scaled_by_its_requests(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    load, instance = make(model, clock)
    instance.model = model()
    stats = WorkStats(load, instance, clock)
    load_like, like = make(Single, clock)
    like.model = Single()
    for _ in range(2):
        clock.now_s += 2
        assert read(stats) == read(WorkStats(load_like, like, clock))
    assert sum("queued_work" in record.getMessage() for record in caplog.records) == 1
