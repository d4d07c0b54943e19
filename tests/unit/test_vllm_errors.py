"""FastAPI's own errors come in the envelope; those of its routes stay theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request, Response

from deployments.vllm.errors import answer_in_envelope


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete() -> None:
        raise HTTPException(404, "the engine's own")

    @app.exception_handler(HTTPException)
    async def answer(request: Request, error: HTTPException) -> Response:
        return Response(error.detail, error.status_code)

    app.middleware_stack = app.build_middleware_stack()  # as vLLM leaves it
    answer_in_envelope(app, "tiny")
    transport = httpx.ASGITransport(app, root_path="/models/tiny")
    async with httpx.AsyncClient(transport=transport, base_url="http://x/models/tiny") as client:
        yield client


def envelope(message: str, code: str) -> dict[str, Any]:
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def test_a_path_and_a_method_that_are_not_there(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/nosuch")
    assert answer.status_code == 404
    message = "there is no /v1/nosuch here; /docs lists the routes"
    assert answer.json() == envelope(message, "not_found")
    answer = await client.post("/v1/images/edits")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported"
    answer = await client.post("/v1/messages")
    assert (answer.status_code, answer.json()["type"]) == (400, "error")
    answer = await client.get("/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.headers["content-type"] == "application/json"
    message = "/v1/completions takes POST, not GET"
    assert answer.json() == envelope(message, "method_not_allowed")


async def test_what_a_route_raises_is_answered_by_its_own_handler(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/v1/completions")
    assert (answer.status_code, answer.text) == (404, "the engine's own")
