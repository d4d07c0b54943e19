"""The router over HTTP, with a small real server in the place of Serve's proxy."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from tests.support.servers import serve_asgi
from truthgpt_serve.cluster.haproxy.affinity import ADAPTER_HEADER, CACHE_KEY_HEADER
from truthgpt_serve.cluster.haproxy.limits import CAPACITY_HEADER
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES
from truthgpt_serve.cluster.state import ApplicationState, ServeState
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.http.multipart import form_boundary, parse_form
from truthgpt_serve.http.retriable import is_unreached
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.router.bodies.arrivals import GATHERED_BYTES
from truthgpt_serve.router.room import RESERVE

ADAPTER, CACHE_KEY = ADAPTER_HEADER.encode(), CACHE_KEY_HEADER.encode()


class Proxy:
    """Stands where Serve's proxy stands: answers by path, and remembers what reached it."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.told: bytes | None = None
        self.connections: set[Any] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/-/routes":
            self.told = dict(scope["headers"]).get(CAPACITY_HEADER.encode())
            await answer(send, 200, b"{}")
            return
        self.connections.add(scope["client"])
        action = scope["path"].rpartition("/")[2]
        request = {"path": scope["path"], "query": scope["query_string"], "size": 0}
        request["headers"] = dict(scope["headers"])
        self.requests.append(request)
        if action == "early":
            await answer(send, 422, b'{"error": {"message": "early"}}')
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        request["size"] = len(body)
        request["body"] = body
        await getattr(self, action)(receive, send)

    async def plain(self, receive: Any, send: Any) -> None:
        extra = [(b"x-engine", b"yes"), (b"x-request-id", b"theirs"), (b"server", b"theirs")]
        await answer(send, 200, b'{"ok": true}', extra)

    completions = edits = cancel = plain

    async def teapot(self, receive: Any, send: Any) -> None:
        await answer(send, 418, b'{"error": {"message": "short and stout"}}')

    async def text429(self, receive: Any, send: Any) -> None:
        await answer(send, 429, b"Request dropped", [(b"retry-after", b"7")], b"text/plain")

    async def page500(self, receive: Any, send: Any) -> None:
        await answer(send, 500, b"Internal Server Error", [], b"text/plain")

    async def detail404(self, receive: Any, send: Any) -> None:
        await answer(send, 404, b'{"detail": "Not Found"}')

    async def detail405(self, receive: Any, send: Any) -> None:
        body = b'{"detail":"Method Not Allowed"}'
        await answer(send, 405, body, [(b"allow", b"GET")])

    async def detail409(self, receive: Any, send: Any) -> None:
        await answer(send, 409, b'{"detail": "taken"}')

    async def detail422(self, receive: Any, send: Any) -> None:
        place = {"loc": ["body", "messages", 0], "msg": "Field required", "type": "missing"}
        await answer(send, 422, json.dumps({"detail": [place, place]}).encode())

    async def odd400(self, receive: Any, send: Any) -> None:
        await answer(send, 400, b'["odd"]')

    async def long400(self, receive: Any, send: Any) -> None:
        await answer(send, 400, b'{"detail": "%b"}' % (b"x" * 100_000))

    async def empty(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def big(self, receive: Any, send: Any) -> None:
        await answer(send, 200, bytes(range(256)) * 40_000, [], b"application/octet-stream")

    async def stream(self, receive: Any, send: Any) -> None:
        await start_stream(send)
        for index in range(5):
            await event(send, b"data: %d\n\n" % index)
            await asyncio.sleep(0.1)
        await send({"type": "http.response.body"})

    async def endless(self, receive: Any, send: Any) -> None:
        await start_stream(send)
        gone = asyncio.create_task(receive())
        while not gone.done():
            await event(send, b"data: x\n\n")
            await asyncio.sleep(0.01)
        self.aborted.append("endless")

    async def cut(self, receive: Any, send: Any) -> None:
        await start_stream(send)
        await event(send, b"data: 1\n\nda")
        raise ConnectionError  # uvicorn closes the connection without the last chunk

    async def cutjson(self, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await event(send, b'{"a":')
        raise ConnectionError

    async def never(self, receive: Any, send: Any) -> None:
        await receive()
        self.aborted.append("never")


async def answer(
    send: Any, status: int, body: bytes, extra: Any = (), kind: bytes = b"application/json"
) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def start_stream(send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def event(send: Any, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def application(name: str, **changes: Any) -> ApplicationState:
    values: dict[str, Any] = {
        "name": name,
        "route_prefix": f"/models/{name}",
        "status": "RUNNING",
        "message": "",
        "num_running_replicas": 1,
        "card": {"adapters": []},
        "deployed_at_s": 1000.0,
    }
    return ApplicationState(**{**values, **changes})


class Cluster:
    """The applications that the router believes in."""

    def __init__(self) -> None:
        self.applications = [
            application(
                "m",
                card={
                    "adapters": ["m-lora"],
                    "aliases": ["org/M-1B:8b", "gpt-4o-mini"],
                    "task": "text-generation",
                    "affinity": "prefix",
                    "limits": {"max_ongoing_requests": 9},
                },
                num_running_replicas=2,
            ),
            application("other"),
            application("starting", status="DEPLOYING", num_running_replicas=0),
            application("failed", status="DEPLOY_FAILED", num_running_replicas=0),
            application("asleep", num_running_replicas=0),
            application("spaced name", route_prefix="/models/spaced name"),
            application("plain-serve", route_prefix="/elsewhere"),
        ]

    def fetch(self) -> ServeState:
        return ServeState({app.name: app for app in self.applications}, None)


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


class CancelOnDisconnect:
    """Cancels a request when its client leaves, as Ray Serve's replica does."""

    def __init__(self, app: RouterApp) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def pump() -> None:
            message = None
            while message is None or message["type"] != "http.disconnect":
                message = await receive()
                queue.put_nowait(message)

        leaving = asyncio.create_task(pump())
        request = asyncio.create_task(self.app(scope, queue.get, send))
        await asyncio.wait({leaving, request}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        request.cancel()
        await asyncio.gather(leaving, request, return_exceptions=True)
        if not request.cancelled() and request.exception() is not None:
            raise ConnectionError("the request failed")


NUM_ROUTERS = 2
CONFIG = RouterConfig(
    max_body_bytes=30_000_000,
    request_timeout_s=4,
    hold_timeout_s=1,
    connect_timeout_s=2,
    num_replicas=NUM_ROUTERS,
)


@pytest.fixture(scope="module")
def url(proxy: Proxy, cluster: Cluster) -> Iterator[str]:
    with serve_asgi(proxy) as upstream:
        app = RouterApp(CONFIG, cluster.fetch, ("127.0.0.1", urlsplit(upstream).port or 0))
        with serve_asgi(CancelOnDisconnect(app), lifespan="on") as address:
            yield address


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    return await client.post(path, json={"model": "m", **body})


async def test_a_request_arrives_as_it_was_sent(client: httpx.AsyncClient, proxy: Proxy) -> None:
    content = b'{"x": [1, 2],  "model":"m" }'
    response = await client.post(
        "/v1/plain?a=b%20c",
        content=content,
        headers={"x-mine": "1", "x-request-id": "id-1", "authorization": "Bearer k", "te": "x"},
    )
    assert response.status_code == 200
    assert response.json() == {"ok": True}
    seen = proxy.requests[-1]
    assert seen["path"] == "/models/m/v1/plain"
    assert seen["query"] == b"a=b%20c"
    assert seen["body"] == content
    assert seen["headers"][b"x-mine"] == b"1"
    assert seen["headers"][b"x-request-id"] == b"id-1"
    assert seen["headers"][b"authorization"] == b"Bearer k"
    assert b"te" not in seen["headers"]


async def test_answers_keep_their_headers_but_the_hops_are_not_doubled(
    client: httpx.AsyncClient,
) -> None:
    response = await post(client, "/v1/plain")
    assert response.headers["x-engine"] == "yes"
    for name in ("date", "server", "content-length", "content-type"):
        assert len(response.headers.get_list(name)) == 1
    assert response.headers["server"] != "theirs"
    assert "x-request-id" not in response.headers  # Serve's own middleware adds it


async def test_an_engines_own_status_and_message_pass(client: httpx.AsyncClient) -> None:
    response = await post(client, "/v1/teapot")
    error = {"message": "short and stout", "type": "invalid_request_error"}
    assert response.status_code == 418
    assert response.json() == {"error": {**error, "param": None, "code": None}}
    assert (await post(client, "/v1/empty")).status_code == 204


async def test_the_proxy_is_told_what_it_does_not_see(
    client: httpx.AsyncClient, proxy: Proxy
) -> None:
    long = {"prompt": "x" * MAX_BODY_BYTES, "prompt_cache_key": "k"}
    for model, told in (("m-lora", {ADAPTER: b"m-lora", CACHE_KEY: b"6b"}), ("other", {})):
        await client.post("/v1/plain", json={"model": model, **long})
        seen = proxy.requests[-1]["headers"]
        assert {name: seen[name] for name in (ADAPTER, CACHE_KEY) if name in seen} == told


async def test_adapters_go_to_their_model(client: httpx.AsyncClient, proxy: Proxy) -> None:
    await client.post("/v1/plain", json={"model": "m-lora"})
    assert proxy.requests[-1]["path"] == "/models/m/v1/plain"


@pytest.mark.parametrize("length", [0, 40_000])
async def test_the_only_model_need_not_be_named(proxy: Proxy, length: int) -> None:
    one, other = application("m", card={"adapters": ["m-lora"]}), application("other")
    leaving = application("leaving", status="DELETING")
    states = [{"m": one, "leaving": leaving}, {"m": one, "other": other}]
    body = {"prompt": "x" * length, "nested": {"model": "other"}}
    with serve_asgi(proxy) as upstream:
        address = ("127.0.0.1", urlsplit(upstream).port or 0)
        for state, status in zip(states, (200, 400), strict=True):
            app = RouterApp(CONFIG, lambda state=state: ServeState(state, None), address)  # type: ignore[misc]
            with serve_asgi(CancelOnDisconnect(app), lifespan="on") as url:
                async with httpx.AsyncClient(base_url=url, timeout=10) as client:
                    await client.get("/v1/models")
                    answer = await client.post("/v1/completions", json=body)
                    assert answer.status_code == status, answer.text
                    if status == 200:
                        assert proxy.requests[-1]["path"] == "/models/m/v1/completions"
                        assert json.loads(proxy.requests[-1]["body"]) == {"model": "m", **body}
                    for method, rest in (("GET", "plain"), ("POST", "plain/cancel")):
                        sent = await client.request(method, f"/v1/responses/{rest}")
                        assert sent.status_code == (200 if status == 200 else 404), sent.text
                    form = {"prompt": (None, "x" * length)}
                    sent = await client.post("/v1/images/edits", files=form)
                    assert sent.status_code == status, sent.text
                    if status == 200:
                        request = proxy.requests[-1]
                        kind = request["headers"][b"content-type"]
                        parts = parse_form(form_boundary(kind), request["body"])
                        fields = {part.name: bytes(part.data) for part in parts}
                        assert fields == {"model": b"m", "prompt": b"x" * length}


@pytest.mark.parametrize("content", [b"{}", b" {\n" + b" " * 100 + b"}", b'{"a": {}}'])
async def test_the_only_model_is_written_into_any_object(proxy: Proxy, content: bytes) -> None:
    state = {"m": application("m")}
    with serve_asgi(proxy) as upstream:
        address = ("127.0.0.1", urlsplit(upstream).port or 0)
        app = RouterApp(CONFIG, lambda: ServeState(state, None), address)
        with serve_asgi(CancelOnDisconnect(app), lifespan="on") as url:
            async with httpx.AsyncClient(base_url=url, timeout=10) as client:
                await client.get("/v1/models")
                await client.post("/v1/completions", content=content)
    sent = json.loads(proxy.requests[-1]["body"])
    assert sent == {"model": "m", **json.loads(content)}


@pytest.mark.parametrize(("action", "status"), [("plain", 200), ("detail404", 400)])
async def test_head_is_answered_as_get_without_the_body(
    client: httpx.AsyncClient, proxy: Proxy, action: str, status: int
) -> None:
    """The router reads errors whole, and waited for the body that HEAD has not."""
    path, asked = f"/v2/models/m/versions/{action}", len(proxy.requests)
    whole = await client.get(path)
    head = await client.head(path, timeout=5)
    assert head.status_code == whole.status_code == status
    assert whole.content
    assert head.content == b""
    assert int(head.headers["content-length"]) > 0
    assert len(proxy.requests) == asked + 2


@pytest.mark.parametrize("alias", ["org/M-1B:8b", "gpt-4o-mini"])
async def test_aliases_go_to_their_model(
    client: httpx.AsyncClient, proxy: Proxy, alias: str
) -> None:
    content = json.dumps({"model": alias}).encode()
    assert (await client.post("/v1/plain", content=content)).status_code == 200
    assert proxy.requests[-1]["path"] == "/models/m/v1/plain"
    assert proxy.requests[-1]["body"] == content
    for path in (alias, quote(alias, safe="")):
        card = (await client.get(f"/v1/models/{path}")).json()
        assert (card["id"], card["alias_of"]) == (alias, "m")
        await client.get(f"/v2/models/{path}/versions/1")
        assert proxy.requests[-1]["path"] == f"/models/m/v2/models/{alias}/versions/1"
        ready = await client.get(f"/v2/models/{path}/ready")
        assert ready.json() == {"name": alias, "ready": True}
    listed = (await client.get("/v1/models")).json()["data"]
    assert {"m", "m-lora", alias} <= {model["id"] for model in listed}
    for path in (alias, quote(alias, safe="")):
        lost = await client.post(f"/models/{path}/v1/plain", content=content)
        assert lost.status_code == 404
        message = f"{alias!r} is an alias: its address is /models/m"
        assert lost.json()["error"]["message"] == message


async def test_names_are_percent_encoded(client: httpx.AsyncClient, proxy: Proxy) -> None:
    assert (await client.post("/v1/plain", json={"model": "spaced name"})).status_code == 200
    assert proxy.requests[-1]["path"] == "/models/spaced name/v1/plain"


async def test_streams_come_piece_by_piece(client: httpx.AsyncClient) -> None:
    arrivals = []
    async with client.stream("POST", "/v1/stream", json={"model": "m"}) as response:
        assert response.headers.get_list("cache-control") == ["no-cache"]
        assert response.headers.get_list("x-accel-buffering") == ["no"]
        async for line in response.aiter_lines():
            if line:
                arrivals.append((line, time.monotonic()))
    assert [line for line, _ in arrivals] == [f"data: {index}" for index in range(5)]
    gaps = [after[1] - before[1] for before, after in pairwise(arrivals)]
    # On a busy machine two may arrive together, never most of them.
    assert sorted(gaps)[1] > 0.05


async def test_large_answers_are_whole_also_for_a_slow_client(url: str) -> None:
    host, port = urlsplit(url).hostname, urlsplit(url).port
    body = json.dumps({"model": "m"}).encode()
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/big HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        await asyncio.sleep(0.5)
        received = bytearray()
        while piece := await asyncio.to_thread(connection.recv, 65536):
            received += piece
    assert received.partition(b"\r\n\r\n")[2] == bytes(range(256)) * 40_000


async def test_large_bodies_stream_when_the_model_comes_first(
    client: httpx.AsyncClient, proxy: Proxy
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "m", "image": "'
        for _ in range(200):
            yield b"A" * 100_000
        yield b'"}'

    response = await client.post("/v1/plain", content=body())
    assert response.status_code == 200
    assert proxy.requests[-1]["size"] == 20_000_027
    assert b"content-length" not in proxy.requests[-1]["headers"]


async def test_large_bodies_with_a_length_keep_it(client: httpx.AsyncClient, proxy: Proxy) -> None:
    content = b'{"image": "' + b"A" * 5_000_000 + b'", "model": "m"}'
    assert (await client.post("/v1/plain", content=content)).status_code == 200
    assert proxy.requests[-1]["headers"][b"content-length"] == b"%d" % len(content)
    assert proxy.requests[-1]["body"] == content


async def test_multipart_bodies_arrive_unchanged(client: httpx.AsyncClient, proxy: Proxy) -> None:
    files = {"image": ("a.png", bytes(range(256)) * 1000, "image/png")}
    response = await client.post("/v1/plain", data={"model": "m", "prompt": "x"}, files=files)
    assert response.status_code == 200
    assert bytes(range(256)) * 1000 in proxy.requests[-1]["body"]


async def test_an_early_answer_ends_an_upload(client: httpx.AsyncClient) -> None:
    content = b'{"model": "m", "x": "' + b"A" * 3_000_000 + b'"}'
    response = await client.post("/v1/early", content=content)
    assert (response.status_code, response.json()["error"]["message"]) == (422, "early")


NAMES = "asleep, failed, gpt-4o-mini, m, m-lora, org/M-1B:8b, other, spaced name, starting"
ERRORS: dict[str, tuple[str, str, int, str | None, str]] = {
    "unknown model": (
        "nosuch", "plain", 404, "model_not_found",
        f"The model 'nosuch' does not exist. Models that do: {NAMES}",
    ),
    "another's application": (
        "plain-serve", "plain", 404, "model_not_found",
        f"The model 'plain-serve' does not exist. Models that do: {NAMES}",
    ),
    "starting": (
        "starting", "plain", 503, "model_unavailable",
        "The model 'starting' is starting; try again in a few seconds",
    ),
    "failed": (
        "failed", "plain", 503, "model_unavailable",
        "The model 'failed' failed to start: `truthgpt why failed` says why",
    ),
    "held too long": (
        "asleep", "never", 503, "model_unavailable",
        "The model 'asleep' had no running replica for 1 s: `truthgpt why asleep` says why",
    ),
    "too slow": ("m", "never", 504, "timeout", "The model 'm' did not finish within 4 s"),
    "proxy's error page": (
        "m", "page500", 502, "upstream_error",
        "A replica of the model 'm' failed before it answered",
    ),
    "proxy's error page, no replica": (
        "asleep", "page500", 503, "model_unavailable",
        "The model 'asleep' has no running replica",
    ),
    "plain text": ("m", "text429", 429, "overloaded", "Request dropped"),
    "no route": (
        "m", "detail404", 404, "not_found",
        "there is no /v1/detail404 here; /docs lists the routes",
    ),
    "no method": (
        "m", "detail405", 405, "method_not_allowed", "the model 'm' has no POST /v1/detail405",
    ),
    "detail": ("m", "detail409", 409, None, "taken"),
    "list of details": (
        "m", "detail422", 422, None,
        "messages.0: Field required; messages.0: Field required",
    ),
    "JSON without an error": ("m", "odd400", 400, None, '["odd"]'),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "action", "status", "code", "message"), ERRORS.values(), ids=ERRORS.keys()
)
async def test_errors_come_in_the_envelope(
    client: httpx.AsyncClient, model: str, action: str, status: int, code: str | None, message: str
) -> None:
    response = await client.post(f"/v1/{action}", json={"model": model})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["message"]) == (status, code, message)
    assert set(error) == {"message", "type", "param", "code"}
    assert ("retry-after" in response.headers) == (status in (429, 503))


async def test_retry_after_of_the_application_passes(client: httpx.AsyncClient) -> None:
    response = await post(client, "/v1/text429")
    assert response.headers.get_list("retry-after") == ["7"]


async def test_what_tells_more_of_an_error_passes(client: httpx.AsyncClient) -> None:
    assert (await post(client, "/v1/detail405")).headers["allow"] == "GET"
    assert (await post(client, "/v1/detail422")).json()["error"]["param"] == "messages.0"
    assert (await post(client, "/v1/detail409")).json()["error"]["type"] == "invalid_request_error"


async def test_a_long_answer_is_no_error_message(client: httpx.AsyncClient) -> None:
    response = await post(client, "/v1/long400")
    assert (response.status_code, len(response.json()["detail"])) == (400, 100_000)


async def test_a_cut_stream_ends_with_an_error_event(client: httpx.AsyncClient) -> None:
    response = await post(client, "/v1/cut", stream=True)
    events = [part for part in response.text.split("\n\n") if part]
    assert events[0] == "data: 1"  # and not the half of an event behind it
    error = json.loads(events[1].removeprefix("data: "))["error"]
    assert error["code"] == "upstream_error"


async def test_a_cut_json_answer_is_seen_as_broken(client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await post(client, "/v1/cutjson")


async def test_a_client_that_leaves_ends_the_models_work(
    client: httpx.AsyncClient, proxy: Proxy
) -> None:
    proxy.aborted.clear()
    async with client.stream("POST", "/v1/endless", json={"model": "m"}) as response:
        await anext(response.aiter_lines())
    deadline = time.monotonic() + 2
    while not proxy.aborted and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert proxy.aborted == ["endless"]


async def test_connections_upstream_are_kept(client: httpx.AsyncClient, proxy: Proxy) -> None:
    await post(client, "/v1/plain")
    before = len(proxy.connections)
    for _ in range(20):
        await post(client, "/v1/plain")
    assert len(proxy.connections) <= before + 1


@pytest.mark.parametrize(
    ("declared", "content"),
    [(True, b"{" + b" " * 30_000_001), (False, b'{"a": "' + b"A" * 30_000_001)],
    ids=["by its length", "as it comes"],
)
async def test_bodies_above_the_limit_are_refused(
    client: httpx.AsyncClient, declared: bool, content: bytes
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1_000_000):
            yield content[start : start + 1_000_000]

    response = await client.post("/v1/plain", content=content if declared else pieces())
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert "30000000 bytes" in response.json()["error"]["message"]


async def test_an_unknown_model_that_appears_is_found_within_a_second(
    client: httpx.AsyncClient, cluster: Cluster
) -> None:
    assert (await client.post("/v1/plain", json={"model": "newcomer"})).status_code == 404
    cluster.applications.append(application("newcomer"))
    await asyncio.sleep(1.05)
    assert (await client.post("/v1/plain", json={"model": "newcomer"})).status_code == 200


async def test_models_are_listed_with_adapters_and_cards(client: httpx.AsyncClient) -> None:
    listed = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
    assert {"m", "m-lora", "other"} <= listed.keys()
    assert "plain-serve" not in listed
    assert listed["m-lora"]["parent"] == "m"
    one = (await client.get("/v1/models/m")).json()
    assert one["card"]["task"] == "text-generation"
    assert one["created"] == 1000
    missing = await client.get("/v1/models/nosuch")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_own_pages(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}
    ready = await client.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["models"]["failed"]["status"] == "DEPLOY_FAILED"
    assert "/v1/chat/completions" in (await client.get("/openapi.json")).json()["paths"]
    assert "TruthGPT Serve" in (await client.get("/docs")).text
    assert (await client.get("/")).headers["location"] == "/docs"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v1/models", 405, "/v1/models takes GET, not POST"),
        ("DELETE", "/health", 405, "/health takes GET, not DELETE"),
        ("GET", "/v1/rerank", 405, "/v1/rerank takes POST, not GET"),
        ("PUT", "/v1/rerank", 405, "/v1/rerank takes POST, not PUT"),
        ("GET", "/v1/x", 404, "there is no /v1/x here; /docs lists the routes"),
        ("POST", "/v1/x", 404, "there is no /v1/x here; /docs lists the routes"),
        ("GET", "/v1/files", 404, "there is no /v1/files here; /docs lists the routes"),
        ("GET", "/nosuch", 404, "there is no /nosuch here; /docs lists the routes"),
        ("POST", "/models/nosuch/v1/plain", 404, "The model 'nosuch' does not exist"),
        ("GET", "/models/nosuch", 404, "The model 'nosuch' does not exist"),
    ],
)  # fmt: skip
async def test_wrong_methods_and_paths(
    client: httpx.AsyncClient, method: str, path: str, status: int, message: str
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    given, _, _known = response.json()["error"]["message"].partition(". Models that do: ")
    assert given == message
    assert is_unreached(response.headers.raw) == path.startswith("/models/")
    allowed = {"/v1/rerank": "POST"}.get(path, "GET, HEAD") if status == 405 else None
    assert response.headers.get("allow") == allowed


@pytest.mark.parametrize(
    "path",
    [
        "/models/m%2f..%2fother/",
        "/models/m%2fv1/plain",
        "/models/%6d/v1/plain",
        "/models/%6D",
        "/%6dodels/m/v1/plain",
        "/models%2fm/v1/plain",
        "/models/m%2F",
        "/models/%2e%2e/models/m",
        "/models/m%00/v1/plain",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_address_in_another_writing_is_of_no_model(
    client: httpx.AsyncClient, proxy: Proxy, method: str, path: str
) -> None:
    before = len(proxy.requests)
    response = await client.request(method, path, content=b"{}" if method == "POST" else None)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "not_found")
    assert error["message"].startswith(f"there is no {path} here: a model's address is ")
    assert "retry-after" not in response.headers
    assert proxy.requests[before:] == []


async def test_an_address_that_the_proxy_does_not_know_yet_is_retried(
    client: httpx.AsyncClient,
) -> None:
    for path in ("/models/m", "/models/m/v1/%70lain", "/models/m/?a=%2f"):
        response = await client.get(path)
        assert response.status_code == 503, path
        assert response.headers["retry-after"]


@pytest.mark.parametrize("pieces", [1, 3], ids=["whole", "in pieces"])
async def test_a_body_with_two_models_reaches_neither(
    client: httpx.AsyncClient, proxy: Proxy, pieces: int
) -> None:
    content = b'{"model": "m", "x": "' + b"A" * 600_000 + b'", "model": "other"}'
    size = len(content) // pieces + 1
    before = len(proxy.requests)

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]
            await asyncio.sleep(0.05)

    response = await client.post("/v1/plain", content=content if pieces == 1 else body())
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["message"], error["param"]) == ("`model` is given twice: send it once", "model")
    assert all(request["size"] < len(content) for request in proxy.requests[before:])


@pytest.mark.parametrize(
    ("status", "answer_status", "code"), [(200, 200, None), (500, 502, "upstream_error")]
)
async def test_metrics_are_the_exporters_or_an_error(
    cluster: Cluster, status: int, answer_status: int, code: str | None
) -> None:
    async def exporter(scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"] == "/metrics"
        await answer(send, status, b"ray_x 1\n", [], b"text/plain")

    with serve_asgi(exporter) as upstream:
        address = ("127.0.0.1", urlsplit(upstream).port or 0)
        router = RouterApp(CONFIG, cluster.fetch, address, lambda: address)
        with serve_asgi(router, lifespan="on") as url:
            async with httpx.AsyncClient(base_url=url) as client:
                response = await client.get("/metrics")
    assert response.status_code == answer_status
    if code is None:
        assert response.text == "ray_x 1\n"
        return
    error = response.json()["error"]
    assert (error["code"], error["message"]) == (
        code,
        "this node's metrics exporter answered with status 500",
    )


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "this node has no metrics exporter"),
        (("::1", 1), "this node's metrics exporter at [::1]:1 does not accept connections (.*)"),
    ],
)
async def test_an_exporter_that_is_not_there_is_named(
    cluster: Cluster, address: tuple[str, int] | None, message: str
) -> None:
    router = RouterApp(CONFIG, cluster.fetch, ("127.0.0.1", 1), lambda: address)
    with serve_asgi(router, lifespan="on") as url:
        async with httpx.AsyncClient(base_url=url) as client:
            response = await client.get("/metrics")
    assert response.status_code == 503
    found = response.json()["error"]["message"]
    assert found.partition(" (")[0] == message.partition(" (")[0]


def test_websockets_are_refused(url: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        connection.sendall(
            b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 404")


async def test_a_body_that_is_slow_takes_no_place_at_its_model(
    client: httpx.AsyncClient, proxy: Proxy
) -> None:
    """It is sent on when it is whole."""
    before = len(proxy.requests)

    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "m", "x": "'
        for _ in range(4):
            await asyncio.sleep(0.1)
            assert len(proxy.requests) == before
            yield b"x" * 1000
        yield b'"}'

    assert (await client.post("/v1/plain", content=body())).status_code == 200
    assert proxy.requests[-1]["size"] > 4000


async def test_a_large_body_is_sent_on_while_it_arrives(
    client: httpx.AsyncClient, proxy: Proxy
) -> None:
    before = len(proxy.requests)

    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "m", "x": "' + b"x" * GATHERED_BYTES
        async with asyncio.timeout(8):
            while len(proxy.requests) == before:
                await asyncio.sleep(0.01)
        yield b'"}'

    assert (await client.post("/v1/plain", content=body())).status_code == 200
    assert proxy.requests[-1]["size"] > GATHERED_BYTES


async def test_the_proxy_is_told_what_the_models_hold_beside_what_still_arrives(
    proxy: Proxy,
) -> None:
    limits = {"max_ongoing_requests": 3, "max_queued_requests": 4}
    state = ServeState({"m": application("m", card={"limits": limits})}, None)
    done = asyncio.Event()

    async def told(number: int) -> None:
        async with asyncio.timeout(8):
            while proxy.told != b"%d" % number:
                await asyncio.sleep(0.02)

    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "m", "x": "'
        await done.wait()
        yield b'"}'

    with serve_asgi(proxy) as upstream:
        app = RouterApp(CONFIG, lambda: state, ("127.0.0.1", urlsplit(upstream).port or 0))
        with serve_asgi(app, lifespan="on") as address:
            async with httpx.AsyncClient(base_url=address, timeout=10) as client:
                await told(7 + RESERVE)
                slow = asyncio.create_task(client.post("/v1/plain", content=body()))
                await told(7 + RESERVE + NUM_ROUTERS)
                done.set()
                assert (await slow).status_code == 200
                await told(7 + RESERVE)
