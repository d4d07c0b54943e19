from __future__ import annotations

from typing import Any

import pytest

from tests.support.bench_server import KEY, BenchServer, serve_asgi
from truthgpt_serve.bench.client import Client
from truthgpt_serve.bench.outcome import Outcome, Request
from truthgpt_serve.bench.target import Target

REQUEST = Request("one two", 2, 3)


async def send(model: str, endpoint: str = "chat", **options: Any) -> tuple[Outcome, BenchServer]:
    server = BenchServer()
    with serve_asgi(server) as url:
        target = Target(url, model, KEY)
        async with Client(target, endpoint, **({"timeout_s": 20} | options)) as client:
            return await client.send(REQUEST), server


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_a_streamed_answer_is_measured(endpoint: str) -> None:
    outcome, server = await send("words", endpoint, fields={"temperature": 0}, keep_text=True)
    assert outcome.ok
    assert (outcome.text, outcome.output_tokens, outcome.input_tokens) == ("w w w ", 3, 5)
    assert 0 < outcome.ttft_s <= outcome.latency_s
    assert outcome.latency_s == pytest.approx(outcome.ttft_s + sum(outcome.itls_s))
    body = server.bodies[0]
    limit = "max_completion_tokens" if endpoint == "chat" else "max_tokens"
    assert (body[limit], body["temperature"]) == (3, 0)
    assert body["stream_options"] == {"include_usage": True}
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(("endpoint", "tokens"), [("embeddings", 7), ("images", 2)])
async def test_an_answer_without_a_stream_is_measured(endpoint: str, tokens: int) -> None:
    outcome, server = await send("words", endpoint)
    assert outcome.ok
    assert outcome.latency_s > 0
    assert outcome.input_tokens == tokens
    assert "stream" not in server.bodies[0]


@pytest.mark.parametrize(
    ("model", "kind"),
    [("busy", "http 429"), ("broken", "broken stream"), ("erring", "error event")],
)
async def test_each_failure_is_of_its_kind(model: str, kind: str) -> None:
    outcome, _ = await send(model)
    assert outcome.error == kind
    assert KEY not in outcome.detail, "a server that repeats the key must not get it printed"


async def test_a_silent_server_is_a_timeout_and_an_absent_one_no_connection() -> None:
    outcome, _ = await send("silent", timeout_s=0.3)
    assert outcome.error == "timeout"
    async with Client(Target("http://127.0.0.1:9", "x"), "chat", timeout_s=5) as client:
        assert (await client.send(REQUEST)).error == "no connection"
