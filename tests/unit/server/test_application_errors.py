"""Malformed requests: each has an exact status, message and parameter, in OpenAI's envelope."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from deployments.echo.config import FAMILY
from tests.support.servers import serve_asgi
from truthgpt_serve.body_limits import MAX_BODY_BYTES
from truthgpt_serve.config import RouterConfig, load_model_config
from truthgpt_serve.server import create_app

CHAT, TEXT, INFER = "/v1/chat/completions", "/v1/completions", "/v1/infer"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    app = create_app(FAMILY, {"serving": {}}, name="echo", max_body_bytes=20_000)
    with serve_asgi(app, lifespan="on") as url, httpx.Client(base_url=url) as client:
        yield client


def test_what_a_router_can_admit_is_not_refused_by_default() -> None:
    most = RouterConfig(max_body_bytes=MAX_BODY_BYTES)
    cfg = load_model_config({"model": {"family": "echo"}}).to_cfg()
    assert cfg["serving"]["max_body_bytes"] >= most.max_body_bytes
    with pytest.raises(ValidationError):
        RouterConfig(max_body_bytes=MAX_BODY_BYTES + 1)
    body = b'{"model": "echo", "prompt": "a b", "user": "%b"}' % (b"x" * 70_000_000)
    answers = []
    for limit in (MAX_BODY_BYTES, 69_000_000):
        cfg["serving"]["max_body_bytes"] = limit
        app = create_app(FAMILY, cfg, name="echo")
        with serve_asgi(app, lifespan="on") as url:
            answers.append(httpx.post(url + TEXT, content=body, timeout=30))
    assert answers[0].status_code == 200
    assert answers[1].status_code == 413
    assert "69000000 bytes" in answers[1].json()["error"]["message"]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": HI, **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": "echo", "prompt": "hi", **fields}


def message(**fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": "hi", **fields}]}


BAD_BODIES: list[tuple[str, Any, int, str]] = [
    (CHAT, b"", 400, "the request has no body; send a JSON object"),
    (CHAT, b"{", 400, "the request body is not valid JSON: Input data was truncated"),
    (
        CHAT,
        b"model=echo",
        400,
        "the request body is not valid JSON: JSON is malformed: invalid character (byte 0)",
    ),
    (
        CHAT,
        b'{"model":"\xff"}',
        400,
        "the request body is not valid JSON: 'utf-8' codec can't decode byte 0xff in position 0: "
        "invalid start byte",
    ),
    (CHAT, b"[" * 9000, 400, "the request body is not valid JSON: it is nested too deeply"),
    (CHAT, [], 400, "the body must be a JSON object, not a list"),
    (CHAT, "hi", 400, "the body must be a JSON object, not 'hi'"),
    (CHAT, 7, 400, "the body must be a JSON object, not 7"),
    (CHAT, None, 400, "the body must be a JSON object, not null"),
    (
        CHAT,
        b" " * 20_001,
        413,
        "the request body is larger than 20000 bytes, the limit that `serving.max_body_bytes` sets",
    ),
]
BAD_FIELDS: list[tuple[str, Any, int, str, str | None]] = [
    (CHAT, {"messages": HI}, 400, "model", None),
    (CHAT, chat(model=3), 400, "model", None),
    (CHAT, chat(model=""), 400, "model", None),
    (CHAT, chat(model="x"), 404, "model", "model_not_found"),
    (CHAT, {"model": "echo"}, 400, "messages", None),
    (CHAT, chat(messages="hi"), 400, "messages", None),
    (CHAT, chat(messages={}), 400, "messages", None),
    (CHAT, chat(messages=[]), 400, "messages", None),
    (CHAT, chat(messages=["hi"]), 400, "messages[0]", None),
    (CHAT, message(role="robot"), 400, "messages[0].role", None),
    (CHAT, message(role=None), 400, "messages[0].role", None),
    (CHAT, message(role=["user"]), 400, "messages[0].role", None),
    (CHAT, message(content=None), 400, "messages[0].content", None),
    (CHAT, message(content=["hi"]), 400, "messages[0].content[0]", None),
    (
        CHAT,
        message(content=[{"type": "image_url", "image_url": {"url": "data:"}}]),
        400,
        "messages[0].content[0].type",
        "unsupported",
    ),
    (CHAT, message(content=[{"type": "text"}]), 400, "messages[0].content[0].text", None),
    (CHAT, chat(stream="yes"), 400, "stream", None),
    (CHAT, chat(stream=1), 400, "stream", None),
    (CHAT, chat(stream_options={}), 400, "stream_options", None),
    (CHAT, chat(stream=True, stream_options=[]), 400, "stream_options", None),
    (
        CHAT,
        chat(stream=True, stream_options={"include_usage": "y"}),
        400,
        "stream_options.include_usage",
        None,
    ),
    (CHAT, chat(max_tokens=0), 400, "max_tokens", None),
    (CHAT, chat(max_tokens=True), 400, "max_tokens", None),
    (CHAT, chat(max_completion_tokens=1.5), 400, "max_completion_tokens", None),
    (CHAT, chat(temperature=2.1), 400, "temperature", None),
    (CHAT, chat(temperature="hot"), 400, "temperature", None),
    (CHAT, chat(top_p=0), 400, "top_p", None),
    (CHAT, chat(top_k=-2), 400, "top_k", None),
    (CHAT, chat(min_p=2), 400, "min_p", None),
    (CHAT, chat(seed=0.5), 400, "seed", None),
    (CHAT, chat(presence_penalty=3), 400, "presence_penalty", None),
    (CHAT, chat(repetition_penalty=0), 400, "repetition_penalty", None),
    (CHAT, chat(repetition_penalty=1e-320), 400, "repetition_penalty", None),
    (CHAT, chat(ignore_eos="no"), 400, "ignore_eos", None),
    (CHAT, chat(stop=list("abcdefghijklmnopq")), 400, "stop", None),
    (CHAT, chat(stop=[1]), 400, "stop", None),
    (CHAT, chat(stop=""), 400, "stop", None),
    (CHAT, chat(stop=["a" * 4097]), 400, "stop", None),
    (CHAT, chat(n=0), 400, "n", None),
    (CHAT, chat(n=33), 400, "n", None),
    (CHAT, chat(tools=[{"type": "custom"}]), 400, "tools[0].type", "unsupported"),
    (CHAT, chat(logprobs=True), 400, "logprobs", "unsupported"),
    (CHAT, chat(top_logprobs=1), 400, "top_logprobs", None),
    (CHAT, chat(logprobs=1), 400, "logprobs", None),
    (CHAT, chat(logit_bias={"1": 1}), 400, "logit_bias", "unsupported"),
    (CHAT, chat(logit_bias={"x": 1}), 400, "logit_bias", None),
    (CHAT, chat(logit_bias=[1]), 400, "logit_bias", None),
    (CHAT, chat(response_format={"type": "json_object"}), 400, "response_format", "unsupported"),
    (TEXT, {"model": "echo"}, 400, "prompt", None),
    (TEXT, text(prompt=3), 400, "prompt", None),
    (TEXT, text(prompt=[]), 400, "prompt", None),
    (TEXT, text(prompt=[1, 2]), 400, "prompt", "unsupported"),
    (TEXT, text(best_of=3), 400, "best_of", "unsupported"),
    (TEXT, text(prompt=["a", [1]]), 400, "prompt", "unsupported"),
    (TEXT, text(prompt=["a", 1]), 400, "prompt", None),
    (TEXT, text(prompt=["a"] * 129), 400, "prompt", None),
    (TEXT, text(echo="yes"), 400, "echo", None),
    (TEXT, text(max_tokens=0), 400, "max_tokens", None),
    (TEXT, text(suffix="x"), 400, "suffix", "unsupported"),
    (TEXT, text(logprobs=1), 400, "logprobs", "unsupported"),
    (INFER, {"model": "echo"}, 400, "inputs", None),
    (INFER, {"inputs": {}}, 400, "model", None),
    (INFER, {"model": "echo", "inputs": "hi"}, 400, "inputs", None),
    (INFER, {"model": "echo", "inputs": {}, "stream": 0}, 400, "stream", None),
]
"""Each with its parameter and code; tests of `request_schema` pin one wording for each kind."""


def refusal(client: httpx.Client, path: str, body: Any, status: int) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content, headers={"x-request-id": "bad-1"})
    error: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"] == "bad-1"
    assert answer.headers["content-type"] == "application/json"
    return error


@pytest.mark.parametrize(("path", "body", "status", "message"), BAD_BODIES)
def test_a_bad_body(client: httpx.Client, path: str, body: Any, status: int, message: str) -> None:
    error = refusal(client, path, body, status)
    assert (error["message"], error["param"]) == (message, None)


@pytest.mark.parametrize(("path", "body", "status", "param", "code"), BAD_FIELDS)
def test_a_bad_field(
    client: httpx.Client, path: str, body: Any, status: int, param: str, code: str | None
) -> None:
    error = refusal(client, path, body, status)
    assert (error["param"], error["code"]) == (param, code)
    assert status == 404 or error["message"].startswith(f"`{param}` ")


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "expected"),
    [
        ("GET", "/v1/nosuch", 404, "not_found", "there is no /v1/nosuch here; /docs lists "),
        ("POST", "/", 404, "not_found", "there is no / here; /docs lists "),
        ("GET", CHAT, 405, "method_not_allowed", f"{CHAT} takes POST, not GET"),
        ("DELETE", "/v1/models/echo", 405, "method_not_allowed", "takes GET, not DELETE"),
        ("GET", "/v1/models/x", 404, "model_not_found", "the model 'x' does not exist here; "),
        ("PUT", "/health", 405, "method_not_allowed", "/health takes GET, not PUT"),
    ],
)
def test_a_wrong_route(
    client: httpx.Client, method: str, path: str, status: int, code: str, expected: str
) -> None:
    answer = client.request(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert expected in error["message"]
    assert answer.headers["x-request-id"]
    allow = ("POST" if path == CHAT else "GET, HEAD") if status == 405 else None
    assert answer.headers.get("allow") == allow


def test_a_body_without_a_length_is_limited_too(client: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    answer = client.post(CHAT, content=body())
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a b", "caf\u00e9"])
def test_a_request_id_that_is_not_sane_is_replaced(client: httpx.Client, request_id: str) -> None:
    answer = client.get("/health", headers={b"x-request-id": request_id.encode()})
    assert len(answer.headers["x-request-id"]) == 32
