"""A stream that begins with an error has its status, and any other stream passes as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from deployments.vllm.application.early_errors import EarlyErrors

HEAD = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-request-id", b"abc")]
BAD = {"message": "no such token", "type": "BadRequestError", "param": "logit_bias", "code": 400}


def serve(
    *bodies: bytes, path: str = "/v1/completions", headers: Any = HEAD, status: int = 200
) -> tuple[int, dict[bytes, bytes], list[bytes]]:
    """Returns status, headers and what came of the body for what an application sends."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(EarlyErrors(app)(scope, None, send))  # type: ignore[arg-type]
    assert [one["type"] for one in sent].count("http.response.start") == 1
    assert not sent[-1].get("more_body")
    return sent[0]["status"], dict(sent[0]["headers"]), [one["body"] for one in sent[1:]]


def event(value: Any, name: bytes = b"") -> bytes:
    return name + b"data: " + json.dumps(value).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BAD, 400),
        ({**BAD, "code": 503}, 503),
        ({**BAD, "code": None, "type": "invalid_request_error"}, 400),
        ({"message": "it failed"}, 500),
    ],
)
def test_an_error_that_comes_first_has_its_status(error: dict[str, Any], status: int) -> None:
    got, headers, bodies = serve(event({"error": error}), b"data: [DONE]\n\n")
    assert got == status
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"] == b"abc"
    answer = json.loads(b"".join(bodies))["error"]
    assert answer["message"] == error["message"]
    assert answer["param"] == error.get("param")


def test_an_error_of_anthropics_api_keeps_its_form() -> None:
    value = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    status, _, bodies = serve(event(value, b"event: error\n"), path="/v1/messages")
    assert status == 400
    assert json.loads(b"".join(bodies)) == value


@pytest.mark.parametrize(
    "first",
    [
        event({"choices": [{"text": 'an "error" in a text'}]}),
        event({"error": None}),
        event({"type": "response.created", "response": {"error": None}}),
        b": ping\n\n",
        b'data: {"error" broken',
    ],
)
def test_another_stream_passes_as_it_comes(first: bytes) -> None:
    late = event({"error": BAD})
    status, headers, bodies = serve(first, late)
    assert (status, headers) == (200, dict(HEAD))
    assert bodies == [first, late, b""]


def test_an_empty_stream_and_a_whole_answer_pass() -> None:
    assert serve() == (200, dict(HEAD), [b""])
    body = json.dumps({"error": BAD}).encode()
    plain = [(b"content-type", b"application/json")]
    assert serve(body, headers=plain)[2] == [body, b""]
    assert serve(body, status=400)[0] == 400


def test_streams_of_the_framework_that_vllm_uses_pass() -> None:
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete(fails: bool) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            if fails:
                yield event({"error": BAD}).decode()
            for index in range(3):
                yield f"data: {index}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def main() -> None:
        transport = httpx.ASGITransport(EarlyErrors(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            answer = await client.post("/v1/completions", params={"fails": False})
            assert answer.status_code == 200
            assert answer.text == "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
            answer = await client.post("/v1/completions", params={"fails": True})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "logit_bias"

    asyncio.run(main())
