"""vLLM's errors in words that clients know."""

from __future__ import annotations

import json
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, model_validator
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from deployments.vllm.application.errors import (
    ReadableErrors,
    clean_events,
    clean_message,
    report_validation,
)

LONG = "This model's maximum context length is 16 tokens. However, your prompt contains 20"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("n must be at least 1, got 0.", "n must be at least 1, got 0."),
        ("must be positive. (parameter=n, value=-1.0)", "must be positive."),
        (
            "requires --enable-auto-tool-choice and --tool-call-parser to be set",
            "requires `serving.engine.enable_auto_tool_choice` and "
            "`serving.engine.tool_call_parser` to be set",
        ),
        ("the text --no-such-flag", "the text --no-such-flag"),
        (f"{LONG} (parameter=input_tokens, value=20)", LONG),
        (
            "max_tokens=50 cannot be greater than max_model_len=16. (parameter=max_tokens)",
            "This model's maximum context length is 16 tokens. "
            "max_tokens=50 cannot be greater than max_model_len=16.",
        ),
        (
            "The engine prompt length 20 exceeds the max_model_len 16. Please reduce prompt.",
            "This model's maximum context length is 16 tokens. "
            "The engine prompt length 20 exceeds the max_model_len 16. Please reduce prompt.",
        ),
        (
            "Input length (20) exceeds model's maximum context length (16).",
            "This model's maximum context length is 16 tokens. "
            "Input length (20) exceeds model's maximum context length (16).",
        ),
        (
            "max_tokens_per_doc (20) must be less than max_model_len (16).",
            "This model's maximum context length is 16 tokens. "
            "max_tokens_per_doc (20) must be less than max_model_len (16).",
        ),
    ],
)
def test_messages(given: str, expected: str) -> None:
    assert clean_message(given) == expected


def test_only_errors_among_events_are_changed() -> None:
    text = json.dumps({"choices": [{"text": '{"error": "in a text"}', "error": None}]}).encode()
    error = {"message": "lost (parameter=x)", "type": "InternalServerError", "code": 500}
    data = b"data: %s\n\ndata: %s\n\ndata: [DONE]\n\n" % (
        text,
        json.dumps({"error": {**error, "param": None}}).encode(),
    )
    first, second, third, rest = clean_events(data, "/v1/completions").split(b"\n\n")
    assert (first, third, rest) == (b"data: " + text, b"data: [DONE]", b"")
    assert json.loads(second.removeprefix(b"data: ")) == {
        "error": {"message": "lost", "type": "api_error", "param": None, "code": None}
    }


def test_an_error_in_a_stream_of_messages() -> None:
    error = {"type": "error", "error": {"type": "internal_error", "message": "lost"}}
    data = b"event: error\ndata: %s\n\n" % json.dumps(error).encode()
    name, line, *_ = clean_events(data, "/v1/messages").split(b"\n")
    assert name == b"event: error"
    error["error"] = {"type": "api_error", "message": "lost"}
    assert json.loads(line.removeprefix(b"data: ")) == error


class Inner(BaseModel):
    number: int


class Body(BaseModel):
    size: Annotated[int, Field(ge=1)] = 1
    items: list[Inner | str] = []

    @model_validator(mode="after")
    def check(self) -> Body:
        if self.size == 7:
            raise ValueError("seven is not possible")
        return self


class Pair(BaseModel):
    query: str | list[str]
    document: str


class Texts(BaseModel):
    text_1: str | list[str]
    text_2: str


def create_app() -> Any:
    app = FastAPI()

    @app.post("/forms")
    async def forms(body: Pair | Texts) -> None: ...

    @app.post("/")
    async def take(body: Body) -> None: ...

    @app.post("/typed", dependencies=[Depends(validate_json_request)])
    async def typed(body: Body) -> None: ...

    @app.get("/large")
    async def large() -> JSONResponse:
        return JSONResponse({"error": {"message": "x" * 100_000}}, 400)

    @app.get("/small")
    async def small() -> JSONResponse:
        return JSONResponse({"error": {"message": "no (parameter=a)", "code": 400}}, 400)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def events() -> Any:
            yield b'data: {"choices": []}\n\n'
            yield b'data: {"error": {"message": "gone", "code": 503}}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")

    report_validation(app)
    return ReadableErrors(app)


async def send(method: str, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(create_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.request(method, path, **options)


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        (
            {"size": 0},
            "size",
            "`size`: Input should be greater than or equal to 1 (greater_than_equal)",
        ),
        ({"size": 7}, None, "seven is not possible"),
        ({"items": [{"number": "x"}]}, "items.0.number", "`items.0.number`: Input should be a"),
        ({"items": [{}] * 30}, "items.0.number", "; and 50 more"),
    ],
)
async def test_wrong_fields_are_named(body: dict[str, Any], param: str | None, text: str) -> None:
    answer = await send("POST", "/", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert text in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(error["message"]) < 2000


@pytest.mark.parametrize("content_type", ["text/plain", "a", ""])
async def test_a_body_of_another_type_is_refused(content_type: str) -> None:
    answer = await send("POST", "/typed", content=b"{}", headers={"content-type": content_type})
    assert answer.status_code == 400
    assert "'application/json'" in answer.json()["error"]["message"]


async def test_answers_are_whole() -> None:
    small = await send("GET", "/small")
    assert small.json() == {"error": {"message": "no", "code": 400}}
    assert small.headers["content-length"] == str(len(small.content))
    large = await send("GET", "/large")
    assert len(large.json()["error"]["message"]) == 100_000
    stream = (await send("GET", "/stream")).text.split("\n\n")
    assert stream[0] == 'data: {"choices": []}'
    assert json.loads(stream[1].removeprefix("data: "))["error"]["code"] == "model_unavailable"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (
            {"text_1": None, "text_2": "x"},
            "text_1",
            "`text_1`: Input should be a valid string; `text_1`: Input should be a valid list",
        ),
        ({"query": "x", "document": 5}, "document", "`document`: Input should be a valid string"),
    ],
)
async def test_of_several_forms_the_nearest_is_told(
    body: dict[str, Any], param: str, message: str
) -> None:
    answer = await send("POST", "/forms", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["message"]) == (param, message)


async def test_a_fault_that_several_forms_have_is_told_once() -> None:
    error = (await send("POST", "/forms", json={})).json()["error"]
    assert error["message"].count("`query`: Field required") == 1
    assert error["message"].count("`text_1`: Field required") == 1
