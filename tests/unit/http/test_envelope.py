"""Each API's own errors on every way to a model, read by each API's own client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx
import openai
import pytest
import tritonclient.http as triton
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from tritonclient.utils import InferenceServerException

from tests.route_table import check_form
from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.cluster.state import ApplicationState, ServeState
from truthgpt_serve.config import RouterConfig, load_model_config
from truthgpt_serve.errors import (
    DeadlineError,
    OverloadedError,
    PassedError,
    ServerError,
    TooLargeError,
    TruthGPTError,
    UnavailableError,
    UnsupportedError,
)
from truthgpt_serve.http.asgi import Receive, Scope, Send
from truthgpt_serve.http.foreign_errors import read_error, read_proxied_error
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.server import ModelInstance, create_asgi_app

MESSAGES = "/v1/messages"
CHAT = "/v1/chat/completions"
LIMIT_S = 120.0
"""No answer takes long, but where the whole machine stands still."""
ASK: dict[str, Any] = {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


def own_app() -> FastAPI:
    """An application as users write them; the field `do` of a body says how it fails."""
    app = FastAPI()

    @app.post("/v1/messages")
    @app.post("/v1/chat/completions")
    @app.post("/v2/models/own/infer")
    @app.post("/v1/own")
    async def fail(body: dict[str, Any]) -> Any:
        kind, status = body.get("do", "vllm"), int(body.get("status", 400))
        if kind == "text":
            return PlainTextResponse("too bad", status)
        if kind == "vllm":
            error = {"message": "bad", "type": "BadRequestError", "param": "seed", "code": status}
            return JSONResponse({"error": error}, status)
        if kind == "string":
            return JSONResponse({"error": "too bad"}, status)
        if kind == "anthropic":
            inner = {"type": "invalid_request_error", "message": "bad"}
            return JSONResponse({"type": "error", "error": inner}, status)
        if kind == "stream":
            return StreamingResponse(cut(), media_type="text/event-stream")
        if kind == "crash":
            raise KeyError("secret")
        raise HTTPException(status, "too bad")

    async def cut() -> AsyncIterator[str]:
        yield 'event: ping\ndata: {"type": "ping"}\n\n'
        raise ConnectionError

    return app


class Own(Base):
    def create_asgi_app(self) -> FastAPI:
        return own_app()

    def infer(self, inputs: dict[str, Any]) -> Any:
        return inputs


class Plain(Base):
    def infer(self, inputs: dict[str, Any]) -> Any:
        return {"text": inputs["text"]}


class Mounted:
    """Stands where Serve's proxy stands."""

    def __init__(self) -> None:
        classes = {"own": Own, "plain": Plain}
        self._hosts = {
            name: ModelInstance(
                spec_of(cls), load_model_config({"task": "text-generation"}), name=name
            )
            for name, cls in classes.items()
        }
        self._apps: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        name = scope["path"].split("/")[2]
        if name in self._apps:
            await self._apps[name]({**scope, "root_path": f"/models/{name}"}, receive, send)
            return
        await PlainTextResponse("{}")(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        for name, host in self._hosts.items():
            await host.start()
            self._apps[name] = await create_asgi_app(host)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for host in self._hosts.values():
            await host.close()
        await send({"type": "lifespan.shutdown.complete"})


def _state(name: str, *, running: bool = True) -> ApplicationState:
    return ApplicationState(
        name=name,
        route_prefix=f"/models/{name}",
        status="RUNNING" if running else "DEPLOYING",
        message="",
        num_running_replicas=int(running),
        card={},
        deployed_at_s=0.0,
    )


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """The two ways to a model: `router`, and `own` for its own address."""
    states = {name: _state(name) for name in ("own", "plain")}
    states["starting"] = _state("starting", running=False)
    with serve_asgi(Mounted(), lifespan="on") as proxy:
        config = RouterConfig(max_body_bytes=10_000, request_timeout_s=LIMIT_S)
        port = urlsplit(proxy).port or 0
        router = RouterApp(config, lambda: ServeState(states), ("127.0.0.1", port))
        with serve_asgi(router, lifespan="on") as address:
            yield {"router": address, "own": f"{proxy}/models/own"}


@contextmanager
def asking(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0, timeout=LIMIT_S) as client:
        yield client


WRONG: dict[str, tuple[dict[str, Any], type[anthropic.APIStatusError], str]] = {
    "unknown model": ({"model": "nosuch"}, anthropic.NotFoundError, "not_found_error"),
    "no model": ({"model": ""}, anthropic.BadRequestError, "invalid_request_error"),
    "starting": ({"model": "starting"}, anthropic.InternalServerError, "overloaded_error"),
    "not what it does": (
        {"model": "plain", "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        anthropic.BadRequestError,
        "invalid_request_error",
    ),
    "too large": (
        {"model": "own", "system": "x" * 20_000},
        anthropic.RequestTooLargeError,
        "request_too_large",
    ),
    "the engine's": ({"model": "own"}, anthropic.BadRequestError, "invalid_request_error"),
    "full": (
        {"model": "own", "extra_body": {"do": "text", "status": 429}},
        anthropic.RateLimitError,
        "rate_limit_error",
    ),
    "crash": (
        {"model": "own", "extra_body": {"do": "crash"}},
        anthropic.InternalServerError,
        "api_error",
    ),
    "time is over": (
        {"model": "own", "extra_body": {"do": "string", "status": 504}},
        anthropic.InternalServerError,
        "timeout_error",
    ),
}


@pytest.mark.parametrize(("fields", "kind", "word"), WRONG.values(), ids=WRONG.keys())
def test_anthropics_client_raises_its_own_classes(
    addresses: dict[str, str], fields: dict[str, Any], kind: type, word: str
) -> None:
    with (
        asking(addresses["router"]) as client,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        client.messages.create(**{**ASK, **fields})
    assert isinstance(caught.value, kind)
    assert caught.value.type == word
    body: Any = caught.value.body
    assert body.keys() == {"type", "error"}
    assert body["error"].keys() == {"type", "message"}
    assert "secret" not in json.dumps(body)
    if caught.value.status_code in (429, 503):
        assert int(caught.value.response.headers["retry-after"]) > 0


@pytest.mark.parametrize("way", ["router", "own"])
@pytest.mark.parametrize("do", ["text", "vllm", "string", "anthropic", "detail"])
@pytest.mark.parametrize("path", [MESSAGES, CHAT, "/v2/models/own/infer", "/v1/own"])
@pytest.mark.parametrize("status", [400, 404, 409, 429, 500, 503])
def test_an_applications_errors_get_the_form_of_the_path(
    addresses: dict[str, str], way: str, do: str, path: str, status: int
) -> None:
    body = {"model": "own", "do": do, "status": status}
    answer = httpx.post(addresses[way] + path, json=body, timeout=LIMIT_S)
    assert answer.status_code == status
    check_form(answer, path)
    assert "bad" in answer.text
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_a_stream_of_messages_fails_by_anthropics_event(addresses: dict[str, str]) -> None:
    with asking(addresses["router"]) as client:
        stream = client.messages.create(
            **ASK, model="own", stream=True, extra_body={"do": "stream"}
        )
        with pytest.raises(anthropic.APIStatusError) as caught:
            list(stream)
    assert "api_error" in str(caught.value)
    body: Any = caught.value.body
    assert body["type"] == "error"


def test_a_stream_of_chat_fails_by_openais_event(addresses: dict[str, str]) -> None:
    with openai.OpenAI(base_url=f"{addresses['router']}/v1", api_key="x", max_retries=0) as client:
        stream: Any = client.chat.completions.create(
            model="own", messages=ASK["messages"], stream=True, extra_body={"do": "stream"}
        )
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == "upstream_error"


@pytest.mark.parametrize("model", ["plain", "own", "nosuch", "starting"])
def test_tritons_client_reads_every_refusal(addresses: dict[str, str], model: str) -> None:
    client: Any = triton.InferenceServerClient(addresses["router"].removeprefix("http://"))
    calls: list[Callable[[], Any]] = [
        lambda: client.infer(model, [_tensor()]),
        lambda: client.get_model_metadata(model),
        lambda: client.get_inference_statistics(model),
    ]
    try:
        for call in calls:
            with pytest.raises(InferenceServerException) as caught:
                call()
            assert isinstance(caught.value.message(), str)
            assert "exception occurred in the client" not in caught.value.message()
    finally:
        client.close()


def _tensor() -> Any:
    kind: Any = triton.InferInput
    return kind("x", [1], "FP32")


@pytest.mark.long("waits for limits of time")
def test_the_way_to_a_model_that_is_away_has_the_form_too(addresses: dict[str, str]) -> None:
    for path in (CHAT, MESSAGES, "/v2/models/starting"):
        answer = httpx.post(
            f"{addresses['router']}/models/starting{path}", json={}, timeout=LIMIT_S
        )
        assert answer.status_code == 503
        check_form(answer, path)
        assert answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (UnsupportedError("x"), "invalid_request_error"),
        (TooLargeError("x"), "request_too_large"),
        (OverloadedError("x"), "rate_limit_error"),
        (UnavailableError("x"), "overloaded_error"),
        (DeadlineError("x"), "timeout_error"),
        (ServerError("x"), "api_error"),
        (PassedError(401, "x"), "authentication_error"),
        (PassedError(403, "x"), "permission_error"),
    ],
)
def test_anthropics_words(error: TruthGPTError, word: str) -> None:
    from truthgpt_serve.http.envelope import error_body

    assert error_body(error, MESSAGES)["error"]["type"] == word


def read(status: int, body: Any, path: str = CHAT) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_error(status, data, method="POST", path=path, model="m")


def test_what_is_in_form_already_passes_untouched() -> None:
    inner = {"message": "a", "type": "invalid_request_error", "param": None, "code": "x"}
    assert read(400, {"error": inner}) is None
    assert read(400, {"error": "a"}, "/v2/models/m/infer") is None
    anthropics = {"type": "error", "error": {"type": "api_error", "message": "a"}}
    assert read(500, anthropics, MESSAGES) is None


def test_what_engines_say_is_put_into_openais_words() -> None:
    message = "This model's maximum context length is 5 tokens. However, you requested 6"
    error = read(400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})
    assert (error.type, error.code) == ("invalid_request_error", "context_length_exceeded")
    missing = {"message": "no x", "type": "NotFoundError", "param": "model", "code": 404}
    assert read(404, {"error": missing}).code == "model_not_found"
    assert read(404, {"object": "error", "message": "old", "code": 40401}).message == "old"
    assert type(read(501, {"error": {"message": "no such API"}})) is UnsupportedError
    assert read(500, b'{"error": {"message": 7}}').message == '{"error": {"message": 7}}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"404 page not found\n",
        {"detail": "Not Found"},
        {"error": {"message": "Invalid URL (POST /v1/chat/completions)", "code": None}},
        {"error": {"message": "File Not Found", "code": 404, "type": "not_found_error"}},
    ],
)
def test_a_route_that_a_server_does_not_have_is_what_the_model_cannot_do(body: Any) -> None:
    assert type(read(404, body)) is UnsupportedError
    assert read(404, body, "/v1/nosuch").status == 404


def test_a_queue_of_ray_s_is_full_in_our_words() -> None:
    text = b"Request dropped due to backpressure (num_queued_requests=3, max_queued_requests=3)."
    given: dict[str, Any] = {"method": "POST", "path": "/v1/infer", "model": "m", "running": False}
    error = read_proxied_error(429, text, **given)
    assert isinstance(error, OverloadedError)
    assert error.message.startswith("The queue of model 'm' is full: 3 requests run or wait;")
    assert read_proxied_error(429, b"max_queued_requests=x", **given) is not None
