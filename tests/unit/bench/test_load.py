from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import repeat

import pytest

from tests.support.bench_server import BenchServer, serve_asgi
from truthgpt_serve.bench import load as load_module
from truthgpt_serve.bench.client import Client
from truthgpt_serve.bench.load import Driver, Load, Run
from truthgpt_serve.bench.metrics import Recorder
from truthgpt_serve.bench.outcome import Request
from truthgpt_serve.bench.target import Target

REQUEST = Request("one two", 2, 3)


async def drive(
    server: BenchServer, load: Load, times_s: Sequence[float] | None = None, model: str = "words"
) -> tuple[Recorder, Run]:
    recorder = Recorder()
    with serve_asgi(server) as url:
        async with Client(Target(url, model), "chat", timeout_s=20) as client:
            driver = Driver(client, recorder, load, asyncio.Event())
            run = await driver.run(repeat(REQUEST), times_s)
    return recorder, run


async def test_a_closed_loop_keeps_its_concurrency() -> None:
    server = BenchServer(delay_s=0.01)
    recorder, run = await drive(server, Load(concurrency=4, num_requests=13))
    assert (recorder.completed, server.most_at_once) == (13, 4)
    assert run.duration_s > 0.01 * 3 * 13 / 4, "each answer takes three delays"
    assert run.num_interrupted == 0


async def test_an_open_loop_sends_at_the_given_times() -> None:
    server = BenchServer(delay_s=0.05)
    recorder, run = await drive(server, Load(num_requests=6), [0, 0, 0, 0.3, 0.3, 0.6])
    assert recorder.completed == 6
    assert server.most_at_once >= 2, "requests do not wait for each other"
    assert run.duration_s > 0.6
    assert run.lag.count == 6


async def test_a_bound_makes_an_open_loop_queue_in_the_client() -> None:
    server = BenchServer(delay_s=0.02)
    recorder, _ = await drive(server, Load(concurrency=1, num_requests=4), [0, 0, 0, 0])
    assert (recorder.completed, server.most_at_once) == (4, 1)
    assert recorder.series["queue"].ordered()[-1] > 0.06


async def test_a_duration_ends_both_loops() -> None:
    recorder, run = await drive(BenchServer(delay_s=0.01), Load(concurrency=2, duration_s=0.3))
    assert recorder.completed >= 2
    assert 0.3 <= run.duration_s < 10
    recorder, _ = await drive(BenchServer(), Load(rate=10, duration_s=0.35), [0, 0.1, 0.2, 0.3, 9])
    assert recorder.completed == 4


async def test_requests_beyond_the_bound_are_failures_not_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_module, "MAX_OUTSTANDING", 2)
    recorder, _ = await drive(BenchServer(delay_s=0.2), Load(num_requests=5), [0] * 5)
    assert (recorder.completed, recorder.errors["not sent"]) == (2, 3)


async def test_a_stop_gives_up_what_runs_and_keeps_what_was_done() -> None:
    stop, recorder = asyncio.Event(), Recorder()
    with serve_asgi(BenchServer(delay_s=0.01)) as url:
        async with Client(Target(url, "words"), "chat", timeout_s=20) as client:

            def after_five() -> None:
                if recorder.completed == 5:
                    stop.set()

            driver = Driver(client, recorder, Load(concurrency=3), stop, after_five)
            run = await driver.run(repeat(REQUEST))
    assert 5 <= recorder.completed <= 8
    assert 1 <= run.num_interrupted <= 3
    assert recorder.failed == 0
