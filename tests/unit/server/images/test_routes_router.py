"""Image requests through the router: large forms, long events, addresses, its own pages."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.support.image_classes import Studio
from tests.support.image_files import encode, mask_png, png
from tests.support.servers import serve_asgi
from tests.unit.server.images.test_routes import PROMPT, image_spec, opened
from truthgpt_serve.cluster.state import ApplicationState, ServeState
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.router.openapi import docs_html, openapi_document
from truthgpt_serve.server import create_app

LIMIT_S = 10
"""For 20 MB there and back, decoded and encoded; one of both takes about 1 s on one core."""


@contextmanager
def routed(app: Any) -> Iterator[str]:
    """Serves `app` as the model `painter` behind a router; yields the router's address."""

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/-/routes":
            headers = [(b"content-length", b"2")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        await app({**scope, "root_path": "/models/painter"}, receive, send)

    state = ServeState({"painter": ApplicationState(
        "painter", "/models/painter", "RUNNING", "", 1, None, 0.0
    )})  # fmt: skip
    with serve_asgi(mounted, lifespan="on") as model:
        proxy = ("127.0.0.1", int(model.rpartition(":")[2]))
        with serve_asgi(RouterApp(RouterConfig(), lambda: state, proxy), lifespan="on") as url:
            yield url


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    cfg = {"task": "image-generation"}
    with routed(create_app(image_spec(Studio), cfg, name="painter")) as url:
        yield url


@pytest.fixture(scope="module")
def large() -> bytes:
    """A PNG of 20 MB."""
    size = (2600, 2600)
    data = encode(Image.frombytes("RGB", size, os.urandom(3 * size[0] * size[1])), compress_level=0)
    assert len(data) > 20_000_000
    return data


def test_openais_client_works_through_the_router(service: str) -> None:
    with openai.OpenAI(base_url=f"{service}/v1", api_key="k", max_retries=0) as client:
        answer = client.images.generate(model="painter", prompt=PROMPT, n=2)
        assert answer.data is not None
        assert len(answer.data) == 2
        answer = client.images.edit(
            model="painter", image=[png(), png()], mask=mask_png(), prompt=PROMPT
        )
        assert answer.size == "40x30"
        events = list(
            client.images.generate(model="painter", prompt=PROMPT, stream=True, partial_images=3)
        )
    assert [event.type.rpartition(".")[2] for event in events] == [
        *["partial_image"] * 3,
        "completed",
    ]


@pytest.mark.parametrize("place", ["first", "between", "last"])
@pytest.mark.parametrize("chunked", [False, True])
def test_large_uploads_with_the_model_anywhere(
    service: str, large: bytes, place: str, chunked: bool
) -> None:
    fields: list[tuple[str, Any]] = [("image", ("a.png", large)), ("prompt", (None, PROMPT))]
    fields.insert({"first": 0, "between": 1, "last": 2}[place], ("model", (None, "painter")))
    request = httpx.Request("POST", f"{service}/v1/images/edits", files=fields)
    body = request.read()

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), 100_000):
            yield body[at : at + 100_000]

    start = time.monotonic()
    answer = httpx.post(
        str(request.url),
        content=pieces() if chunked else body,
        headers={"content-type": request.headers["content-type"]},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text[:300]
    result = opened(answer.json()["data"][0]["b64_json"])
    assert time.monotonic() - start < LIMIT_S
    assert result.tobytes() == Image.open(io.BytesIO(large)).tobytes()


def test_a_large_image_streams_through(service: str, large: bytes) -> None:
    with openai.OpenAI(base_url=f"{service}/v1", api_key="k", max_retries=0) as client:
        [event] = client.images.edit(model="painter", image=large, prompt=PROMPT, stream=True)
    assert opened(event.b64_json).tobytes() == Image.open(io.BytesIO(large)).tobytes()


def test_an_upload_above_the_routers_limit_is_413(service: str) -> None:
    files = {"image": ("a", bytes(65 * 2**20))}
    answer = httpx.post(f"{service}/v1/images/edits", data={"model": "painter"}, files=files)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        ("multipart/form-data", "the multipart form has no boundary"),
        (
            "multipart/form-data; boundary=" + "x" * 257,
            "the request body is not a valid multipart form: Boundary length 257",
        ),
    ],
)
def test_a_form_that_the_router_cannot_read(service: str, content_type: str, message: str) -> None:
    headers = {"content-type": content_type}
    answer = httpx.post(f"{service}/v1/images/edits", content=b"x", headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"].startswith(message)


def test_errors_of_the_model_pass_through(service: str) -> None:
    body = {"model": "painter", "prompt": PROMPT, "stepps": 1}
    answer = httpx.post(f"{service}/v1/images/generations", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stepps"


# -- streams that break


class Cut:
    """Streams one whole event, then breaks off: at its end, or within another of any length."""

    def __init__(self, rest: bytes) -> None:
        self._rest = rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await receive()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for body in (b"data: whole\n\n", self._rest[:100_000], self._rest[100_000:]):
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.sleep(0.05)
        raise ConnectionError  # uvicorn closes the connection without the last chunk


@pytest.mark.parametrize("num_bytes", [0, 1000, 65_000])
def test_a_stream_that_breaks_off_ends_with_an_error_event(num_bytes: int) -> None:
    body = {"model": "painter", "prompt": PROMPT}
    with routed(Cut((b"data: " + b"x" * num_bytes) if num_bytes else b"")) as url:
        answer = httpx.post(f"{url}/v1/images/generations", json=body)
    first, last = answer.text.strip().split("\n\n")
    assert first == "data: whole"
    assert "closed the connection" in last


@pytest.mark.parametrize("num_bytes", [70_000, 200_000])
def test_within_a_long_event_the_connection_is_closed(num_bytes: int) -> None:
    body = {"model": "painter", "prompt": PROMPT}
    received = bytearray()

    def read(url: str) -> None:
        with httpx.stream("POST", f"{url}/v1/images/generations", json=body) as answer:
            for piece in answer.iter_raw():
                received.extend(piece)

    with (
        routed(Cut(b"data: " + b"x" * num_bytes)) as url,
        pytest.raises(httpx.RemoteProtocolError),  # not an event glued to half an event
    ):
        read(url)
    assert received.startswith(b"data: whole\n\n")
    assert b"error" not in received


# -- pages


def test_the_pages_of_routes(service: str) -> None:
    answer = httpx.get(f"{service}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == openapi_document()
    page = httpx.get(f"{service}/docs")
    assert page.content == docs_html()
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_image_routes_take_post(service: str) -> None:
    answer = httpx.get(f"{service}/v1/images/generations")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
