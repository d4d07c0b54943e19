"""What a client sees of a request that Ray Serve ends at the limit of the client's own header."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import (
    convert_object_to_asgi_messages,
    parse_request_timeout_header,
)

from tests.support.servers import serve_asgi
from truthgpt_serve.http.asgi import Receive, Scope, Send, send_json
from truthgpt_serve.http.client_limits import HEADER, ClientLimits, read_limit
from truthgpt_serve.http.sse import DONE_EVENT, format_event

PAGE = "https://chat.example.com"
SAID = f"The request did not finish within 0.1 s, the limit of its header `{HEADER}`"
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream")],
}


async def refused(scope: Scope, receive: Receive, send: Send) -> None:
    """Ends as Ray's replica does where nothing has been answered, and says where it is mounted."""
    scope["root_path"] = "/models/m"
    await asyncio.sleep(0.11)
    for message in convert_object_to_asgi_messages("Request timed out after Nones.", 408):
        await send(message)
    raise asyncio.CancelledError


async def cut(scope: Scope, receive: Receive, send: Send) -> None:
    """Ends as Ray's replica does in a stream, of which a task that it has cancelled sends on."""
    scope["root_path"] = "/models/m"
    await send(START)
    await send({"type": "http.response.body", "body": format_event(b"1"), "more_body": True})
    await asyncio.sleep(0.11)
    late = {"type": "http.response.body", "body": format_event(b"2"), "more_body": True}
    scope["late"] = asyncio.get_running_loop().call_later(
        0.01, lambda: asyncio.ensure_future(send(late))
    )
    raise asyncio.CancelledError


async def unfinished(scope: Scope, receive: Receive, send: Send) -> None:
    """Ends as Ray's fallback proxy does in a stream, within an event."""
    await send(START)
    await send({"type": "http.response.body", "body": b"data: 1\n\nda", "more_body": True})
    await asyncio.sleep(0.11)


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(0.11)
    await send(START)
    await send({"type": "http.response.body", "body": b"data: 1\n\nda", "more_body": True})
    await send({"type": "http.response.body", "body": b"ta: [DONE]\n\n"})


async def own(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, {"error": "mine"}, status=408)


async def left(scope: Scope, receive: Receive, send: Send) -> None:
    """Ends as Ray's replica does where the client has left."""
    await send(START)
    raise asyncio.CancelledError


@asynccontextmanager
async def asking(app: Any, limit: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {HEADER: limit, "origin": PAGE}
    with serve_asgi(ClientLimits(app, [PAGE])) as url:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            yield client


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/v2/models/m/infer"])
async def test_before_an_answer_it_is_an_error_of_the_api(path: str) -> None:
    async with asking(refused, "0.1") as client:
        answer = await client.post(f"/models/m{path}")
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["content-type"]) == (408, "application/json")
    assert (error if isinstance(error, str) else error["message"]) == SAID
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert ("type" in answer.json()) == (path == "/v1/messages")


@pytest.mark.parametrize("app", [cut, unfinished])
async def test_in_a_stream_it_is_the_last_event(app: Any) -> None:
    async with asking(app, "0.1") as client:
        answer = await client.post("/models/m/v1/completions")
    first, last, rest = answer.text.split("\n\n")
    assert (answer.status_code, first, rest) == (200, "data: 1", "")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["message"], error["code"]) == (SAID, "request_timeout")


@pytest.mark.parametrize("limit", ["0.1", "soon", "-1", "0", "nan", "inf", "9"])
async def test_a_whole_answer_passes(limit: str) -> None:
    async with asking(whole, limit) as client:
        answer = await client.post("/models/m/v1/completions")
    assert answer.content == format_event(b"1") + DONE_EVENT


@pytest.mark.parametrize("last", [b"0.1", b"soon", b"-1"])
def test_of_several_the_last_counts_as_for_ray(last: bytes) -> None:
    headers = [(HEADER.encode(), b"9"), (b"accept", b"*/*"), (HEADER.encode(), last)]
    limit_s = read_limit({"type": "http", "headers": headers})
    assert limit_s == parse_request_timeout_header(dict(headers), None)
    assert limit_s == (0.1 if last == b"0.1" else None)


async def test_another_408_passes() -> None:
    async with asking(own, "0.1") as client:
        assert (await client.post("/x")).json() == {"error": "mine"}


async def test_one_whose_client_left_ends_as_before() -> None:
    scope = {"type": "http", "path": "/x", "headers": [(HEADER.encode(), b"60")]}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(asyncio.CancelledError):
        await ClientLimits(left, [])(scope, receive, send)
    assert sent == [START]
