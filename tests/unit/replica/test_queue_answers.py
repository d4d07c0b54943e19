"""The 429 of Ray Serve's queue, in the form of the request's API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import convert_object_to_asgi_messages

from truthgpt_serve.http.asgi import Receive, Scope, Send, send_json
from truthgpt_serve.replica.queue_answers import QueueAnswers

PAGE = "https://chat.example.com"


async def full(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers as Ray's replica does where its queue is full, and says where it is mounted."""
    scope["root_path"] = "/models/m"
    text = "Request dropped due to backpressure"
    for message in convert_object_to_asgi_messages(text, status_code=429):
        await send(message)


async def own(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, {"error": "mine"}, status=429)


async def ask(app: Any, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(QueueAnswers(app, "m", 3, [PAGE]))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.post(f"/models/m{path}", headers={"origin": PAGE})


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/v2/models/m/infer"])
async def test_a_full_queue_is_an_error_of_the_api(path: str) -> None:
    answer = await ask(full, path)
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert answer.status_code == 429
    assert message == "The queue of model 'm' is full: 3 requests run or wait; try again in 1 s"
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert ("type" in answer.json()) == (path == "/v1/messages")


async def test_another_429_passes() -> None:
    answer = await ask(own, "/v1/completions")
    assert answer.json() == {"error": "mine"}
