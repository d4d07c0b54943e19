"""How the family `remote` follows its server: down, back again, and never itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from deployments.remote.deployment import RemoteModel
from tests.support.remote_servers import (
    OtherServer,
    relay_to,
    relayed,
    remote_cfg,
    serve_at,
)
from truthgpt_serve.cluster.ports import free_port

QUICK: dict[str, Any] = {"health_period_s": 0.05, "down_after_s": 0.2, "model": "there"}
BODY = {"model": "far", "messages": []}


def ask(http: httpx.Client, **headers: str) -> httpx.Response:
    return http.post("/v1/chat/completions", json=BODY, headers=headers)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(http: httpx.Client) -> str:
    found: str = http.get("/v1/models").json()["data"][0]["remote"]["status"]
    return found


def warnings(caplog: pytest.LogCaptureFixture, text: str) -> int:
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    return sum(text in line for line in lines)


def test_a_server_that_comes_later_is_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port = free_port()
    with relay_to(f"http://127.0.0.1:{port}/v1", **QUICK) as http:
        started = [record for record in caplog.records if "is relayed to" in record.message]
        assert [record.levelname for record in started] == ["WARNING"]
        wait_until(lambda: status(http) == "down")
        answer = ask(http)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("service_unavailable", "model_unavailable")
        assert error["message"].startswith("The remote server of the model 'far' is down: cannot ")
        assert http.post("/v1/infer", json={"model": "far", "inputs": {}}).status_code == 400
        infer = http.post("/v1/infer", json={"model": "far", "inputs": {"text": "x"}})
        assert infer.status_code == 503
        health = http.get("/health")
        assert (health.status_code, health.headers["retry-after"]) == (503, "1")
        assert http.get("/v1/models/far").json()["remote"]["reason"].startswith("cannot be reached")
        with serve_at(OtherServer(), port):
            wait_until(lambda: http.get("/health").status_code == 200)
            assert ask(http).json()["model"] == "far"
            assert http.get("/health").json() == {"status": "ok", "remote": {"status": "up"}}
        wait_until(lambda: warnings(caplog, " is down: ") == 2)
        assert status(http) == "down"
    assert warnings(caplog, " answers again") == 1


@pytest.mark.parametrize(("answered", "expected"), [(401, "up"), (404, "up"), (503, "down")])
def test_what_counts_as_an_answer(answered: int, expected: str) -> None:
    with relayed(**QUICK) as (http, other):
        other.health_status = answered
        wait_until(lambda: status(http) == expected)
        num_requests = len(other.requests)
        assert ask(http).status_code == (200 if expected == "up" else 503)
        assert len(other.requests) == num_requests + (expected == "up")


def test_without_questions_every_request_is_tried() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with relay_to(url, **{**QUICK, "health_path": None, "down_after_s": 0.01}) as http:
        for _ in range(3):
            assert ask(http).status_code == 502
            time.sleep(0.02)
        assert status(http) == "failing"


async def test_a_replica_stays_while_its_server_is_down() -> None:
    model = RemoteModel()
    model.set_name("far")
    await model.load(remote_cfg(f"http://127.0.0.1:{free_port()}/v1", down_after_s=0.001))
    await model.create_asgi_app()
    await model.check_health()
    await model.close()
    await model.close()
