"""A second server for the tests of the family `remote`, and the family in front of one.

Both are real HTTP servers. The second one remembers what it was sent, and can misbehave; knows no
test.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from tests.support.servers import serve_asgi
from truthgpt_serve.config import load_model_config
from truthgpt_serve.http.asgi import Receive, Scope, Send, send_bytes, send_json
from truthgpt_serve.registry import MODEL_REGISTRY
from truthgpt_serve.server import ModelInstance, create_asgi_app

KEY_VARIABLE = "REMOTE_TEST_KEY"
KEY = "sk-secret-4711-do-not-show"


@dataclass
class Request:
    """What the second server was sent."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        """Returns all values of a header."""
        return [value for key, value in self.headers if key == name]

    def json(self) -> Any:
        """Returns the body."""
        return json.loads(self.body)


Behavior = Callable[[Request, Send], Awaitable[None]]


@dataclass
class OtherServer:
    """A small OpenAI-compatible server; `behave` takes the place of its answers.

    Attributes:
        models: The names that it lists.
        requests: All but questions for health, in their order.
        health_status: How it answers `GET /v1/models`.
        left: Set when a client closed its connection before its answer was whole.
    """

    models: tuple[str, ...] = ("there",)
    requests: list[Request] = field(default_factory=list)
    behave: Behavior | None = None
    health_status: int = 200
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def last(self) -> Request:
        """The newest request."""
        return self.requests[-1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection."""
        if scope["type"] != "http":
            raise NotImplementedError  # uvicorn then knows that there is no lifespan
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
        path, query = scope["raw_path"].decode(), scope["query_string"].decode()
        request = Request(scope["method"], path, query, headers, body)
        if (request.method, path) == ("GET", "/v1/models"):
            entries = [{"id": name, "object": "model"} for name in self.models]
            value = {"object": "list", "data": entries}
            await send_json(send, value, status=self.health_status)
            return
        self.requests.append(request)
        answer = asyncio.ensure_future((self.behave or answer_as_openai)(request, send))
        watch = asyncio.ensure_future(receive())
        await asyncio.wait((answer, watch), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            self.left.set()
            answer.cancel()
        watch.cancel()
        await asyncio.gather(answer, watch, return_exceptions=True)


async def answer_as_openai(request: Request, send: Send) -> None:
    """Answers the routes that the tests use; names its model as it was asked for."""
    body = request.json() if request.body[:1] == b"{" else {}
    model = str(body.get("model"))
    if request.path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        value: Any = {"object": "list", "data": data, "model": model, "usage": usage}
    elif body.get("stream"):
        await send_events(send, [chat_event(model, word) for word in ("one ", "two")])
        return
    elif request.path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": f'I am not "model": "{model}"'}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        value = {"id": "1", "object": "chat.completion", "created": 1, "model": model}
        value |= {"choices": [choice], "usage": usage}
    else:
        value = {"path": request.path, "model": model}
    await send_bytes(send, json.dumps(value).encode(), b"application/json")


def chat_event(model: str, text: str | None, reason: str | None = None) -> bytes:
    """Returns one event of a streamed chat."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    value = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model}
    return b"data: " + json.dumps({**value, "choices": [choice]}).encode() + b"\n\n"


async def send_start(send: Send, content_type: str, status: int = 200, **more: str) -> None:
    """Sends status and headers."""
    lines = {"content-type": content_type, **{key.replace("_", "-"): v for key, v in more.items()}}
    headers = [(key.encode(), value.encode()) for key, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def send_events(send: Send, events: list[bytes], *, end: bytes = b"data: [DONE]\n\n") -> None:
    """Sends a whole stream of events."""
    await send_start(send, "text/event-stream")
    for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": end, "more_body": False})


class Hosted:
    """One model as its family serves it, with the lifespan of the server around it.

    Attributes:
        instance: The loaded model.
    """

    def __init__(self, cfg: dict[str, Any], name: str) -> None:
        self.instance = ModelInstance(
            MODEL_REGISTRY.find(cfg["model"]["family"]), load_model_config(cfg), name=name
        )
        self._app: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        await self.instance.start()
        self._app = await create_asgi_app(self.instance)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.instance.close()
        await send({"type": "lifespan.shutdown.complete"})


def remote_cfg(base_url: str, *, task: str = "text-generation", **engine: Any) -> dict[str, Any]:
    """Returns the configuration of a remote model."""
    serving = engine.pop("serving", {})
    keys = {
        "run_name": "far",
        "task": task,
        "model": {"family": "remote", "name_or_path": base_url},
        "serving": {**serving, "engine": engine},
    }
    return load_model_config(keys).to_cfg()


@contextmanager
def serve_at(app: Any, port: int = 0, **options: Any) -> Iterator[int]:
    """Serves `app` at a port of the caller's choice, with uvicorn's own options; yields the port.

    For what `serve_asgi` does not have: TLS, and an address that is known before.
    """
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, lifespan="auto", log_level="error", **options
    )
    config.timeout_graceful_shutdown = 2
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server did not start in time"
        time.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def relay_to(base_url: str, *, name: str = "far", **settings: Any) -> Iterator[httpx.Client]:
    """Serves the family in front of a base URL; yields a client of it."""
    app = Hosted(remote_cfg(base_url, **settings), name)
    with serve_asgi(app, lifespan="on") as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@contextmanager
def relayed(**settings: Any) -> Iterator[tuple[httpx.Client, OtherServer]]:
    """Serves a second server and the family in front of it."""
    other = OtherServer()
    with serve_asgi(other) as url, relay_to(f"{url}/v1", **settings) as client:
        yield client, other
