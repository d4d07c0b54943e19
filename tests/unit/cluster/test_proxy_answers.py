"""Errors of Ray's Python proxy have the form of the request's API."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from truthgpt_serve.cluster.proxy_answers import ROUTER_HEADER, ProxyAnswers

DROPPED = "Request dropped due to backpressure (num_queued_requests=4, max_queued_requests=3)."


def answering(status: int, text: str, kind: str = "text/plain", *more: tuple[bytes, bytes]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"Content-Type", kind.encode()), *more]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        half = len(text) // 2
        await send({"type": "http.response.body", "body": text[:half].encode(), "more_body": True})
        await send({"type": "http.response.body", "body": text[half:].encode()})

    return app


async def ask(app: Any, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(ProxyAnswers(app, ["*"]), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.post(path, headers={"origin": "http://page", **headers})


@pytest.mark.parametrize(
    ("path", "owner"),
    [("/models/m/v1/completions", "model 'm'"), ("/v1/completions", "router")],
)
async def test_a_full_queue(path: str, owner: str) -> None:
    answer = await ask(answering(429, DROPPED), path)
    message = f"The queue of {owner} is full: 3 requests run or wait; try again in 1 s"
    error = {"message": message, "type": "rate_limit_error", "param": None, "code": "overloaded"}
    assert (answer.status_code, answer.json()) == (429, {"error": error})
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_the_form_is_that_of_the_api() -> None:
    app = answering(429, DROPPED)
    found = (await ask(app, "/models/m/v1/messages")).json()
    assert (found["type"], found["error"]["type"]) == ("error", "rate_limit_error")
    found = (await ask(app, "/models/m/v2/models/m/infer")).json()
    assert found["error"].startswith("The queue of model 'm' is full")


@pytest.mark.parametrize(
    ("status", "text", "code", "later"),
    [
        (404, "Path '/x' not found.", "not_found", False),
        (503, "Deployment is unavailable.", "model_unavailable", True),
        (408, "Request timed out.", "request_timeout", False),
        (500, "It broke.", None, False),
    ],
)
async def test_other_errors(status: int, text: str, code: str | None, later: bool) -> None:
    answer = await ask(answering(status, text), "/models/m/v1/completions")
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == text
    assert answer.json()["error"]["code"] == code
    assert ("retry-after" in answer.headers) == later


async def test_what_is_no_error_in_plain_text_passes() -> None:
    for app in (
        answering(200, "text"),
        answering(429, json.dumps({"error": {}}), "application/json", (b"retry-after", b"7")),
        answering(500, "<p>", "text/html"),
    ):
        plain = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=plain, base_url="http://x") as client:
            expected = await client.post("/models/m/x")
        answer = await ask(app, "/models/m/x")
        assert (answer.status_code, answer.text) == (expected.status_code, expected.text)
        assert answer.headers == expected.headers


async def test_a_router_reads_rays_own() -> None:
    answer = await ask(answering(429, DROPPED), "/models/m/x", **{ROUTER_HEADER.decode(): "/"})
    assert (answer.status_code, answer.text) == (429, DROPPED)


@pytest.mark.parametrize("raises", [False, True])
async def test_a_replica_that_fails(raises: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if raises:
            raise ConnectionError

    answer = await ask(app, "/models/m/v1/completions")
    assert answer.status_code == 502
    message = "A replica of the model 'm' failed before it answered"
    assert answer.json()["error"]["message"] == message
