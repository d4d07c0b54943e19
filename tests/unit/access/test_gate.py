"""What passes the gate over real HTTP, and how refusals look in each API."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.support.servers import serve_asgi
from truthgpt_serve.access.gate import OPEN_AT_MODEL, OPEN_AT_SERVICE, SERVER_ROUTES, Gate
from truthgpt_serve.access.identity import ANONYMOUS, SCOPE_KEY
from truthgpt_serve.access.key_edit import add_key
from truthgpt_serve.access.key_ring import KeyRing
from truthgpt_serve.access.meter import Meter
from truthgpt_serve.access.moments import write_moment
from truthgpt_serve.access.quota import Quota
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, send_json

ORIGIN = "http://localhost:3000"
NAMES = ("story", "moral", "org/alias")
MOUNT = "/models/story"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it sees."""
    if scope["method"] == "OPTIONS" and SCOPE_KEY not in scope:
        await send_json(send, {"preflight": True})
        return
    names = sorted(name.decode() for name, _ in scope["headers"])
    await send_json(send, {"key": scope[SCOPE_KEY].name, "headers": names})


@dataclass(frozen=True)
class ServerRoutes:
    """Answers two routes as Ray's server of a replica does."""

    app: Gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in SERVER_ROUTES:
            await send_json(send, "success")
        else:
            await self.app(scope, receive, send)


@dataclass(frozen=True)
class Gates:
    """Two gates: of the router, and of a model whose path has its mount point.

    Attributes:
        service: Address of the first.
        model: Address of the second.
        keys: By name.
    """

    service: str
    model: str
    keys: dict[str, str]


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gates]:
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    given = {"any": None, "narrow": ["sto*"], "adapter": ["moral"], "other": ["other"]}
    keys = {name: add_key(path, {"name": name, "models": models}) for name, models in given.items()}
    ring = KeyRing(path)
    keys["internal"] = ring.internal_headers()[0][1].removeprefix(b"Bearer ").decode()
    router = Gate(application, ring, OPEN_AT_SERVICE | {"/docs"}, allow_origins=[ORIGIN])
    inner = Gate(application, ring, OPEN_AT_MODEL, names=NAMES, hides_key=True)
    # Ray's server answers what it answers itself between the two.
    model = Gate(ServerRoutes(inner), ring, OPEN_AT_MODEL, names=NAMES, mount=MOUNT)
    with serve_asgi(router) as service, serve_asgi(model) as replica:
        yield Gates(service, f"{replica}{MOUNT}", keys)
    ring.close()


def send(url: str, key: str | None = None, method: str = "POST", **more: Any) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    headers |= more.pop("headers", {})
    return httpx.request(method, url, headers=headers, timeout=20, **more)


def test_whose_requests_are(gates: Gates) -> None:
    for base in (gates.service, gates.model):
        assert send(f"{base}/v1/infer", gates.keys["any"]).json()["key"] == "any"
        assert send(f"{base}/v1/infer", gates.keys["narrow"]).json()["key"] == "narrow"
    given = {"x-api-key": gates.keys["any"]}
    assert send(f"{gates.service}/v1/messages", headers=given).json()["key"] == "any"
    seen = send(f"{gates.service}/v1/infer", gates.keys["any"]).json()["headers"]
    hidden = send(f"{gates.model}/v1/infer", gates.keys["any"]).json()["headers"]
    assert set(seen) - set(hidden) == {"authorization"}


@pytest.mark.parametrize(
    ("method", "path", "service", "model"),
    [
        ("GET", "/health", 200, 200),
        ("HEAD", "/health", 200, 200),
        ("GET", "/health/", 200, 200),
        ("POST", "/health", 401, 401),
        ("GET", "/ready", 200, 401),
        ("GET", "/", 200, 401),
        ("GET", "/docs", 200, 401),
        ("GET", "/openapi.json", 401, 401),
        ("GET", "/metrics", 401, 401),
        ("GET", "//health", 401, 401),
        ("GET", "/health/x", 401, 401),
        ("GET", "/HEALTH", 401, 401),
        ("GET", "/v1/health", 401, 401),
        ("GET", "/v2/health/live", 200, 401),
        ("GET", "/v1/files/images/x", 401, 401),
        ("GET", f"{MOUNT}/health", 401, 401),
        ("OPTIONS", "/v1/models", 401, 401),
    ],
)
def test_what_is_open(gates: Gates, method: str, path: str, service: int, model: int) -> None:
    for base, status in ((gates.service, service), (gates.model, model)):
        answer = send(f"{base}{path}", method=method)
        assert answer.status_code == status
        if status == 200 and method == "GET":
            assert answer.json()["key"] == ANONYMOUS.name


def test_what_haproxy_asks_rays_server(gates: Gates) -> None:
    server = gates.model.removesuffix(MOUNT)
    for path in ("/-/healthz", "/-/routes"):
        assert send(f"{server}{path}", method="GET").status_code == 200
        assert send(f"{server}{path}").status_code == 401
        assert send(f"{gates.model}{path}", method="GET").status_code == 401
        assert send(f"{gates.service}{path}", method="GET").status_code == 401
    assert send(f"{server}/v1/models", method="GET").status_code == 401


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a model with two gates and limits, and a key that may send two requests."""
    folder = tmp_path_factory.mktemp("limited")
    given = {"name": "team", "requests_per_minute": 2}
    key = add_key(folder / "keys.yaml", given)
    ring, quota = KeyRing(folder / "keys.yaml"), Quota(folder / "keys.yaml")
    meter = Meter(quota, lambda ended: None)
    inner = Gate(application, ring, OPEN_AT_MODEL, names=NAMES, meter=meter)
    outer = Gate(inner, ring, OPEN_AT_MODEL, names=NAMES, meter=meter, allow_origins=[ORIGIN])
    with serve_asgi(outer) as url:
        yield url, key
    ring.close()
    quota.close()


def test_a_request_counts_once_and_reading_does_not(limited: tuple[str, str]) -> None:
    url, key = limited
    for left in ("1", "0"):
        assert send(f"{url}/v1/models", key, "GET").status_code == 200
        assert send(f"{url}/v1/infer").status_code == 401
        answer = send(f"{url}/v1/infer", key)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-remaining-requests"] == left
    refused = send(f"{url}/v1/infer", key, headers={"origin": ORIGIN})
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    assert 55 <= int(refused.headers["retry-after"]) <= 61
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    anthropics = send(f"{url}/v1/messages", key).json()
    assert anthropics["error"]["type"] == "rate_limit_error"
    assert send(f"{url}/v1/models", key, "GET").status_code == 200


def test_a_wrong_key_at_an_open_route(gates: Gates) -> None:
    assert send(f"{gates.service}/health", "wrong", "GET").json()["key"] == ANONYMOUS.name
    assert send(f"{gates.service}/health", gates.keys["any"], "GET").json()["key"] == "any"


def test_keys_elsewhere_do_not_count(gates: Gates) -> None:
    key = gates.keys["any"]
    for query in ("api_key", "key", "access_token"):
        assert send(f"{gates.service}/v1/infer", params={query: key}).status_code == 401
    for headers in (
        {"cookie": f"key={key}"},
        {"api-key": key},
        {"authorization": f"Basic {key}"},
        {"proxy-authorization": f"Bearer {key}"},
    ):
        assert send(f"{gates.service}/v1/infer", headers=headers).status_code == 401
    answer = send(f"{gates.service}/v1/infer", json={"api_key": key})
    assert answer.status_code == 401


def test_models_of_a_key(gates: Gates) -> None:
    answer = send(f"{gates.model}/v1/infer", gates.keys["other"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert send(f"{gates.model}/health", gates.keys["other"], "GET").status_code == 200
    assert send(f"{gates.model}/v1/infer", gates.keys["adapter"]).json()["key"] == "adapter"
    assert send(f"{gates.service}/v1/infer", gates.keys["other"]).json()["key"] == "other"


def test_a_process_of_the_service_only_reads(gates: Gates) -> None:
    assert send(f"{gates.model}/metrics", gates.keys["internal"], "GET").status_code == 200
    assert send(f"{gates.model}/v1/infer", gates.keys["internal"]).status_code == 401


def test_refusals(gates: Gates, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="truthgpt_serve"):
        answer = send(
            f"{gates.service}/v1/infer",
            "tgpt-wrong",
            headers={"x-request-id": "id-1", "origin": ORIGIN},
            content=b"x" * (1 << 20),
        )
    assert answer.status_code == 401
    assert answer.json() == {
        "error": {
            "message": "the API key is wrong",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"] == "id-1"
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "tgpt-wrong" not in caplog.text + answer.text
    for path, error in (
        ("/v1/messages", {"type": "authentication_error", "message": "the API key is wrong"}),
        ("/v2/models/x/infer", "the API key is wrong"),
    ):
        for base in (gates.service, gates.model):
            assert send(f"{base}{path}", "tgpt-wrong").json()["error"] == error


def test_preflights_pass(gates: Gates) -> None:
    headers = {"origin": ORIGIN, "access-control-request-method": "POST"}
    for base in (gates.service, gates.model):
        answer = send(f"{base}/v1/infer", method="OPTIONS", headers=headers)
        assert answer.json() == {"preflight": True}


def test_clients_raise_their_own_errors(gates: Gates) -> None:
    with (
        openai.OpenAI(base_url=gates.service, api_key="k", max_retries=0) as one,
        pytest.raises(openai.AuthenticationError),
    ):
        one.models.list()
    with (
        anthropic.Anthropic(base_url=gates.service, api_key="k", max_retries=0) as two,
        pytest.raises(anthropic.AuthenticationError),
    ):
        two.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])


async def test_the_body_is_not_read_and_websockets_are_refused(tmp_path: Path) -> None:
    sent: list[Message] = []

    async def note(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("the body is read")

    async def connect() -> Message:
        return {"type": "websocket.connect"}

    (tmp_path / "keys.yaml").write_text("keys: []")
    ring = KeyRing(tmp_path / "keys.yaml")
    gate = Gate(application, ring, OPEN_AT_MODEL)
    await gate({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, note)
    assert sent[0]["status"] == 401
    sent.clear()
    await gate({"type": "websocket", "path": "/", "headers": []}, connect, note)
    assert sent[0]["type"] == "websocket.close"
    sent.clear()
    extension: dict[str, Any] = {"extensions": {"websocket.http.response": {}}}
    await gate({"type": "websocket", "path": "/", "headers": [], **extension}, connect, note)
    assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 401)
    ring.close()


async def test_an_answer_that_has_begun_outlives_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now = tmp_path / "keys.yaml", datetime.now(UTC)
    expires = write_moment(now + timedelta(minutes=5))
    key = add_key(path, {"name": "a", "expires": expires, "max_concurrent": 1})
    ring = KeyRing(path, period_s=3600)
    quota = Quota(path, "story")
    ended: list[str] = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one ", "more_body": True})
        monkeypatch.setattr(time, "time", lambda: now.timestamp() + 301)
        await send({"type": "http.response.body", "body": b"two"})

    meter = Meter(quota, lambda report: ended.append(report.outcome))
    gate = Gate(stream, ring, OPEN_AT_MODEL, names=NAMES, meter=meter)
    transport = httpx.ASGITransport(gate)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://model") as client:
            headers = {"authorization": f"Bearer {key}"}
            begun = await client.post("/v1/completions", headers=headers)
            later = await client.post("/v1/completions", headers=headers)
    finally:
        ring.close()
        quota.close()
    assert (begun.status_code, begun.text) == (200, "one two")
    assert later.status_code == 401
    assert "has expired" in later.json()["error"]["message"]
    assert ended == ["ok"]
