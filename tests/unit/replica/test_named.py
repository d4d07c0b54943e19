"""What a model's own address refuses: other methods, and bodies that do not name the model."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, send_json
from truthgpt_serve.replica.named import NamedRequests
from truthgpt_serve.server.bounded import BoundedRequests
from truthgpt_serve.server.gathered_bodies import GatheredBodies

TEXT = "/v1/completions"
FORM = "multipart/form-data; boundary=b"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the length of the body; one that breaks off is answered 400, as FastAPI does."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            await send_json(send, {"detail": "There was an error parsing the body"}, status=400)
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send_json(send, {"size": size})


async def ask(
    method: str = "POST", path: str = TEXT, body: Any = b"", content_type: str = "application/json"
) -> httpx.Response:
    """Asks with the body as it comes, and as replicas have it: gathered, if it is there at once."""
    app: Any = NamedRequests(application, ("m", "org/m:1", "adapter"))
    content = body if not isinstance(body, dict) else json.dumps(body).encode()
    answer = await ask_app(app, method, path, content, content_type)
    if isinstance(content, bytes):
        again = await ask_app(GatheredBodies(app, 9, "m"), method, path, content, content_type)
        assert (again.status_code, again.content) == (answer.status_code, answer.content)
    return answer


async def ask_app(
    app: Any, method: str, path: str, content: Any, content_type: str
) -> httpx.Response:
    bounded = BoundedRequests(app, "m", max_body_bytes=2**20, max_request_s=10)
    transport = httpx.ASGITransport(bounded)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        headers = {"content-type": content_type}
        return await client.request(method, path, content=content, headers=headers)


async def in_pieces(*pieces: bytes) -> Any:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize("name", ["m", "org/m:1", "adapter"])
async def test_a_request_for_the_model_passes_whole(name: str) -> None:
    body = {"model": name, "prompt": "x"}
    answer = await ask(body=body)
    assert answer.json() == {"size": len(json.dumps(body))}


async def test_a_body_in_pieces_passes_whole() -> None:
    pieces = (b'{"model": "m", "prompt": "', b"x" * 1000, b'"}')
    answer = await ask(body=in_pieces(*pieces))
    assert answer.json() == {"size": sum(map(len, pieces))}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "the request has no `model`"),
        ({"model": None}, 400, "`model` must be a string (found `null`)"),
        ({"model": ""}, 400, "`model` is empty"),
        ({"model": 7}, 400, "`model` must be a string (found `int`)"),
        (b'{"model": "m", "model": "m"}', 400, "`model` is given twice"),
        (b"", 400, "the request body is not valid JSON"),
        ({"model": "other"}, 404, "the model 'other' does not exist here; this is 'm'"),
    ],
)
async def test_a_body_that_does_not_name_the_model_is_refused(
    body: Any, status: int, message: str
) -> None:
    answer = await ask(body=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith(message)


async def test_a_second_name_behind_the_first_pieces_is_refused() -> None:
    answer = await ask(body=in_pieces(b'{"model": "m", "prompt": "x"', b', "model": "other"}'))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("`model` is given twice")


async def test_forms_name_their_model_too() -> None:
    part = '--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n{}\r\n--b--\r\n'
    for name, status in (("m", 200), ("other", 404)):
        answer = await ask(body=part.format(name).encode(), content_type=FORM)
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", TEXT, 405),
        ("PUT", TEXT, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/models/org/m:1", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/responses/x", 200),
        ("POST", "/v1/responses/x/cancel", 200),
        ("DELETE", "/v1/responses/x", 200),
        ("POST", "/own/route", 200),
        ("POST", "/v2/models/m/infer", 200),
    ],
)
async def test_only_routes_of_the_service_are_checked(method: str, path: str, status: int) -> None:
    answer = await ask(method, path, b"")
    assert answer.status_code == status


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/models/m", "/v2/models/adapter"])
async def test_reading_the_tensor_protocol_passes(path: str) -> None:
    assert (await ask("GET", path)).json() == {"size": 0}


@pytest.mark.parametrize("name", ["adapter", "org/m:1", "org/sub/m"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/{}"),
        ("GET", "/v2/models/{}"),
        ("GET", "/v2/models/{}/ready"),
        ("POST", "/v2/models/{}/infer"),
        ("GET", "/v2/models/{}/versions/1"),
        ("POST", "/v2/models/{}/versions/1/infer"),
    ],
)
async def test_a_key_of_one_name_has_no_other(method: str, path: str, name: str) -> None:
    named = NamedRequests(application, ("m", "adapter", "org/m:1", "org/sub/m"))

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        await named({**scope, SCOPE_KEY: Identity("team", models=(name,))}, receive, send)

    bounded = BoundedRequests(identified, "m", max_body_bytes=2**20, max_request_s=10)
    transport = httpx.ASGITransport(bounded)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for written in (name, quote(name, safe="")):
            answer = await client.request(method, path.format(written), content=b"")
            assert answer.status_code == 200, written
        for other in {"m", "org/m", "org/m:1/more", "adapter", "org/m:1"} - {name}:
            answer = await client.request(method, path.format(other), content=b"")
            assert answer.status_code == 404, other


@pytest.mark.parametrize(
    ("models", "reaches"), [(None, True), (("m",), True), (("adapter",), False), ((), False)]
)
async def test_a_key_of_an_adapter_has_no_websocket(
    models: tuple[str, ...] | None, reaches: bool
) -> None:
    reached, sent = [], []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["path"])

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "websocket", "path": "/own", "headers": [], "extensions": {}}
    scope[SCOPE_KEY] = Identity("team", models=models)
    await NamedRequests(note, ("m", "adapter"))(scope, receive, send)
    assert reached == (["/own"] if reaches else [])
    assert [message["type"] for message in sent] == ([] if reaches else ["websocket.close"])
