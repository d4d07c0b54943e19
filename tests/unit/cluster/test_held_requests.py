"""A request whose application has no running replica is not held longer than it may be."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest

from truthgpt_serve.cluster import held_requests
from truthgpt_serve.cluster.held_requests import HeldRequests, Known, Replicas
from truthgpt_serve.cluster.proxy_answers import ROUTER_HEADER
from truthgpt_serve.cluster.state import ApplicationState, ServeState

TURN = "x-request-timeout-ms"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_requests, "AGAIN_S", 0.05)
    monkeypatch.setattr(held_requests, "MAX_AGE_S", 0.02)


class Cluster:
    """Says which models have replicas, as Serve's controller does."""

    def __init__(self, *, hold_s: float = 0.4, **replicas: int) -> None:
        self.replicas = replicas
        self.hold_s = hold_s
        self.num_asked = 0

    def ask(self) -> Known:
        self.num_asked += 1
        applications = {
            name: ApplicationState(name, f"/models/{name}", "RUNNING", "", num, None, 0.0)
            for name, num in self.replicas.items()
        }
        applications["router"] = ApplicationState("router", "/", "RUNNING", "", 1, None, 0.0)
        return Known(ServeState(applications), self.hold_s)


class Proxy:
    """Ray's proxy: holds a request until a replica answers or its client has gone."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.has_left = asyncio.Event()
        self.is_late = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.has_left.set()

        left = asyncio.create_task(leave())
        answers = asyncio.create_task(self.answers.wait())
        await asyncio.wait((left, answers), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        answers.cancel()
        if self.is_late or not self.has_left.is_set():
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})


async def ask(cluster: Cluster, proxy: Any, path: str, **headers: str) -> httpx.Response:
    app = HeldRequests(proxy, ["*"], Replicas(cluster.ask))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=20) as client:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.post(path, json={}, headers={"origin": "http://page", **sent})


async def test_a_model_that_does_not_come_is_given_up() -> None:
    proxy = Proxy()
    began_s = time.monotonic()
    answer = await ask(Cluster(m=0), proxy, "/models/m/v1/completions")
    assert time.monotonic() - began_s >= 0.4
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.headers["access-control-allow-origin"] == "*"
    error = answer.json()["error"]
    assert error["message"] == (
        "The model 'm' had no running replica for 0.4 s: `truthgpt why m` says why"
    )
    assert error["code"] == "model_unavailable"
    assert proxy.has_left.is_set()


async def test_the_form_is_that_of_the_api() -> None:
    answer = await ask(Cluster(m=0), Proxy(), "/models/m/v1/messages")
    assert answer.json()["type"] == "error"


async def test_a_request_that_a_replica_works_on_is_left_alone() -> None:
    proxy, cluster = Proxy(), Cluster(hold_s=0.1, m=1)
    asked = asyncio.create_task(ask(cluster, proxy, "/models/m/x", **{TURN: "50"}))
    await asyncio.sleep(0.5)
    proxy.answers.set()
    assert (await asked).text == "done"
    assert cluster.num_asked > 1


async def test_only_the_time_without_a_replica_counts() -> None:
    proxy, cluster = Proxy(), Cluster(hold_s=0.6, m=0)
    asked = asyncio.create_task(ask(cluster, proxy, "/models/m/x"))
    for num in (1, 0):
        await asyncio.sleep(0.4)
        cluster.replicas["m"] = num
    await asyncio.sleep(0.2)
    proxy.answers.set()
    assert (await asked).status_code == 200


@pytest.mark.parametrize("by", [{}, {ROUTER_HEADER.decode(): "/models/m"}])
async def test_the_client_s_own_limit_is_kept(by: dict[str, str]) -> None:
    began_s = time.monotonic()
    cluster = Cluster(hold_s=60, m=0)
    answer = await ask(cluster, Proxy(), "/models/m/v1/completions", **{TURN: "300"}, **by)
    assert 0.3 <= time.monotonic() - began_s < 20
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    message = answer.json()["error"]["message"]
    assert message.startswith("The turn of this request at model 'm' has not come, and it may take")
    assert "0.3 s (`x-request-timeout-ms`)" in message


async def test_a_router_bounds_what_it_sends() -> None:
    proxy, cluster = Proxy(), Cluster(hold_s=0.1, m=0)
    headers = {ROUTER_HEADER.decode(): "/models/m"}
    asked = asyncio.create_task(ask(cluster, proxy, "/models/m/x", **headers))
    await asyncio.sleep(0.5)
    proxy.answers.set()
    assert (await asked).status_code == 200
    assert cluster.num_asked == 0


async def test_what_ray_sends_after_a_refusal_goes_nowhere() -> None:
    proxy = Proxy()
    proxy.is_late = True
    answer = await ask(Cluster(m=0), proxy, "/models/m/x")
    assert answer.status_code == 503
    assert b"done" not in answer.content


@pytest.mark.parametrize("path", ["/nothing/x", "/models/mm/x"])
async def test_the_application_is_found_by_its_prefix(path: str) -> None:
    """What has none of its own is for the router, which runs."""
    proxy = Proxy()
    asked = asyncio.create_task(ask(Cluster(hold_s=0.1, m=0), proxy, path))
    await asyncio.sleep(0.4)
    proxy.answers.set()
    assert (await asked).status_code == 200


async def test_a_controller_that_does_not_say_has_nothing_refused() -> None:
    def fail() -> Known:
        raise RuntimeError("Ray Serve is not running")

    replicas, proxy = Replicas(fail), Proxy()
    assert await replicas.look() is None
    app = HeldRequests(proxy, ["*"], replicas)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        asked = asyncio.create_task(client.post("/models/m/x", headers={TURN: "50"}))
        await asyncio.sleep(0.3)
        proxy.answers.set()
        assert (await asked).status_code == 200


async def test_many_requests_ask_the_controller_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_requests, "MAX_AGE_S", 30)
    go_on, cluster = threading.Event(), Cluster(m=0)

    def slow() -> Known:
        go_on.wait(30)
        return cluster.ask()

    replicas = Replicas(slow)
    looks = [asyncio.create_task(replicas.look()) for _ in range(20)]
    await asyncio.sleep(0.1)
    go_on.set()
    found = await asyncio.gather(*looks)
    assert cluster.num_asked == 1
    assert all(known is not None and not known.is_running("/models/m/x") for known in found)


async def test_a_controller_that_hangs_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_requests, "CALL_TIMEOUT_S", 0.1)
    go_on, calls = threading.Event(), []

    def hang() -> Known:
        calls.append(1)
        go_on.wait(30)
        raise RuntimeError("too late")

    replicas = Replicas(hang)
    try:
        assert [await replicas.look() for _ in range(3)] == [None] * 3
        assert len(calls) == 1
    finally:
        go_on.set()
