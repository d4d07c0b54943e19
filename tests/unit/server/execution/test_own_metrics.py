"""The metrics of a class, whatever its method does."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.servers import serve_asgi
from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.server import create_app
from truthgpt_serve.server.execution.own_metrics import OwnMetrics

GOOD = '# TYPE x counter\nx_total 1\nx_total{a="b c"} 1.5e+3 1700\n\nx NaN\nx +Inf\n'


def fail() -> str:
    raise LookupError("why")


async def later() -> str:
    return "x 1\n"


@pytest.mark.parametrize(
    ("function", "page", "told"),
    [
        (lambda: GOOD, GOOD, ""),
        (lambda: "x 1", "x 1\n", ""),
        (later, "x 1\n", ""),
        (lambda: None, "", ""),
        (lambda: 5, "", "Model.metrics returned int; it returns a text"),
        (lambda: b"x 1", "", "Model.metrics returned bytes; it returns a text"),
        (fail, "", "Model.metrics failed: LookupError('why')"),
        (sys.exit, "", "Model.metrics failed: RuntimeError('the model raised SystemExit')"),
        (lambda: "x 1\nno sample {{{\ny 2\n", "x 1\ny 2\n", "such as 'no sample {{{'"),
        (lambda: 'x{a="\ud800"} 1\n', 'x{a="?"} 1\n', ""),
        (lambda: "x five", "", "such as 'x five'"),
    ],
)
async def test_a_page(
    function: Callable[[], Any], page: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = OwnMetrics(function, "Model.metrics")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await metrics.read() == page
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(told)  # once, not at each scrape
    assert told in "".join(messages)


async def test_a_call_that_does_not_return_is_not_repeated() -> None:
    goes_on, calls = threading.Event(), []

    def wait() -> str:
        calls.append(1)
        goes_on.wait(20)
        return "x 1\n"

    metrics = OwnMetrics(wait, "Model.metrics", limit_s=0.2)
    assert list(await asyncio.gather(metrics.read(), metrics.read())) == ["", ""]
    assert await metrics.read() == ""
    assert len(calls) == 1
    goes_on.set()
    for _ in range(100):
        if (page := await metrics.read()) == "x 1\n":
            break
    assert page == "x 1\n"


class Slow:
    """Its metrics take long; its answers do not."""

    def load(self, cfg: dict[str, Any]) -> None:
        self.has_begun = threading.Event()

    def infer(self, inputs: dict[str, Any]) -> Any:
        return self.has_begun.wait(20)

    def metrics(self) -> str:
        self.has_begun.set()
        time.sleep(1.5)
        return "slow 1\n"


async def test_requests_do_not_wait_for_metrics() -> None:
    cfg = load_model_config({"task": "custom", "model": {"family": "slow"}}).to_cfg()
    spec = FamilySpec("slow", f"{__name__}:Slow", ("custom",))
    app = create_app(spec, cfg, name="slow")
    with serve_asgi(app, lifespan="on") as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            scrape = asyncio.create_task(client.get("/metrics"))
            body = {"model": "slow", "inputs": {}}
            answer = await client.post("/v1/infer", json=body)
            assert answer.json() == {"model": "slow", "outputs": True}
            assert not scrape.done()
            assert (await scrape).text == "slow 1\n"
