"""Compressed bodies over HTTP, at the router and at a model's own address."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from tests.support.sample_models import Upper, spec_of
from tests.support.servers import serve_asgi
from tests.unit.http.codings.packing import MIB, PACK, bomb
from tests.unit.router.test_relay import CancelOnDisconnect, Cluster, Proxy
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.http.asgi import LEAVING_KEY, Message
from truthgpt_serve.http.codings.body import FREE_BYTES, plain_request
from truthgpt_serve.http.codings.decoder import CODINGS
from truthgpt_serve.http.codings.growth import Grown
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.router.bodies import request_body
from truthgpt_serve.server import create_app, encoded_bodies

MAX_BODY_BYTES = 4 * MIB


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture(scope="module")
def router(proxy: Proxy) -> Iterator[str]:
    config = RouterConfig(max_body_bytes=MAX_BODY_BYTES, request_timeout_s=4)
    with serve_asgi(proxy) as upstream:
        app = RouterApp(config, Cluster().fetch, ("127.0.0.1", httpx.URL(upstream).port or 0))
        with serve_asgi(CancelOnDisconnect(app), lifespan="on") as url:
            yield url


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    app = create_app(spec_of(Upper), {"task": "custom"}, name="m", max_body_bytes=MAX_BODY_BYTES)
    with serve_asgi(app, lifespan="on") as url:
        yield url


def post(url: str, content: Any, coding: str, **headers: str) -> httpx.Response:
    return httpx.post(url, content=content, headers={"content-encoding": coding, **headers})


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_a_model_gets_what_the_client_meant(
    router: str, proxy: Proxy, coding: str, size: int
) -> None:
    words = random.Random(size).randbytes(size // 2).hex()
    body = json.dumps({"x": words, "model": "m"}).encode()
    answer = post(f"{router}/v1/plain", PACK[coding](body), coding)
    assert answer.status_code == 200
    seen = proxy.requests[-1]
    assert seen["body"] == body
    assert seen["headers"][b"content-length"] == b"%d" % len(body)
    assert not {b"content-encoding", b"transfer-encoding"} & set(seen["headers"])


def test_a_compressed_form_in_chunks(router: str, proxy: Proxy) -> None:
    form = (
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n'
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
    )
    packed = gzip.compress(form)

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(packed), 5):
            yield packed[at : at + 5]

    kind = {"content-type": "multipart/form-data; boundary=b"}
    answer = post(f"{router}/v1/plain", pieces(), "gzip", **kind)
    assert answer.status_code == 200
    assert proxy.requests[-1]["body"] == form


@pytest.mark.parametrize("coding", CODINGS)
def test_the_models_own_address_takes_them_too(model: str, coding: str) -> None:
    body = json.dumps({"model": "m", "inputs": {"text": "abc"}}).encode()
    answer = post(f"{model}/v1/infer", PACK[coding](body), coding)
    assert answer.status_code == 200
    assert answer.json()["outputs"]["text"].startswith("ABC")


@pytest.mark.parametrize("place", ["router", "model"])
def test_what_is_refused(place: str, router: str, model: str, proxy: Proxy) -> None:
    url = f"{router if place == 'router' else model}/v1/infer"
    before = len(proxy.requests)
    body = json.dumps({"model": "m", "inputs": {}}).encode()
    other = post(url, body, "br")
    assert other.status_code == 415
    assert other.headers["accept-encoding"] == "gzip, deflate, zstd"
    assert other.json()["error"]["code"] == "unsupported_content_encoding"
    plain = post(url, body, "gzip")
    assert plain.status_code == 400
    assert "is not valid gzip" in plain.json()["error"]["message"]
    for content, limit in ((bomb(32 * MIB), FREE_BYTES), (bomb(512 * MIB), MAX_BODY_BYTES)):
        large = post(url, content, "deflate")
        assert large.status_code == 413
        assert f"larger than {limit} bytes without" in large.json()["error"]["message"]
    packed = post(url, random.Random(1).randbytes(MAX_BODY_BYTES + 1), "gzip")
    assert packed.status_code == 413
    assert len(proxy.requests) == before


def test_errors_have_the_form_of_their_api(router: str) -> None:
    answer = post(f"{router}/v1/messages", b"{}", "br")
    assert (answer.status_code, answer.json()["type"]) == (415, "error")


@pytest.mark.long("waits for limits of time")
async def test_a_client_that_leaves_or_stops(router: str, proxy: Proxy) -> None:
    before = len(proxy.requests)
    part = (
        b"POST /v1/plain HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\n"
        b"content-length: 100\r\n\r\nabc"
    )
    for leaves in (True, False):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(router).port)
        writer.write(part)
        await writer.drain()
        if not leaves:
            async with asyncio.timeout(30):
                assert b" 408 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert len(proxy.requests) == before


GROWING = gzip.compress(json.dumps({"model": "m", "x": "a" * (900 * 1024)}).encode())


def test_a_body_that_was_sent_on_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "Grown", partial(Grown, MIB))
    with serve_asgi(Proxy()) as upstream:
        address = ("127.0.0.1", httpx.URL(upstream).port or 0)
        app = RouterApp(RouterConfig(request_timeout_s=60), Cluster().fetch, address)
        with (
            serve_asgi(CancelOnDisconnect(app), lifespan="on") as url,
            httpx.Client(base_url=url, headers={"content-encoding": "gzip"}) as client,
            client.stream("POST", "/v1/endless", content=GROWING, timeout=30) as answer,
        ):
            assert answer.status_code == 200
            next(answer.iter_raw())
            assert client.post("/v1/plain", content=GROWING, timeout=30).status_code == 200


async def test_a_body_that_was_parsed_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_bodies, "Grown", partial(Grown, MIB))
    parsed = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        asyncio.get_running_loop().call_later(0.05, parsed.set)
        await receive()

    app = encoded_bodies.EncodedBodies(application, max_body_bytes=2 * MIB, max_request_s=9)
    scope = {"type": "http", "path": "/", "headers": [(b"content-encoding", b"gzip")]}
    sent: list[Message] = []

    async def call() -> None:
        messages = [{"type": "http.request", "body": GROWING}]

        async def receive() -> Message:
            return messages.pop() if messages else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        await app(scope, receive, send)

    for _ in range(3):
        task = asyncio.create_task(call())
        async with asyncio.timeout(30):
            await parsed.wait()
        parsed.clear()
        assert not task.done()
    assert not sent
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_work_on_a_body_frees_what_it_has_grown_by() -> None:
    """Also where leaving is told in another way than by `receive`."""
    released = []
    scope = {"type": "http", "path": "/", "headers": [], LEAVING_KEY: set()}

    async def left() -> Message:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    plain, receive = plain_request(scope, left, [b"x" * 10], lambda: released.append(1))
    connection = Connection(plain, receive, send)
    assert await connection.read(100) == b"x" * 10
    async with connection.guard(10):
        assert not released
        for _ in range(3):
            await asyncio.sleep(0)
        assert released
