"""What a replica changes in the heads of answers, whoever gives them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.servers import serve_asgi
from truthgpt_serve.http.headers import HOP_BY_HOP, EditedHeads, end_to_end, of_application
from truthgpt_serve.http.sse import with_stream_headers


def answer_with(*headers: tuple[bytes, bytes], body: bytes = b"data: x\n\n") -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return EditedHeads(app, of_application, with_stream_headers)


def headers_of(app: Any) -> httpx.Headers:
    with serve_asgi(app) as url:
        answer = httpx.get(url)
    assert answer.content == b"data: x\n\n"
    return answer.headers


@pytest.mark.parametrize("name", [b"x-request-id", b"X-Request-Id"])
def test_the_applications_own_request_id_goes(name: bytes) -> None:
    headers = headers_of(answer_with((b"content-type", b"text/plain"), (name, b"abc")))
    assert headers["content-type"] == "text/plain"
    assert not {"x-request-id", "cache-control", "x-accel-buffering"} & set(headers)


async def test_other_connections_pass_untouched() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (scope, receive, send) == ({"type": "lifespan"}, 1, 2)

    other: Any = EditedHeads(app, of_application)
    await other({"type": "lifespan"}, 1, 2)


@pytest.mark.parametrize("kind", [b"text/event-stream", b"Text/Event-Stream; charset=utf-8"])
@pytest.mark.parametrize(
    ("given", "cache"),
    [
        ((), "no-cache"),
        (((b"Cache-Control", b"max-age=60"), (b"X-Accel-Buffering", b"yes")), "no-cache"),
        (((b"cache-control", b"private, no-store"),), "private, no-store"),
    ],
)
def test_event_streams_are_neither_kept_nor_held_back(
    kind: bytes, given: tuple[tuple[bytes, bytes], ...], cache: str
) -> None:
    headers = headers_of(answer_with((b"Content-Type", kind), *given))
    assert headers.get_list("cache-control") == [cache]
    assert headers.get_list("x-accel-buffering") == ["no"]


@pytest.mark.parametrize(
    ("connection", "kept"),
    [
        (b"keep-alive", [b"accept", b"x-private"]),
        (b"close, X-Private", [b"accept"]),
        (b"x-private,accept", []),
    ],
)
def test_headers_of_one_hop_end_there(connection: bytes, kept: list[bytes]) -> None:
    headers = [(name, b"a") for name in (b"te", b"accept", b"keep-alive", b"x-private", b"date")]
    headers.append((b"connection", connection))
    assert [name for name, _ in end_to_end(headers, HOP_BY_HOP | {b"date"})] == kept
