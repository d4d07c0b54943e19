"""Pages of other origins: what the configuration allows, and what browsers are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.middleware.cors import CORSMiddleware

from tests.support.servers import serve_asgi
from tests.unit.router.test_relay import CONFIG, CancelOnDisconnect, Cluster, Proxy
from truthgpt_serve.config import load_model_cors, load_router_config
from truthgpt_serve.config.cors import LOCAL_ORIGINS, MAX_ORIGINS
from truthgpt_serve.errors import ConfigError, TooLargeError
from truthgpt_serve.http.asgi import send_bytes, send_error
from truthgpt_serve.http.cors import Cors, Origins
from truthgpt_serve.http.probes import MAX_TOGETHER, Probes
from truthgpt_serve.router.app import RouterApp

PAGE = "https://chat.example.com"
ASKED = {"access-control-request-method": "POST"}


# -- configuration


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("https://chat.example.com/", "write https://chat.example.com"),
        ("https://Chat.Example.com", "write https://chat.example.com"),
        ("https://chat.example.com/app?x=1", "is not an origin"),
        ("chat.example.com", "write https://chat.example.com"),
        ("https://chat.example.com:443", "names the port that browsers leave out"),
        ("http://chat.example.com:80", "write http://chat.example.com"),
        ("http://localhost:0", "has no usable port"),
        ("http://localhost:65536", "has no usable port"),
        ("http://localhost:08", "has no usable port"),
        ("https://*.example.com", "is not an origin"),
        ("http://localhost:*:*", "is not an origin"),
        ("https://bücher.example", "is not an origin"),
        ("https://a.example\r\nx: y", "is not an origin"),
        ("null", "serve the page over HTTP"),
        ("", "is not an origin"),
        ("https://" + "a" * 300, "must have at most 256 characters"),
    ],
)
def test_what_is_no_origin_is_refused_with_what_to_write(origin: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_router_config({"cors": {"allow_origins": [PAGE, origin]}})
    [fault] = caught.value.faults
    assert fault.place == "router: cors.allow_origins[1]"
    assert words in str(fault)


@pytest.mark.parametrize(
    ("cors", "words"),
    [
        ({"allow_origins": ["*", PAGE]}, "the others have no effect"),
        ({"allow_origins": [f"https://a{n}.example" for n in range(MAX_ORIGINS + 1)]}, "at most"),
        ({"allow_origins": PAGE}, "must be a list"),
        ({"allow_origins": [5]}, "must be a string"),
        ({"allow_credentials": True}, "unknown field `allow_credentials`"),
        ("*", "must be a mapping"),
    ],
)
def test_other_faults_of_the_section(cors: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_router_config({"cors": cors})
    with pytest.raises(ConfigError, match=words):
        load_model_cors({"config": "models/echo.yaml", "cors": cors}, place="args")


def test_by_default_pages_of_the_own_machine_are_allowed() -> None:
    assert load_router_config({}).cors.allow_origins == list(LOCAL_ORIGINS)
    assert load_model_cors({"config": "x"}, place="args").allow_origins == list(LOCAL_ORIGINS)


# -- which origins


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True),
        ("http://localhost:5173", True),
        ("https://localhost:8443", True),
        ("http://127.0.0.1:3000", True),
        ("http://[::1]:3000", True),
        ("http://[::1]", True),
        ("http://localhost.example.com", False),
        ("http://localhost:80.example.com", False),
        ("http://localhost:", False),
        ("http://evil.example", False),
        ("http://localhost:5173/", False),
        ("null", False),
        ("", False),
        ("*", False),
        ("http://localhost:*", False),
    ],
)
def test_local_origins(origin: str, allowed: bool) -> None:
    assert (origin.encode() in Origins(LOCAL_ORIGINS)) is allowed


# -- over HTTP


async def sample(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/error":
        await send_error(send, TooLargeError("too large"))
    elif scope["path"] == "/stream":
        headers = [(b"content-type", b"text/event-stream"), (b"vary", b"accept-encoding")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})
    else:
        await send_bytes(send, scope["method"].encode(), b"text/plain")


@contextmanager
def client_of(app: Any, *allow_origins: str) -> Iterator[httpx.Client]:
    with serve_asgi(Cors(app, allow_origins)) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/error", "/stream"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_answer_says_who_may_read_it(path: str, method: str) -> None:
    with client_of(sample, PAGE) as client:
        mine = client.request(method, path, headers={"origin": PAGE})
        other = client.request(method, path, headers={"origin": "https://evil.example"})
        plain = client.request(method, path)
    assert mine.headers["access-control-allow-origin"] == PAGE
    assert "retry-after" in mine.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in mine.headers
    assert mine.status_code == other.status_code == plain.status_code
    assert mine.content == other.content == plain.content
    assert not [name for name in (*other.headers, *plain.headers) if name.startswith("access-")]
    for answer in (mine, other):
        assert "origin" in answer.headers["vary"].split(", ")
        assert (path == "/stream") == ("accept-encoding" in answer.headers["vary"])
    assert ("origin" in plain.headers.get("vary", "")) == (method == "GET")  # what caches keep


def test_every_origin() -> None:
    with client_of(sample, "*") as client:
        answer = client.get("/", headers={"origin": "https://any.example"})
        preflight = client.options("/", headers={"origin": "null", **ASKED})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "vary" not in answer.headers
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"


def test_no_origin() -> None:
    with client_of(sample) as client:
        answer = client.get("/", headers={"origin": "http://localhost"})
        preflight = client.options("/", headers={"origin": "http://localhost", **ASKED})
    assert "access-control-allow-origin" not in answer.headers
    assert preflight.status_code == 403
    assert preflight.json()["error"]["code"] == "origin_not_allowed"


def test_a_preflight_is_answered_without_the_application() -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    names = "authorization, content-type,x-stainless-os"
    headers = {"origin": PAGE, **ASKED, "access-control-request-headers": names}
    with client_of(never, PAGE) as client:
        answer = client.options("/v1/anything", headers=headers)
        odd = client.options("/", headers={**headers, "access-control-request-headers": "a b, c"})
        other = client.options("/v1/messages", headers={**headers, "origin": "https://e.example"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert {"GET", "POST"} <= {*answer.headers["access-control-allow-methods"].split(", ")}
    assert answer.headers["access-control-allow-headers"] == names
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-headers" not in odd.headers
    assert other.status_code == 403
    assert other.json()["type"] == "error"  # as Anthropic's API shapes it
    assert not [name for name in other.headers if name.startswith("access-control-")]


def test_options_that_are_no_preflight_pass() -> None:
    with client_of(sample, PAGE) as client:
        assert client.options("/").text == "OPTIONS"
        assert client.options("/", headers={"origin": PAGE}).text == "OPTIONS"
        assert client.options("/", headers=ASKED).text == "OPTIONS"


def test_the_applications_own_list_does_not_count() -> None:
    open_to_all = CORSMiddleware(sample, allow_origins=["*"], allow_credentials=True)
    with client_of(open_to_all, PAGE) as client:
        other = client.get("/", headers={"origin": "https://evil.example", "cookie": "a=b"})
        mine = client.get("/", headers={"origin": PAGE, "cookie": "a=b"})
    assert not [name for name in other.headers if name.startswith("access-control-")]
    assert mine.headers.get_list("access-control-allow-origin") == [PAGE]
    assert "access-control-allow-credentials" not in mine.headers


async def test_a_preflight_does_not_wait_in_the_queue() -> None:
    async def full(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    app = Probes(full, Cors(full, [PAGE]), "/models/m", ["/health"])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for _ in range(2 * MAX_TOGETHER):
            answer = await client.options("/models/m/v1/x", headers={"origin": PAGE, **ASKED})
            assert answer.status_code == 204


@pytest.fixture(scope="module")
def router() -> Iterator[tuple[httpx.Client, Proxy]]:
    proxy = Proxy()
    with serve_asgi(proxy) as upstream:
        port = httpx.URL(upstream).port or 0
        app = Cors(RouterApp(CONFIG, Cluster().fetch, ("127.0.0.1", port)), [PAGE])
        with (
            serve_asgi(CancelOnDisconnect(app), lifespan="on") as url,  # type: ignore[arg-type]
            httpx.Client(base_url=url, headers={"origin": PAGE}) as client,
        ):
            yield client, proxy


@pytest.mark.parametrize(
    ("method", "path", "model", "status"),
    [
        ("GET", "/v1/models", None, 200),
        ("GET", "/nowhere", None, 404),
        ("GET", "/v1/chat/completions", None, 405),
        ("POST", "/v1/plain", "m", 200),
        ("POST", "/v1/stream", "m", 200),
        ("POST", "/v1/teapot", "m", 418),
        ("POST", "/v1/plain", "nobody", 404),
        ("POST", "/v1/plain", "starting", 503),
        ("POST", "/v1/page500", "m", 502),
    ],
)
def test_the_routers_answers(
    router: tuple[httpx.Client, Proxy], method: str, path: str, model: str | None, status: int
) -> None:
    client, _ = router
    answer = client.request(method, path, json={"model": model} if model else None)
    assert answer.status_code == status
    assert answer.headers.get_list("access-control-allow-origin") == [PAGE]


def test_the_router_answers_preflights_of_models(router: tuple[httpx.Client, Proxy]) -> None:
    client, proxy = router
    before = len(proxy.requests)
    for path in ("/v1/chat/completions", "/v1/images/generations", "/models/m/v1/x", "/ui"):
        assert client.options(path, headers=ASKED).status_code == 204
    assert len(proxy.requests) == before
