"""The backend of a model, as the router tells it: a real router, real small models."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest

from tests.support.servers import serve_asgi
from tests.unit.router.test_discovery import application
from truthgpt_serve.cluster.state import ServeState
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.router import backend_info as acceleration
from truthgpt_serve.router.app import RouterApp

GPU = {"device": "cuda", "attention": "flash_attention_2"}


class Models:
    """Stands behind Serve's proxy: each model's own card, and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cards: dict[str, Any] = {
            "fast": {"acceleration": GPU, "capabilities": {"json": True}},
            "two words": {"acceleration": GPU},
            "plain": {"id": "plain"},
            "odd": {"acceleration": "much", "capabilities": ["all"]},
            "broken": b"not JSON",
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = unquote(scope["path"])
        if path == "/-/routes":
            await reply(send, 200, b"{}")
            return
        _, _, name, rest = path.split("/", 3)
        self.asked.append(name)
        assert rest == f"v1/models/{name}"
        if name == "stuck":
            await asyncio.sleep(30)
        card = self.cards.get(name)
        body = card if isinstance(card, bytes) else json.dumps(card).encode()
        await reply(send, 404 if card is None else 200, body)


async def reply(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Cluster:
    """The applications that the router believes in."""

    def __init__(self) -> None:
        names = ("fast", "plain", "odd", "broken", "stuck", "nocard")
        self.applications = {name: application(name) for name in names}
        self.applications["fast"] = application("fast", card={"adapters": ["fast-lora"]})
        spaced = application("two words", route_prefix="/models/two words")
        self.applications["two words"] = spaced
        self.set("asleep", num_running_replicas=0)

    def set(self, name: str, **changes: Any) -> None:
        self.applications[name] = application(name, **changes)

    def fetch(self) -> ServeState:
        return ServeState(dict(self.applications), None)


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def router(models: Models, cluster: Cluster) -> Iterator[tuple[str, RouterApp]]:
    with serve_asgi(models) as upstream:
        address = ("127.0.0.1", urlsplit(upstream).port or 0)
        app = RouterApp(RouterConfig(), cluster.fetch, address)
        app.directory.update(cluster.fetch())
        with serve_asgi(app, lifespan="on") as url:
            yield url, app


@pytest.fixture
async def client(router: tuple[str, RouterApp]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=router[0], timeout=20) as client:
        yield client


async def page(client: httpx.AsyncClient, name: str) -> Any:
    response = await client.get(f"/v1/models/{name}")
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_model_is_asked_once_for_all_readers(
    client: httpx.AsyncClient, models: Models
) -> None:
    found = await asyncio.gather(*(page(client, "fast") for _ in range(20)))
    assert all(value["acceleration"] == GPU for value in found)
    assert all(value["capabilities"] == {"json": True} for value in found)
    assert models.asked == ["fast"]
    assert (await page(client, "fast-lora"))["acceleration"] == GPU
    assert (await page(client, "fast"))["card"] == {"adapters": ["fast-lora"]}
    assert models.asked == ["fast"]
    assert (await page(client, "two words"))["acceleration"] == GPU


async def test_the_list_asks_no_model(client: httpx.AsyncClient, models: Models) -> None:
    data = (await client.get("/v1/models")).json()["data"]
    assert all("acceleration" not in entry for entry in data)
    assert models.asked == []


@pytest.mark.parametrize("name", ["plain", "odd", "broken", "nocard"])
async def test_what_is_not_known_is_null_and_not_asked_again_at_once(
    client: httpx.AsyncClient, models: Models, name: str
) -> None:
    for _ in range(3):
        assert (await page(client, name))["acceleration"] is None
        assert (await page(client, name))["capabilities"] is None
    assert models.asked == [name]


async def test_a_model_scaled_to_zero_is_left_asleep(
    client: httpx.AsyncClient, models: Models, cluster: Cluster
) -> None:
    assert (await page(client, "asleep"))["acceleration"] is None
    # Asleep since the router looked last: it looks again before it asks.
    cluster.set("fast", num_running_replicas=0)
    assert (await page(client, "fast"))["acceleration"] is None
    assert models.asked == []


async def test_a_sleeping_model_keeps_what_it_said(
    client: httpx.AsyncClient, models: Models, cluster: Cluster, router: tuple[str, RouterApp]
) -> None:
    assert (await page(client, "fast"))["acceleration"] == GPU
    cluster.set("fast", num_running_replicas=0)
    router[1].directory.update(cluster.fetch())
    assert (await page(client, "fast"))["acceleration"] == GPU
    assert models.asked == ["fast"]


async def test_a_new_deployment_is_asked_again(
    client: httpx.AsyncClient, models: Models, cluster: Cluster, router: tuple[str, RouterApp]
) -> None:
    assert (await page(client, "fast"))["acceleration"] == GPU
    models.cards["fast"] = {"acceleration": {"device": "cpu"}}
    assert (await page(client, "fast"))["acceleration"] == GPU
    # While it is replaced nothing is kept: a replica of the former one may have answered.
    for status, num_asked in (("DEPLOYING", 3), ("RUNNING", 4)):
        cluster.set("fast", deployed_at_s=2.0, status=status)
        router[1].directory.update(cluster.fetch())
        for _ in range(2):
            assert (await page(client, "fast"))["acceleration"] == {"device": "cpu"}
        assert len(models.asked) == num_asked


async def test_a_stuck_model_holds_no_reader_up(
    client: httpx.AsyncClient, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "TIMEOUT_S", 0.3)
    began_s = time.monotonic()
    assert (await page(client, "stuck"))["acceleration"] is None
    assert (await page(client, "stuck"))["acceleration"] is None
    assert time.monotonic() - began_s < 5
    assert models.asked == ["stuck"]


async def test_a_model_that_does_not_listen_is_null(cluster: Cluster) -> None:
    app = RouterApp(RouterConfig(), cluster.fetch, ("127.0.0.1", 1))
    app.directory.update(cluster.fetch())
    with serve_asgi(app, lifespan="on") as url:
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            assert (await page(client, "fast"))["acceleration"] is None
