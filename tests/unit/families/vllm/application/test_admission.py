"""How many numbers of vectors an answer may hold depends on how they are written."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from deployments.vllm.application.admission import (
    MAX_VALUES,
    MAX_VALUES_COMPARED,
    MAX_VALUES_IN_JSON,
    AdmittedRequests,
)
from deployments.vllm.sharing.round_robin import current_request
from truthgpt_serve.config.text_limits import TextLimitsSection
from truthgpt_serve.server.text_limits import TextLimits


async def admit(num_values: int, scope: Any, receive: Any, send: Any) -> None:
    request = current_request()
    assert request is not None
    try:
        request.add_values(num_values)
    except ValueError as error:
        await PlainTextResponse(str(error), 400)(scope, receive, send)
    else:
        await PlainTextResponse("")(scope, receive, send)


@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [
        ("/pooling", {"input": "x"}, MAX_VALUES_IN_JSON),
        ("/pooling", {"input": "x", "encoding_format": "float"}, MAX_VALUES_IN_JSON),
        ("/v1/embeddings", {"input": "x", "encoding_format": "base64"}, MAX_VALUES),
        ("/v1/score", {"text_1": "x", "text_2": "y"}, MAX_VALUES_COMPARED),
    ],
)
async def test_the_most_numbers_of_vectors(path: str, body: dict[str, Any], limit: int) -> None:
    for number, status in ((limit, 200), (limit + 1, 400)):

        async def app(scope: Any, receive: Any, send: Any, number: int = number) -> None:
            await admit(number, scope, receive, send)

        limits = TextLimits(TextLimitsSection())
        admitted = AdmittedRequests(app, limits, None, max_body_bytes=1000, max_request_s=10)
        transport = httpx.ASGITransport(admitted)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            answer = await client.post(path, content=json.dumps(body))
        assert answer.status_code == status, answer.text
