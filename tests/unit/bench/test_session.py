from __future__ import annotations

import asyncio
from itertools import repeat

import pytest

from tests.support.bench_server import BenchServer, serve_asgi
from truthgpt_serve.bench.compare import compare
from truthgpt_serve.bench.load import Load
from truthgpt_serve.bench.outcome import Request
from truthgpt_serve.bench.result import extras
from truthgpt_serve.bench.session import Plan, Session
from truthgpt_serve.bench.target import Target


async def test_two_addresses_are_measured_in_turns_and_compared() -> None:
    order: list[int] = []
    ours, theirs = BenchServer(), BenchServer()
    plan = Plan(
        endpoint="chat",
        loads=[Load(concurrency=2, num_requests=4)],
        make_requests=lambda lengths_seed, text_seed: repeat(Request(text_seed, 1, 3)),
        num_pairs=3,
    )
    with serve_asgi(ours) as first, serve_asgi(theirs) as second:
        session = Session(
            plan,
            [Target(first, "words"), Target(second, "words")],
            asyncio.Event(),
            on_begin=lambda side, load, pair: order.append(side),
        )
        results = await session.run()
    assert order == [0, 1, 1, 0, 0, 1]
    sent = [{body["messages"][0]["content"] for body in server.bodies} for server in (ours, theirs)]
    assert not sent[0] & sent[1], "the second side must not find the first one's prompts cached"
    ratios = {ratio.figure: ratio for ratio in compare(results)}
    means = {
        (extras(result)["side"], extras(result)["pair"]): result["mean_e2el_ms"]
        for result in results
    }
    wanted = sorted(means[0, pair] / means[1, pair] for pair in range(3))
    found = ratios["mean_e2el_ms"]
    assert [found.low, found.ratio, found.high] == pytest.approx(wanted)
    assert {result["completed"] for result in results} == {4}
    assert {extras(result)["load"] for result in results} == {"2 at once"}
